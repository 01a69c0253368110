"""Plans the arena: one block of working memory in which every buffer of a program has a fixed offset.

Input: when each buffer is alive, counted in calls. Output: offsets such that buffers alive at the same call never
overlap. A plan of the least bytes is hard to find (dynamic storage allocation is NP-complete), but one of as few bytes
as are alive at one call can't be beaten. So:

1. Greedy plans in several orders, none of which is best for every network.
2. Where the smallest is above that bound, a search that changes the best order step by step, `SEARCH_STEPS` at most.

Equal input gives equal plans.

Source: Pisarchyk and Lee, "Efficient Memory Management for Deep Neural Net Inference" (2020), for greedy by size.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

ALIGNMENT = 64
"""Of the arena and of every buffer in it: a cache line, so that no vector access is split needlessly."""
SEARCH_STEPS = 200
"""Plans that are tried from each order where no greedy plan meets the lower bound."""


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
        lower_bound: below which no plan can go, `least_bytes`.
        buffers: what was planned, in the order of the offsets.
    """

    offsets: tuple[int, ...]
    arena_bytes: int
    lower_bound: int
    buffers: tuple[Lifetime, ...]


def plan_arena(
    buffers: Sequence[Lifetime], alignment: int = ALIGNMENT, search_steps: int = SEARCH_STEPS
) -> ArenaPlan:
    """Give every buffer an offset, a multiple of `alignment`; the search ends at the lower bound."""
    bound = least_bytes(buffers, alignment)
    arena = _Arena(buffers, alignment, _up(bound, alignment))
    # The index breaks ties, so that equal inputs give equal plans.
    sequences = [sorted(range(len(buffers)), key=lambda i: (order(buffers[i]), i)) for order in _ORDERS]
    plans = [arena.place(sequence, fit) for fit in _FITS for sequence in sequences]
    best = min(plans, key=arena.size)
    if arena.size(best) > bound:
        best = min([best, *(arena.search(s, bound, search_steps) for s in sequences)], key=arena.size)
    return ArenaPlan(best, arena.size(best), bound, tuple(buffers))


def least_bytes(buffers: Sequence[Lifetime], alignment: int = ALIGNMENT) -> int:
    """Return the most bytes that are alive at one call, each buffer but the last one filled up to the alignment."""
    # The maximum is reached at some buffer's first call.
    alive = ([b.n_bytes for b in buffers if b.first <= at <= b.last] for at in {b.first for b in buffers})
    filled = ([(_up(n, alignment), n) for n in sizes] for sizes in alive)
    return max((sum(up for up, _ in sizes) - max(up - n for up, n in sizes) for sizes in filled), default=0)


_ORDERS: tuple[Callable[[Lifetime], tuple[int, ...]], ...] = (
    lambda b: (-b.n_bytes,),
    lambda b: (-b.n_bytes * (b.last - b.first + 1),),
    lambda b: (b.first, -b.n_bytes),
    lambda b: (-b.last, -b.n_bytes),
    lambda b: (b.first - b.last, -b.n_bytes),
)
_Fit = Literal["tightest", "both ends", "lowest"]
_FITS: tuple[_Fit, ...] = ("tightest", "both ends", "lowest")


class _Arena:
    """Places buffers one after the other, in any order.

    Args:
        buffers: to be placed.
        alignment: of their offsets.
        ceiling: where the arena should end.
    """

    def __init__(self, buffers: Sequence[Lifetime], alignment: int, ceiling: int) -> None:
        self._buffers, self._alignment, self._ceiling = buffers, alignment, ceiling
        self._beside = [
            [j for j, b in enumerate(buffers) if j != i and a.overlaps(b)] for i, a in enumerate(buffers)
        ]

    def size(self, offsets: Sequence[int]) -> int:
        """Return the bytes of a plan."""
        return max(self._ends(offsets), default=0)

    def place(self, sequence: Sequence[int], fit: _Fit) -> tuple[int, ...]:
        """Return the offsets when each buffer takes the tightest gap that holds it, or the lowest.

        With "both ends", every other buffer is placed as high below the ceiling as there is room, the rest as low as
        there is: a chain, in which each buffer is alive with its neighbours only, then meets at the two ends with no
        loss.
        """
        offsets = [-1] * len(self._buffers)
        for rank, index in enumerate(sequence):
            n_bytes = self._buffers[index].n_bytes
            gaps = self._gaps(offsets, index)
            below = [
                (min(stop, self._ceiling) - n_bytes) // self._alignment * self._alignment for _, stop in gaps
            ]
            high = [offset for (start, _), offset in zip(gaps, below, strict=True) if offset >= start]
            if fit == "tightest":
                offsets[index] = min(gaps, key=lambda gap: gap[1] - gap[0])[0]
            else:
                offsets[index] = max(high) if fit == "both ends" and rank % 2 and high else gaps[0][0]
        return tuple(offsets)

    def search(self, sequence: Sequence[int], bound: int, steps: int) -> tuple[int, ...]:
        """Return the best of the plans that `steps` changes of a sequence lead to.

        Each moves a buffer to another turn, every second time one that reaches the arena's end, and stays unless the
        arena grew. With the lowest gap for each there is a sequence for the smallest arena: that of its offsets.
        """
        generator = random.Random(0)
        best, current = self.place(sequence, "lowest"), list(sequence)
        for step in range(steps):
            size, ends = self.size(best), self._ends(best)
            if size == bound:
                break
            movable = [i for i in current if step % 2 or ends[i] == size]
            moved = generator.choice(movable)
            changed = [i for i in current if i != moved]
            changed.insert(generator.randrange(len(current)), moved)
            found = self.place(changed, "lowest")
            if self.size(found) <= size:
                best, current = found, changed
        return best

    def _ends(self, offsets: Sequence[int]) -> list[int]:
        return [offset + b.n_bytes for offset, b in zip(offsets, self._buffers, strict=True)]

    def _gaps(self, offsets: Sequence[int], index: int) -> list[tuple[int, int]]:
        """Return the gaps [start, stop) between what lies beside a buffer that hold it; the last one has no end."""
        n_bytes, gaps, end = self._buffers[index].n_bytes, [], 0
        for offset, size in sorted(
            (offsets[j], self._buffers[j].n_bytes) for j in self._beside[index] if offsets[j] >= 0
        ):
            if offset - end >= n_bytes:
                gaps.append((end, offset))
            end = max(end, _up(offset + size, self._alignment))
        return [*gaps, (end, sys.maxsize)]


def _up(n_bytes: int, alignment: int) -> int:
    return -(-n_bytes // alignment) * alignment
