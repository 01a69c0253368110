"""The arena plan never lets two live buffers overlap, and is close to what no plan can beat."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from armlet.compile.memory import ArenaPlan, Lifetime, most_alive, plan_arena

lifetimes = st.builds(
    lambda n_bytes, first, length: Lifetime(n_bytes, first, first + length),
    st.integers(1, 5000),
    st.integers(0, 12),
    st.integers(0, 12),
)


@given(st.lists(lifetimes, max_size=25), st.sampled_from([1, 16, 64]))
def test_live_buffers_never_overlap_and_every_offset_is_aligned(buffers: list[Lifetime], alignment: int):
    plan = plan_arena(buffers, alignment)

    for i, (a, offset_a) in enumerate(zip(buffers, plan.offsets, strict=True)):
        assert offset_a % alignment == 0
        assert 0 <= offset_a <= plan.arena_bytes - a.n_bytes
        for b, offset_b in zip(buffers[:i], plan.offsets[:i], strict=True):
            if a.first <= b.last and b.first <= a.last:
                assert offset_a + a.n_bytes <= offset_b or offset_b + b.n_bytes <= offset_a


@given(st.lists(lifetimes, max_size=25))
def test_no_plan_goes_below_the_lower_bound_or_above_the_sum(buffers: list[Lifetime]):
    plan = plan_arena(buffers, alignment=1)

    at_each_call = [sum(b.n_bytes for b in buffers if b.first <= call <= b.last) for call in range(25)]
    assert plan.lower_bound == most_alive(buffers) == max(at_each_call)
    assert plan.lower_bound <= plan.arena_bytes <= sum(b.n_bytes for b in buffers)


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=20))
def test_a_chain_of_layers_meets_the_lower_bound(sizes: list[int]):
    # Each buffer is written by one call and read by the next: two are alive at a time, one at each end of the arena.
    chain = [Lifetime(n_bytes, i, i + 1) for i, n_bytes in enumerate(sizes)]

    plan = plan_arena(chain, alignment=1)

    assert plan.arena_bytes == plan.lower_bound


def test_a_skip_connection_keeps_its_buffer_until_it_is_added():
    skip, inner, result = Lifetime(128, 0, 2), Lifetime(256, 1, 2), Lifetime(128, 2, 3)

    plan = plan_arena([skip, inner, result])

    assert plan.arena_bytes == 512
    assert len(set(plan.offsets)) == 3


def test_buffers_that_are_never_alive_together_share_their_place():
    buffers = (Lifetime(640, 0, 1), Lifetime(600, 2, 3), Lifetime(1, 4, 9))

    assert plan_arena(buffers) == ArenaPlan((0, 0, 0), arena_bytes=640, lower_bound=640, buffers=buffers)


def test_no_buffers_need_no_arena():
    assert plan_arena([]) == ArenaPlan(offsets=(), arena_bytes=0, lower_bound=0, buffers=())


@pytest.mark.parametrize(("n_bytes", "first", "last"), [(0, 0, 1), (-4, 0, 1), (4, 2, 1)])
def test_an_impossible_lifetime_is_refused(n_bytes: int, first: int, last: int):
    with pytest.raises(ValueError, match="not a lifetime"):
        Lifetime(n_bytes, first, last)
