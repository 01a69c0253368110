from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from armlet.bench.stats import bootstrap_medians, interval, percentile
from armlet.errors import UsageError

timings = st.lists(st.floats(1, 1e9), min_size=1, max_size=50)


@given(timings, st.floats(0, 1))
def test_percentiles_are_numpys(values: list[float], share: float) -> None:
    # both interpolate linearly; their last operations may round differently
    assert percentile(values, share) == pytest.approx(np.percentile(values, 100 * share), rel=1e-9)


def test_the_interval_holds_the_median_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    n_trials, inside = 200, 0
    for _ in range(n_trials):
        program = [list(rng.exponential(size=20)) for _ in range(10)]
        low, high = interval(bootstrap_medians([program])[0])
        inside += low <= np.log(2) <= high  # the median of the exponential distribution

    assert 0.95 - 3 * (0.05 * 0.95 / n_trials) ** 0.5 <= inside / n_trials


def test_processes_that_differ_widen_the_interval() -> None:
    rng = np.random.default_rng(0)
    alike = [list(rng.normal(10, 0.1, 50)) for _ in range(10)]
    apart = [[t + shift for t in process] for process, shift in zip(alike, rng.normal(0, 1, 10), strict=True)]

    (low, high), (wide_low, wide_high) = (interval(bootstrap_medians([p])[0]) for p in (alike, apart))

    assert wide_high - wide_low > 5 * (high - low)


def test_what_a_turn_does_to_both_programs_is_no_difference() -> None:
    rng = np.random.default_rng(0)
    shifts = rng.normal(0, 1, 10)
    one, other = ([list(rng.normal(10 * f + s, 0.01, 50)) for s in shifts] for f in (1.0, 1.05))
    draws = bootstrap_medians([one, other])

    low, high = interval(draws[1] - draws[0])

    assert 0.4 < low < high < 0.6  # far less than the turns' own spread of about 1


def test_draws_are_the_same_every_time() -> None:
    program = [[1.0, 2.0, 3.0], [2.0, 4.0, 6.0]]
    np.testing.assert_array_equal(bootstrap_medians([program]), bootstrap_medians([program]))


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_an_impossible_share_is_refused(share: float) -> None:
    with pytest.raises(UsageError, match="is not a share"):
        percentile([1.0], share)


def test_nothing_has_no_percentile() -> None:
    with pytest.raises(UsageError, match="there are no values"):
        percentile([], 0.5)
