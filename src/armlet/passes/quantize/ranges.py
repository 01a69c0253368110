"""The values of a graph over calibration samples, and the scale and zero point that follow from a range of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch

from armlet.analysis.graph import Traced
from armlet.artifacts import InputSpec
from armlet.data.splits import not_finite
from armlet.models.quantization import ACTIVATION_MAX, ACTIVATION_MIN
from armlet.passes.base import PreconditionFailed

BATCH = 64
"""Calibration samples that are computed at once."""

Range = tuple[float, float]
Samples = tuple[torch.Tensor, ...]


def values_of(traced: Traced, nodes: tuple[str, ...], samples: Samples) -> Iterator[tuple[torch.Tensor, ...]]:
    """Give the values of the nodes, in their order, batch by batch of the samples, [N, *shape] for each input."""
    module = traced.runnable(observed=nodes)
    with torch.no_grad():
        for batch in zip(*(torch.split(x, BATCH) for x in samples), strict=True):
            yield module(*batch)


def min_max_ranges(traced: Traced, nodes: tuple[str, ...], samples: Samples) -> tuple[Range, ...]:
    """Return the least and the greatest value of each node over all samples.

    Raises:
        PreconditionFailed: a value is not finite.
    """
    low = [np.inf] * len(nodes)
    high = [-np.inf] * len(nodes)
    for values in values_of(traced, nodes, samples):
        for position, value in enumerate(values):
            low[position] = _least(low[position], value.min().item())
            high[position] = -_least(-high[position], -value.max().item())
    for node, *limits in zip(nodes, low, high, strict=True):
        if not np.isfinite(limits).all():
            raise PreconditionFailed(f"the values of {node} are not finite on the calibration samples")
    return tuple(zip(low, high, strict=True))


def _least(so_far: float, value: float) -> float:
    # Python's min() would drop a NaN that comes second.
    return float(np.minimum(so_far, value))


def activation_scale(low: float, high: float, *, symmetric: bool = False) -> tuple[float, int]:
    """Return (scale, zero point) that map [low, high], widened to hold 0, onto -128 … 127.

    A range that is 0 alone gets scale 1 and zero point 0. The scale is exact in float32.

    Args:
        low: end of the range.
        high: the other end.
        symmetric: whether 0 is at the integer 0, and the side that reaches farther at ±127.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    step = max(-low, high) / ACTIVATION_MAX if symmetric else (high - low) / (ACTIVATION_MAX - ACTIVATION_MIN)
    scale = float(np.float32(step))
    if scale < np.finfo(np.float32).tiny:
        return 1.0, 0
    zero_point = 0 if symmetric else round(ACTIVATION_MIN - low / scale)
    return scale, max(ACTIVATION_MIN, min(ACTIVATION_MAX, zero_point))


def sample_problems(
    arrays: Sequence[npt.NDArray[np.generic]], inputs: Sequence[InputSpec]
) -> tuple[str, ...]:
    """Return why samples, [N, *shape] for each input, can't be calibrated on; empty when they can."""
    if len(arrays) != len(inputs):
        return (f"calibration samples have {len(arrays)} inputs, the network takes {len(inputs)}",)
    if any(len(array) == 0 for array in arrays):
        return ("there are no training samples to calibrate on",)
    problems = []
    for spec, array in zip(inputs, arrays, strict=True):
        if array.shape[1:] != spec.shape or array.dtype != spec.dtype:
            found = f"{array.dtype} of shape {list(array.shape[1:])}"
            problems.append(
                f"calibration samples of {spec.name} are {found}, meant is {spec.dtype} {list(spec.shape)}"
            )
        elif problem := not_finite(array):
            problems.append(f"calibration samples of {spec.name} are {problem}")
    return tuple(problems)
