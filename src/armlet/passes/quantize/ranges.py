"""Ranges of activations over calibration samples, and the scales and zero points that follow from them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from armlet.analysis.graph import Traced
from armlet.models.quantization import ACTIVATION_MAX, ACTIVATION_MIN

_BATCH = 64
_BINS = 8192

Range = tuple[float, float]
Samples = tuple[torch.Tensor, ...]


def min_max_ranges(traced: Traced, nodes: tuple[str, ...], samples: Samples) -> tuple[Range, ...]:
    """Return the least and the greatest value of each node over all samples, [N, *shape] for each input."""
    low = [np.inf] * len(nodes)
    high = [-np.inf] * len(nodes)
    for values in _observe(traced, nodes, samples):
        for position, value in enumerate(values):
            low[position] = min(low[position], value.min().item())
            high[position] = max(high[position], value.max().item())
    return tuple(zip(low, high, strict=True))


def percentile_ranges(
    traced: Traced, nodes: tuple[str, ...], samples: Samples, percentile: float
) -> tuple[Range, ...]:
    """Return for each node the range that leaves out the share 100 - `percentile` of its values at either end.

    A histogram of 8192 bins between the least and the greatest value stands for the values, so that memory does not
    grow with the samples; the range is the outer edge of the bin in which the percentile falls.
    """
    limits = min_max_ranges(traced, nodes, samples)
    counts = [torch.zeros(_BINS, dtype=torch.float64) for _ in nodes]
    for values in _observe(traced, nodes, samples):
        for position, (value, (low, high)) in enumerate(zip(values, limits, strict=True)):
            if low < high:
                counts[position] += torch.histc(value, _BINS, low, high).double()
    return tuple(_cut(count.numpy(), limit, percentile) for count, limit in zip(counts, limits, strict=True))


def activation_scale(low: float, high: float) -> tuple[float, int]:
    """Return (scale, zero point) that map [low, high], widened to hold 0, onto -128 … 127.

    A range that is 0 alone gets scale 1 and zero point 0. The scale is exact in float32.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    scale = float(np.float32((high - low) / (ACTIVATION_MAX - ACTIVATION_MIN)))
    if scale < np.finfo(np.float32).tiny:
        return 1.0, 0
    zero_point = round(ACTIVATION_MIN - low / scale)
    return scale, max(ACTIVATION_MIN, min(ACTIVATION_MAX, zero_point))


def _observe(traced: Traced, nodes: tuple[str, ...], samples: Samples) -> Iterator[tuple[torch.Tensor, ...]]:
    module = traced.runnable(observed=nodes)
    with torch.no_grad():
        for batch in zip(*(torch.split(x, _BATCH) for x in samples), strict=True):
            yield module(*batch)


def _cut(counts: np.ndarray, limits: Range, percentile: float) -> Range:
    low, high = limits
    if not low < high:
        return limits
    edges = np.linspace(low, high, _BINS + 1)
    total = np.cumsum(counts)
    outside = total[-1] * (100.0 - percentile) / 100.0
    first = int(np.searchsorted(total, outside, side="right"))
    last = int(np.searchsorted(total, total[-1] - outside, side="left"))
    return float(edges[min(first, _BINS - 1)]), float(edges[min(last, _BINS - 1) + 1])
