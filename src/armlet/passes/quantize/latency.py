"""Mixed precision for a latency: which layers compute in float and which in INT8, so that a program is fast enough.

1. A layer's gain is what the answers change by when it alone is quantised, its price what the program takes longer
   when it alone is float: a layer among integers pays for its float arithmetic, for changes of type on both sides, and
   for activations behind it that are tables no more.
2. Gains and prices are taken to add up, and the choice is the exact solution of the integer program
   max Σ gain × chosen, Σ price × chosen ≤ room, as in Yao et al. 2021, "HAWQ-V3".
3. Prices do not add up where layers stand next to each other, which share their changes of type. So the program of
   each choice is really costed, the room is corrected by what it takes more or less than was thought, and the integer
   program solved again, within the bounds of rooms that were tried.
4. What is left of the latency goes to those layers, each tried in its turn, that change the answers most.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np

from armlet.passes.quantize.bits import solve
from armlet.progress import Progress

_ROOMS = 16  # that are tried; each halves the range of rooms at worst
_PROGRAMS = 8  # choices that are costed on the way, beside each layer alone
_LAST = 4  # layers that are tried with what is left

CostOf = Callable[[frozenset[str]], float]
"""Milliseconds of one inference with these layers in float, all others in INT8."""


@dataclass(frozen=True, slots=True)
class FloatChoice:
    """Which layers stay float for a latency.

    Attributes:
        layers: that stay float; the choice of least error among all that were costed and hold.
        ms: of the program with this choice.
        alone_ms: of the program with one layer alone in float, by its name; of none where there is but one layer.
        integers_ms: of the program with every layer in INT8.
        n_programs: that were costed.
    """

    layers: frozenset[str]
    ms: float
    alone_ms: Mapping[str, float]
    integers_ms: float
    n_programs: int


class LatencyUnreachable(ValueError):
    """No choice that was costed holds; `best_ms` is what the fastest one takes."""

    def __init__(self, best_ms: float, n_float: int) -> None:
        super().__init__(f"{best_ms} ms with {n_float} layers in float is the least that was reached")
        self.best_ms, self.n_float = best_ms, n_float


def choose_float(
    errors: Mapping[str, float], most_ms: float, cost_of: CostOf, progress: Progress
) -> FloatChoice:
    """Return which layers stay float, never all, so that the answers change least within a latency.

    Args:
        errors: what the answers change by when a layer alone is quantised, by its name, in any unit.
        most_ms: the latency.
        cost_of: costs a choice; is asked once for each.
        progress: of what is costed.

    Raises:
        LatencyUnreachable: no choice that was costed holds.
    """
    search = _Search(errors, most_ms, cost_of, progress)
    search.solve()
    if search.best is None:
        fastest = min(search.known, key=lambda choice: search.known[choice])
        raise LatencyUnreachable(search.known[fastest], len(fastest))
    search.give_back()
    alone = {name: ms for choice, ms in search.known.items() if len(choice) == 1 for name in choice}
    return FloatChoice(
        search.best, search.known[search.best], alone, search.known[frozenset()], len(search.known)
    )


class _Search:
    """Choices that were costed, and what follows from them.

    Attributes:
        known: milliseconds of each choice that was costed.
    """

    def __init__(
        self, errors: Mapping[str, float], most_ms: float, cost_of: CostOf, progress: Progress
    ) -> None:
        # The only layer there is has no choice: without it nothing would be quantised.
        self._names = tuple(errors) if len(errors) > 1 else ()
        self._most, self._cost_of, self._progress = most_ms, cost_of, progress
        self._gains = np.array([errors[name] for name in self._names])
        self.known: dict[frozenset[str], float] = {}
        self._integers = self._costed((), "latency with every layer in INT8")
        singly = [
            self._costed((name,), f"latency with one layer in float, {n} of {len(self._names)}")
            for n, name in enumerate(self._names, 1)
        ]
        self._prices = np.array(singly) - self._integers

    @property
    def best(self) -> frozenset[str] | None:
        """The choice of the largest gain that holds, the fastest of equal ones; None if none holds."""
        holding = [choice for choice, ms in self.known.items() if ms <= self._most]
        return max(holding, key=lambda choice: (self._gain(choice), -self.known[choice]), default=None)

    def solve(self) -> None:
        """Solve the integer program for one room after the other, and cost what it chooses."""
        least, room = float(np.minimum(self._prices, 0).sum()), self._most - self._integers
        low, high = least, float(np.maximum(self._prices, 0).sum())
        most_programs = len(self.known) + _PROGRAMS
        for _ in range(_ROOMS):
            room = max(room, least)
            chosen = self._chosen(room)
            choice = frozenset(name for name, c in zip(self._names, chosen, strict=True) if c)
            if choice not in self.known and len(self.known) == most_programs:
                return
            ms = self._costed(choice, f"latency with {len(choice)} layers in float")
            if ms <= self._most:
                low = room
            elif room <= least:
                return
            else:
                high = room
            # What was thought of this choice, and what is left or lacks in truth.
            corrected = float(self._prices[chosen].sum()) + self._most - ms
            room = corrected if low < corrected < high else (low + high) / 2

    def give_back(self) -> None:
        """Let further layers stay float, those of the largest gain first, as long as the latency holds."""
        best = self.best or frozenset()
        left = [n for n in np.argsort(-self._gains, kind="stable") if self._names[n] not in best]
        for name in [self._names[n] for n in left if self._gains[n] > 0][:_LAST]:
            more = best | {name}
            if self._costed(more, f"latency with {len(more)} layers in float") <= self._most:
                best = more

    def _chosen(self, room: float) -> np.ndarray:
        """Return bool [n]: the choice of the largest gain whose prices fit."""
        wanted = (self._gains > 0) | (self._prices < 0)
        # The solver's tolerances are absolute.
        scale = max(float(np.abs(self._prices).max(initial=0.0)), 1e-30)
        chosen = np.zeros(len(wanted), bool)
        if wanted.any():
            chosen[wanted] = solve(-self._gains[wanted], -self._prices[wanted] / scale, -room / scale)
        return chosen

    def _gain(self, choice: Collection[str]) -> float:
        return float(sum(g for name, g in zip(self._names, self._gains, strict=True) if name in choice))

    def _costed(self, choice: Collection[str], what: str) -> float:
        """Return the milliseconds of a choice; all layers in float are none."""
        choice = frozenset(choice)
        if choice and len(choice) == len(self._names):
            return math.inf
        if choice not in self.known:
            self._progress.start(what)
            self.known[choice] = self._cost_of(choice)
        return self.known[choice]
