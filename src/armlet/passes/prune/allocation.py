"""How many channels of each group go, so that a budget holds at the least damage.

1. Sensitivity curves: each group alone loses its least important channels, an eighth of them at a time; the damage is
   how far the answers move: the divergence of the classes' shares, or the squared error of numbers.
2. Savings: what the budgeted cost falls by when a group alone loses half, for each channel.
3. Allocation: with a price for cost, each group takes the step of least damage + price × cost; the lowest price at
   which the network as a whole keeps the budget, really pruned and costed, is found by bisection. Prices reach the
   convex hull of the curves only, so what is left of the budget is given back a step at a time.

Source: Lagrangian allocation over rate-distortion curves, Shoham and Gersho 1988; curves of single layers, Li et al.
2017, section 3.2; platform-aware budgets, Yang et al. 2018, "NetAdapt".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from armlet.analysis.groups import ChannelGroup
from armlet.artifacts import TaskKind
from armlet.data.splits import Samples
from armlet.models.network import Network
from armlet.passes.base import PreconditionFailed
from armlet.passes.prune.remove import remove_channels
from armlet.progress import Progress
from armlet.train import predict

N_STEPS = 8
"""Steps of a curve: shares of a group's channels."""

_SEARCHES = 12  # prices that are tried; each halves the range of their logarithm
_HIGHEST = 1e4  # price at which damage hardly counts, and one over it the price at which cost hardly does

CostOf = Callable[[Network], float]


@dataclass(frozen=True, slots=True)
class Ranked:
    """A group with its channels in the order in which they go.

    Attributes:
        order: numbers of all channels, the least important first.
        multiple: what the number of channels left is a multiple of, where any go.
    """

    group: ChannelGroup
    order: tuple[int, ...]
    multiple: int = 1

    def counts(self) -> tuple[int, ...]:
        """Return how many channels go at each step, from none on."""
        n = self.group.n_channels
        left = {n, *(max(min(n, self.group.least), n - n * step // N_STEPS) for step in range(N_STEPS))}
        rounded = {min(n, -(-k // self.multiple) * self.multiple) for k in left}
        return tuple(sorted(n - k for k in rounded))


@dataclass(frozen=True, slots=True)
class Curve:
    """What the answers suffer when a group alone loses channels.

    Attributes:
        counts: channels that go, from none on.
        damage: at each count, never falling.
    """

    counts: tuple[int, ...]
    damage: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Goal:
    """A cost and how much of it is allowed.

    Attributes:
        name: as a person knows it.
        cost_of: of a network.
        most: what is allowed, in the unit of `cost_of`.
        text: writes a cost with its unit.
    """

    name: str
    cost_of: CostOf
    most: float
    text: Callable[[float], str]


def sensitivity(
    network: Network, ranked: Sequence[Ranked], samples: Samples, task: TaskKind, progress: Progress
) -> tuple[Curve, ...]:
    """Return the curve of each group, on some training samples."""
    inputs = tuple(map(torch.from_numpy, samples.inputs))
    before, curves = predict(network.module, inputs), []
    progress.start("sensitivity of each group", sum(len(r.counts()) - 1 for r in ranked))
    for one in ranked:
        damage = [0.0]
        for count in one.counts()[1:]:
            smaller = remove_channels(network.module, [(one.group, one.order[:count])])
            damage.append(max(damage[-1], _distance(before, predict(smaller, inputs), task)))
            progress.advance(1)
        curves.append(Curve(one.counts(), tuple(damage)))
    return tuple(curves)


def _distance(before: Tensor, after: Tensor, task: TaskKind) -> float:
    if task == "classification":
        shares = functional.log_softmax(before.double(), dim=1), functional.log_softmax(after.double(), dim=1)
        return max(
            0.0, float(functional.kl_div(shares[1], shares[0], log_target=True, reduction="batchmean"))
        )
    return float(functional.mse_loss(after.double(), before.double()))


def allocate(
    network: Network, ranked: Sequence[Ranked], curves: Sequence[Curve], goal: Goal, progress: Progress
) -> tuple[int, ...]:
    """Return how many channels of each group go.

    Raises:
        PreconditionFailed: the budget can't be reached; says what the least cost is.
    """
    costs = _Costs(network, ranked, goal)
    whole, least = costs.of((0,) * len(ranked)), tuple(curve.counts[-1] for curve in curves)
    if whole <= goal.most:
        return (0,) * len(ranked)
    if (best := costs.of(least)) > goal.most:
        raise PreconditionFailed(
            f"prune_channels: {goal.name} {goal.text(goal.most)} can't be reached: with as few channels as may be left "
            f"it is {goal.text(best)}, of {goal.text(whole)}"
        )
    progress.start(f"{goal.name} of each group", len(ranked))
    savings = []
    for place, curve in enumerate(curves):
        half = curve.counts[len(curve.counts) // 2]
        alone = tuple(half if n == place else 0 for n in range(len(ranked)))
        savings.append((whole - costs.of(alone)) / half / whole if half else 0.0)
        progress.advance(1)
    progress.start(f"allocation for {goal.name} {goal.text(goal.most)}", _SEARCHES)
    low, high, found = -np.log(_HIGHEST), np.log(_HIGHEST), least
    for _ in range(_SEARCHES):
        middle = (low + high) / 2
        counts = _at_price(float(np.exp(middle)), curves, savings)
        if costs.of(counts) <= goal.most:
            high, found = middle, counts
        else:
            low = middle
        progress.advance(1)
    return _give_back(found, curves, savings, costs)


class _Costs:
    """What the network costs without some channels, each allocation costed once."""

    def __init__(self, network: Network, ranked: Sequence[Ranked], goal: Goal) -> None:
        self._network, self._ranked, self.goal = network, ranked, goal
        self._known: dict[tuple[int, ...], float] = {}

    def of(self, counts: tuple[int, ...]) -> float:
        """Return the cost without the first `counts` channels of each group."""
        if counts not in self._known:
            removals = [(r.group, r.order[:n]) for r, n in zip(self._ranked, counts, strict=True)]
            pruned = replace(self._network, module=remove_channels(self._network.module, removals))
            self._known[counts] = self.goal.cost_of(pruned)
        return self._known[counts]


def _at_price(price: float, curves: Sequence[Curve], savings: Sequence[float]) -> tuple[int, ...]:
    """Return how many channels of each group go where cost has a price in damage."""
    worst = max((curve.damage[-1] for curve in curves), default=0.0) or 1.0
    chosen = []
    for curve, saving in zip(curves, savings, strict=True):
        pairs = zip(curve.counts, curve.damage, strict=True)
        chosen.append(curve.counts[int(np.argmin([d / worst - price * saving * n for n, d in pairs]))])
    return tuple(chosen)


def _give_back(
    counts: tuple[int, ...], curves: Sequence[Curve], savings: Sequence[float], costs: _Costs
) -> tuple[int, ...]:
    """Return the allocation with every step taken back that the budget has room for, the most useful ones first."""
    full: set[int] = set()
    while True:
        steps = {}
        for place, (curve, count) in enumerate(zip(curves, counts, strict=True)):
            now = curve.counts.index(count)
            if now and place not in full:
                undone = curve.damage[now] - curve.damage[now - 1]
                cost = savings[place] * (count - curve.counts[now - 1])
                steps[place] = undone / max(cost, 1e-12), curve.counts[now - 1]
        if not steps:
            return counts
        place = max(steps, key=lambda p: steps[p][0])
        less = (*counts[:place], steps[place][1], *counts[place + 1 :])
        if costs.of(less) <= costs.goal.most:
            counts = less
        else:
            full.add(place)
