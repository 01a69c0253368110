"""Order statistics of timings: percentiles, and how sure a median is. Assumes no distribution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from armlet.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

_RESAMPLES = 1000
_TOGETHER = 50  # draws that are in memory at the same time


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value below which a share of the values lies, interpolated between the two nearest.

    Args:
        values: at least one, in any order.
        share: from 0 (the smallest) to 1 (the largest).

    Raises:
        UsageError: no values, or a share outside 0 to 1.
    """
    if not values:
        raise UsageError("there are no values to take a percentile of")
    if not 0 <= share <= 1:
        raise UsageError(f"{share} is not a share from 0 to 1")
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])


def bootstrap_medians(programs: Sequence[Sequence[Sequence[float]]], seed: int = 0) -> np.ndarray:
    """Draw what the medians of programs that were timed in turns could as well have been.

    Readings of one process are alike, so that processes are drawn first, with replacement, and then readings of each;
    the same turns are drawn for all programs, so that what a turn did to all of them stays paired.

    Args:
        programs: for each program the readings of each of its processes: as many processes for all programs, and as
            many readings for all processes of one.
        seed: of the draws.

    Returns:
        [programs, draws], float64.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapters 8 and 13.
    """
    import numpy as np

    generator = np.random.default_rng(seed)
    arrays = [np.asarray(processes, np.float64) for processes in programs]
    n_turns = len(arrays[0])
    found = np.empty((len(arrays), _RESAMPLES))
    for first in range(0, _RESAMPLES, _TOGETHER):
        turns = generator.integers(0, n_turns, (_TOGETHER, n_turns))
        for index, readings in enumerate(arrays):
            n = readings.shape[1]
            drawn = generator.integers(0, n, (_TOGETHER, n_turns, n))
            values = readings[turns[:, :, None], drawn].reshape(_TOGETHER, -1)
            found[index, first : first + _TOGETHER] = np.median(values, axis=1)
    return found


def interval(draws: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """Return the interval that leaves the same share of the draws out on both sides."""
    import numpy as np

    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
