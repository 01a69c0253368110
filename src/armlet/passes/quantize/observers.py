"""Observers: how the range of an activation follows from the values it takes on calibration samples.

1. `min_max`: the least and the greatest value.
2. `moving_average`: the moving average of both over the batches (Jacob et al. 2018, section 3.1), which outliers of a
   single batch move less.
3. `percentile`: what leaves out a share of the values at either end.
4. `entropy`: the threshold with the least Kullback-Leibler divergence between the values' distribution and its
   quantised form (Migacz 2017, "8-bit Inference with TensorRT").
5. `mse`: the range with the least mean squared error of the quantised values (as in Banner et al. 2019).

The last three read a histogram between the least and the greatest value, so that memory does not grow with the samples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from armlet.analysis.graph import Traced
from armlet.models.quantization import ACTIVATION_MAX, ACTIVATION_MIN
from armlet.passes.quantize.ranges import Range, Samples, activation_scale, min_max_ranges, values_of
from armlet.registry import Registry

_BINS = 8192
# Migacz's, of the magnitudes; more would leave many of them empty.
_ENTROPY_BINS = 2048
_SHARES = np.linspace(0.02, 1.0, 99)
_EMPTY = 1e-4

Counts = npt.NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class ObserverOptions:
    """Which observer, and its numbers.

    Attributes:
        kind: its name.
        percentile: of each activation's values, in per cent, that its range holds.
        averaging: weight of a new batch in the moving average.
        symmetric: whether the scales will be symmetric, which decides what a range costs.
    """

    kind: str = "min_max"
    percentile: float = 99.99
    averaging: float = 0.1
    symmetric: bool = False


Observer = Callable[[Traced, tuple[str, ...], Samples, ObserverOptions], tuple[Range, ...]]

OBSERVERS: Registry[Observer] = Registry("observer")
"""Return the range of each node, from samples [N, *shape] for each input."""


def observe(
    traced: Traced, nodes: tuple[str, ...], samples: Samples, options: ObserverOptions
) -> dict[str, Range]:
    """Return the range of each node.

    Raises:
        PreconditionFailed: a value is not finite.
    """
    ranges = OBSERVERS[options.kind](traced, nodes, samples, options)
    return dict(zip(nodes, ranges, strict=True))


@OBSERVERS.register("min_max")
def min_max(
    traced: Traced, nodes: tuple[str, ...], samples: Samples, options: ObserverOptions
) -> tuple[Range, ...]:
    """Return the least and the greatest value."""
    return min_max_ranges(traced, nodes, samples)


@OBSERVERS.register("moving_average")
def moving_average(
    traced: Traced, nodes: tuple[str, ...], samples: Samples, options: ObserverOptions
) -> tuple[Range, ...]:
    """Return the moving averages of the batches' least and greatest values, from the first batch on."""
    min_max_ranges(traced, nodes, samples)  # refuses what is not finite
    average = None
    for values in values_of(traced, nodes, samples):
        found = np.array([(value.min().item(), value.max().item()) for value in values])
        average = found if average is None else average + options.averaging * (found - average)
    return () if average is None else tuple((float(low), float(high)) for low, high in average)


@OBSERVERS.register("percentile")
def percentile(
    traced: Traced, nodes: tuple[str, ...], samples: Samples, options: ObserverOptions
) -> tuple[Range, ...]:
    """Leave out the share 100 - percentile at either end, to the outer edge of the bin in which it falls."""
    limits = min_max_ranges(traced, nodes, samples)
    counts = _histograms(traced, nodes, samples, limits, _BINS)
    return tuple(percentile_range(c, r, options.percentile) for c, r in zip(counts, limits, strict=True))


@OBSERVERS.register("entropy")
def entropy(
    traced: Traced, nodes: tuple[str, ...], samples: Samples, options: ObserverOptions
) -> tuple[Range, ...]:
    """Cut both sides at the threshold of magnitudes with the least divergence."""
    limits = min_max_ranges(traced, nodes, samples)
    widest = tuple((0.0, max(-low, high)) for low, high in limits)
    counts = _histograms(traced, nodes, samples, widest, _ENTROPY_BINS, magnitudes=True)
    ranges = []
    for count, (low, high), (_, largest) in zip(counts, limits, widest, strict=True):
        # All integers stand on one side of zero where the values do.
        two_sided = options.symmetric or (low < 0 < high)
        n_levels = (ACTIVATION_MAX - ACTIVATION_MIN + 1) // (2 if two_sided else 1)
        threshold = largest * entropy_bins(count, n_levels) / _ENTROPY_BINS
        ranges.append((max(low, -threshold), min(high, threshold)))
    return tuple(ranges)


@OBSERVERS.register("mse")
def mse(
    traced: Traced, nodes: tuple[str, ...], samples: Samples, options: ObserverOptions
) -> tuple[Range, ...]:
    """Shrink both ends by one share, then each by its own, to the least mean squared error."""
    limits = min_max_ranges(traced, nodes, samples)
    counts = _histograms(traced, nodes, samples, limits, _BINS)
    return tuple(mse_range(c, r, symmetric=options.symmetric) for c, r in zip(counts, limits, strict=True))


def _histograms(
    traced: Traced,
    nodes: tuple[str, ...],
    samples: Samples,
    limits: tuple[Range, ...],
    n_bins: int,
    *,
    magnitudes: bool = False,
) -> list[Counts]:
    """Return how many values, or magnitudes, of each node lie in each of equally wide bins between its limits."""
    counts = [torch.zeros(n_bins, dtype=torch.float64) for _ in nodes]
    for values in values_of(traced, nodes, samples):
        for position, (value, (low, high)) in enumerate(zip(values, limits, strict=True)):
            if low < high:
                counted = value.abs() if magnitudes else value
                counts[position] += torch.histc(counted.float(), n_bins, low, high).double()
    return [count.numpy() for count in counts]


def percentile_range(counts: Counts, limits: Range, percentile: float) -> Range:
    """Return the range of a histogram between `limits` that leaves out 100 - percentile at either end."""
    low, high = limits
    if not low < high:
        return limits
    n_bins = len(counts)
    edges = np.linspace(low, high, n_bins + 1)
    total = np.cumsum(counts)
    outside = total[-1] * (100.0 - percentile) / 100.0
    first = int(np.searchsorted(total, outside, side="right"))
    last = int(np.searchsorted(total, total[-1] - outside, side="left"))
    return float(edges[min(first, n_bins - 1)]), float(edges[min(last, n_bins - 1) + 1])


def entropy_bins(counts: Counts, n_levels: int) -> int:
    """Return how many of the first bins of a histogram of magnitudes the integers should hold.

    The first bin counts as many as the second: zeros, of which relu makes many, are exact with every scale. Of n bins,
    P is what they count, with all that lies beyond in the last one, and Q the same in `n_levels` equal parts, each
    spread over its bins that are not empty; the n with the least divergence wins.
    """
    n_bins = len(counts)
    counts = np.concatenate([counts[1:2], counts[1:]])
    divergences = [_divergence(counts, n, n_levels) for n in range(n_levels, n_bins + 1)]
    return n_levels + int(np.argmin(divergences))


def _divergence(counts: Counts, n: int, n_levels: int) -> float:
    kept = counts[:n]
    clipped = kept.copy()
    clipped[-1] += counts[n:].sum()
    starts = np.arange(n_levels) * n // n_levels
    filled = (kept > 0).astype(np.float64)
    n_filled = np.maximum(np.add.reduceat(filled, starts), 1.0)
    means = np.add.reduceat(kept, starts) / n_filled
    spread = np.repeat(means, np.diff(np.append(starts, n))) * filled
    if not spread.any():
        return np.inf
    p = clipped / clipped.sum()
    # What lies beyond may fall into a bin that was empty: a little there keeps the divergence finite.
    q = np.maximum(spread / spread.sum(), _EMPTY / n)
    where = p > 0
    return float((p[where] * np.log(p[where] / (q[where] / q.sum()))).sum())


def mse_range(counts: Counts, limits: Range, *, symmetric: bool) -> Range:
    """Return the part of `limits` whose quantisation has the least mean squared error on a histogram between them."""
    low, high = limits
    if not low < high:
        return limits
    width = (high - low) / len(counts)
    centres = low + width * (np.arange(len(counts)) + 0.5)
    occupied = counts > 0
    centres, weights = centres[occupied], counts[occupied]

    def best(candidates: list[Range]) -> Range:
        errors = [
            _squared_error(centres, weights, candidate, symmetric=symmetric) for candidate in candidates
        ]
        # The widest of equals: what lies between the samples is more likely to fit in.
        return min(zip(errors, candidates, strict=True), key=lambda pair: (pair[0], pair[1][0] - pair[1][1]))[
            1
        ]

    low, high = best([(low * share, high * share) for share in _SHARES])
    low, high = best([(low, limits[1] * share) for share in _SHARES] + [(low, high)])
    low, high = best([(limits[0] * share, high) for share in _SHARES] + [(low, high)])
    return float(low), float(high)


def _squared_error(centres: Counts, weights: Counts, limits: Range, *, symmetric: bool) -> float:
    scale, zero_point = activation_scale(*limits, symmetric=symmetric)
    codes = np.clip(np.rint(centres / scale) + zero_point, ACTIVATION_MIN, ACTIVATION_MAX)
    return float((weights * ((codes - zero_point) * scale - centres) ** 2).sum())
