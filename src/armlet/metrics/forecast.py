"""Forecasts: how far off, in per cent of what came."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from armlet.artifacts import Score


def score_forecast(outputs: npt.NDArray[Any], targets: npt.NDArray[np.float32], split: str) -> Score:
    """Return the mean absolute percentage error of answers [N, ...] against targets of that shape, none of them 0."""
    errors = np.abs(outputs.astype(np.float64) - targets) / np.abs(targets.astype(np.float64))
    return Score("mape", float(errors.mean()), len(targets), split)
