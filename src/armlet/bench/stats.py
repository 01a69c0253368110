"""Order statistics of timings: percentiles, and how sure the median is. Assumes no distribution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from armlet.errors import UsageError


@dataclass(frozen=True, slots=True)
class Summary:
    """What a set of timings says; all in the unit of the timings.

    Attributes:
        n: number of timings.
        p5, median, p95: percentiles.
        median_low, median_high: interval that holds the median with at least 95 % confidence, were the
            timings independent.
    """

    n: int
    p5: float
    median: float
    p95: float
    median_low: float
    median_high: float


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
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])


def median_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Return the narrowest symmetric pair of order statistics that holds the median with that confidence.

    With too few values for that (fewer than 6 for 95 %) the smallest and the largest are returned.

    Source: the sign test's interval (Conover, Practical Nonparametric Statistics, 1999, section 3.2).
    """
    ordered = sorted(values)
    n = len(ordered)
    if n == 0:
        raise UsageError("there are no values to take a median of")
    lower = 0
    ways = below = (
        1  # of 2**n orders of the values about the median: with exactly k, with at most k of them below
    )
    for k in range(1, n):
        if 2 * below / 2**n > 1 - confidence:
            break
        lower = k - 1
        ways = ways * (n - k + 1) // k
        below += ways
    return ordered[lower], ordered[n - 1 - lower]


def summarize(values: Sequence[float]) -> Summary:
    """Return the summary of at least one timing."""
    low, high = median_interval(values)
    return Summary(
        len(values), percentile(values, 0.05), percentile(values, 0.5), percentile(values, 0.95), low, high
    )
