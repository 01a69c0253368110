from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from armlet.bench.stats import median_interval, percentile, summarize
from armlet.errors import UsageError

timings = st.lists(st.floats(1, 1e9), min_size=1, max_size=50)


@given(timings, st.floats(0, 1))
def test_percentiles_are_numpys(values: list[float], share: float) -> None:
    # both interpolate linearly; their last operations may round differently
    assert percentile(values, share) == pytest.approx(np.percentile(values, 100 * share), rel=1e-9)


# Ranks of the 95 % sign-test interval, from the binomial table with p = 1/2.
@pytest.mark.parametrize(
    ("n", "low", "high"),
    [(1, 1, 1), (5, 1, 5), (6, 1, 6), (8, 1, 8), (9, 2, 8), (10, 2, 9), (20, 6, 15), (100, 40, 61)],
)
def test_the_interval_of_the_median_has_the_tables_ranks(n: int, low: int, high: int) -> None:
    values = [float(i) for i in range(1, n + 1)]
    random.Random(n).shuffle(values)

    assert median_interval(values) == (low, high)


def test_the_interval_holds_the_median_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    n_trials = 2000
    inside = 0
    for _ in range(n_trials):
        low, high = median_interval(list(rng.exponential(size=30)))
        inside += low <= np.log(2) <= high  # the median of the exponential distribution

    assert 0.95 - 3 * (0.05 * 0.95 / n_trials) ** 0.5 <= inside / n_trials <= 0.99


def test_more_confidence_gives_a_wider_interval() -> None:
    values = [float(i) for i in range(50)]
    low, high = median_interval(values, 0.99)
    assert low < median_interval(values, 0.9)[0] < median_interval(values, 0.9)[1] < high


@given(timings)
def test_a_summary_is_in_order(values: list[float]) -> None:
    found = summarize(values)

    assert found.n == len(values)
    assert min(values) <= found.p5 <= found.median <= found.p95 <= max(values)
    assert found.median_low <= found.median <= found.median_high


def test_many_timings_are_summarized_at_once() -> None:
    assert summarize([float(i) for i in range(10_001)]).median == 5000


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_an_impossible_share_is_refused(share: float) -> None:
    with pytest.raises(UsageError, match="is not a share"):
        percentile([1.0], share)


def test_nothing_has_no_percentile() -> None:
    for function in (lambda: percentile([], 0.5), lambda: median_interval([])):
        with pytest.raises(UsageError, match="there are no values"):
            function()
