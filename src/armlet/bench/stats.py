"""Order statistics of timings: percentiles, and how sure a median is. Assumes no distribution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from armlet.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

_RESAMPLES = 1000


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
        programs: for each program the readings of each of its processes; as many processes for all.
        seed: of the draws.

    Returns:
        [programs, draws], float64.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapters 8 and 13.
    """
    import numpy as np

    generator = np.random.default_rng(seed)
    n_turns = len(programs[0])
    found = np.empty((len(programs), _RESAMPLES))
    arrays = [[np.asarray(process, np.float64) for process in program] for program in programs]
    for draw in range(_RESAMPLES):
        turns = generator.integers(0, n_turns, n_turns)
        for index, processes in enumerate(arrays):
            drawn = [generator.choice(processes[turn], len(processes[turn])) for turn in turns]
            found[index, draw] = np.median(np.concatenate(drawn))
    return found


def interval(draws: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """Return the interval that leaves the same share of the draws out on both sides."""
    import numpy as np

    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
