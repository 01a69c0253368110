"""Anomalies: whether what a network can't reconstruct is what is not normal."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from armlet.artifacts import Score
from armlet.data.splits import Samples


def reconstruction_errors(outputs: npt.NDArray[Any], samples: Samples) -> npt.NDArray[np.float64]:
    """Return the mean squared error of each sample, [N]: the score by which anomalies are told."""
    differences = outputs.astype(np.float64) - samples.targets
    errors: npt.NDArray[np.float64] = np.square(differences).reshape(len(samples), -1).mean(axis=1)
    return errors


def score_anomaly(outputs: npt.NDArray[Any], samples: Samples, split: str) -> Score:
    """Return ROC AUC and average precision of the reconstruction errors.

    Where all samples are normal, as in training and validation, neither exists: the score is then the mean error.
    """
    import torch
    from torchmetrics.functional.classification import binary_auroc, binary_average_precision

    errors = reconstruction_errors(outputs, samples)
    if samples.labels is None or not samples.labels.any():
        return Score("reconstruction_error", float(errors.mean()), len(samples), split)
    # Ranks, because torchmetrics takes what lies outside 0 … 1 for logits and would squeeze it; both metrics only rank.
    ranks = torch.from_numpy(np.unique(errors, return_inverse=True)[1] / len(errors))
    labels = torch.from_numpy(samples.labels)
    precision = float(binary_average_precision(ranks, labels))
    return Score(
        "roc_auc",
        float(binary_auroc(ranks, labels)),
        len(samples),
        split,
        others=(("average_precision", precision),),
    )
