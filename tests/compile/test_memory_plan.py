"""The arena plan never lets two live buffers overlap, and is close to what no plan can beat."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from armlet.compile.memory import ArenaPlan, Lifetime, least_bytes, plan_arena

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
    assert plan.lower_bound == least_bytes(buffers, 1) == max(at_each_call)
    assert plan.lower_bound <= plan.arena_bytes <= sum(b.n_bytes for b in buffers)


@given(st.lists(lifetimes, max_size=25), st.sampled_from([16, 64]))
def test_the_lower_bound_knows_the_alignment(buffers: list[Lifetime], alignment: int):
    plan = plan_arena(buffers, alignment)

    assert least_bytes(buffers, 1) <= plan.lower_bound <= plan.arena_bytes
    # Buffers that are all alive together, one behind the other, the one that needs most filling last.
    together = [Lifetime(b.n_bytes, 0, 0) for b in buffers]
    order = sorted(together, key=lambda b: -b.n_bytes % alignment)
    end = 0
    for buffer in order:
        end += -end % alignment + buffer.n_bytes
    assert least_bytes(together, alignment) == end


def _smallest(buffers: Sequence[Lifetime]) -> int:
    """The smallest arena of all, without alignment: in one order each buffer takes the lowest gap that holds it."""
    best = sum(b.n_bytes for b in buffers)
    for sequence in permutations(buffers):
        placed: list[tuple[int, Lifetime]] = []
        for buffer in sequence:
            beside = sorted((o, b.n_bytes) for o, b in placed if b.overlaps(buffer))
            offset = 0
            for start, n_bytes in beside:
                if start - offset < buffer.n_bytes:
                    offset = max(offset, start + n_bytes)
            placed.append((offset, buffer))
        best = min(best, max(o + b.n_bytes for o, b in placed))
    return best


@pytest.mark.parametrize(
    ("buffers", "greedy", "bound"),
    [
        ([(7, 3, 4), (7, 3, 5), (2, 4, 4), (4, 1, 4), (6, 4, 5), (7, 0, 3)], 27, 26),
        ([(4, 3, 5), (3, 3, 3), (2, 1, 4), (4, 1, 3), (3, 3, 5), (6, 4, 7)], 18, 16),
        ([(7, 4, 4), (7, 4, 5), (5, 3, 4), (1, 1, 1), (6, 4, 4), (8, 5, 7), (8, 5, 8)], 27, 25),
        ([(9, 2, 4), (11, 4, 5), (10, 2, 3), (11, 1, 1), (11, 1, 1), (7, 1, 3), (10, 2, 5)], 37, 36),
    ],
)
def test_the_search_finds_what_greedy_plans_miss(
    buffers: list[tuple[int, int, int]], greedy: int, bound: int
):
    given_ = [Lifetime(*buffer) for buffer in buffers]

    assert plan_arena(given_, 1, search_steps=0).arena_bytes == greedy
    found = plan_arena(given_, 1)
    assert found == plan_arena(given_, 1)
    assert (found.arena_bytes, found.lower_bound) == (_smallest(given_), bound)


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
