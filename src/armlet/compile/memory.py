"""Plans the arena: one block of working memory in which every buffer of a program has a fixed offset.

Input: when each buffer is alive, counted in calls. Output: offsets such that buffers alive at the same call never
overlap, in as few bytes as a greedy search finds.

Source: Pisarchyk and Lee, "Efficient Memory Management for Deep Neural Net Inference" (2020), greedy by size, with
further orders tried because none is best for every network.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

ALIGNMENT = 64
"""Of the arena and of every buffer in it: a cache line, so that no vector access is split needlessly."""


@dataclass(frozen=True, slots=True)
class Lifetime:
    """One buffer of the arena.

    Attributes:
        first, last: index of the first and of the last call that touches it; both count as alive.
    """

    n_bytes: int
    first: int
    last: int

    def __post_init__(self) -> None:
        if self.n_bytes <= 0 or self.first > self.last:
            raise ValueError(
                f"not a lifetime: {self.n_bytes} bytes from call {self.first} to call {self.last}"
            )

    def overlaps(self, other: Lifetime) -> bool:
        """Whether both are alive at one call."""
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True, slots=True)
class ArenaPlan:
    """Where each buffer lies.

    Attributes:
        offsets: in bytes from the start of the arena, in the order of the buffers given.
        arena_bytes: size of the arena.
        lower_bound: most bytes alive at any one call, below which no plan can go.
        buffers: what was planned, in the order of the offsets.
    """

    offsets: tuple[int, ...]
    arena_bytes: int
    lower_bound: int
    buffers: tuple[Lifetime, ...]


def plan_arena(buffers: Sequence[Lifetime], alignment: int = ALIGNMENT) -> ArenaPlan:
    """Give every buffer an offset, a multiple of `alignment`; the smallest of several greedy plans wins."""
    # The index breaks ties, so that equal inputs give equal plans.
    sequences = [sorted(range(len(buffers)), key=lambda i: (order(buffers[i]), i)) for order in _ORDERS]
    ceiling = most_alive([Lifetime(_up(b.n_bytes, alignment), b.first, b.last) for b in buffers])
    plans = [_place(buffers, sequence, alignment, 0) for sequence in sequences]
    plans += [_place(buffers, sequence, alignment, ceiling) for sequence in sequences]
    totals = [max((o + b.n_bytes for o, b in zip(plan, buffers, strict=True)), default=0) for plan in plans]
    smallest = min(totals)
    return ArenaPlan(plans[totals.index(smallest)], smallest, most_alive(buffers), tuple(buffers))


def most_alive(buffers: Sequence[Lifetime]) -> int:
    """Return the most bytes that are alive at one call."""
    # The maximum is reached at some buffer's first call.
    starts = {b.first for b in buffers}
    return max((sum(b.n_bytes for b in buffers if b.first <= at <= b.last) for at in starts), default=0)


_ORDERS: tuple[Callable[[Lifetime], tuple[int, ...]], ...] = (
    lambda b: (-b.n_bytes,),
    lambda b: (-b.n_bytes * (b.last - b.first + 1),),
    lambda b: (b.first, -b.n_bytes),
    lambda b: (-b.last, -b.n_bytes),
    lambda b: (b.first - b.last, -b.n_bytes),
)


def _place(
    buffers: Sequence[Lifetime], sequence: Sequence[int], alignment: int, ceiling: int
) -> tuple[int, ...]:
    """Place the buffers one after the other, each into the tightest gap that takes it.

    With a ceiling, every other buffer is placed as high below it as there is room, the rest as low as there is: a
    chain, in which each buffer is alive with its neighbours only, then meets at the two ends with no loss.
    """
    offsets = [0] * len(buffers)
    for rank, index in enumerate(sequence):
        n_bytes = buffers[index].n_bytes
        taken = sorted(
            (offsets[j], buffers[j].n_bytes) for j in sequence[:rank] if buffers[j].overlaps(buffers[index])
        )
        gaps = _gaps(taken, n_bytes, alignment)
        below = [(min(stop, ceiling) - n_bytes) // alignment * alignment for _, stop in gaps]
        high = [offset for (start, _), offset in zip(gaps, below, strict=True) if offset >= start]
        if rank % 2 and high:
            offsets[index] = max(high)
        elif ceiling:
            offsets[index] = gaps[0][0]
        else:
            offsets[index] = min(gaps, key=lambda gap: gap[1] - gap[0])[0]
    return tuple(offsets)


def _gaps(taken: Sequence[tuple[int, int]], n_bytes: int, alignment: int) -> list[tuple[int, int]]:
    """Return the gaps [start, stop) between taken (offset, bytes) that hold `n_bytes`; the last one has no end."""
    gaps = []
    end = 0
    for offset, size in taken:
        if offset - end >= n_bytes:
            gaps.append((end, offset))
        end = max(end, _up(offset + size, alignment))
    return [*gaps, (end, sys.maxsize)]


def _up(n_bytes: int, alignment: int) -> int:
    return -(-n_bytes // alignment) * alignment
