"""Removes whole channels, units, hidden units and heads, with everything that depends on them, and trains what is left.

Limits: channels are found in the graph, so they can be removed only where `armlet.analysis.groups` can follow them;
what it can't follow is left whole and named in the notes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Literal

import numpy as np

from armlet.analysis.graph import trace
from armlet.analysis.groups import ChannelGroup, ChannelGroups, channel_groups
from armlet.artifacts import Epoch
from armlet.errors import UnsupportedOperator
from armlet.models.network import Network
from armlet.passes.base import (
    PASSES,
    CostName,
    Pass,
    PassContext,
    PassResult,
    PreconditionFailed,
    float_only,
    is_named,
    unmatched,
)
from armlet.passes.finetune import Finetuning, finetune, finetuning_of, teaching_problems
from armlet.passes.prune.allocation import Goal, Ranked, allocate, sensitivity
from armlet.passes.prune.goals import goal_of
from armlet.passes.prune.held import prunable_groups
from armlet.passes.prune.importance import Evidence, importance, magnitude
from armlet.passes.prune.remove import remove_channels
from armlet.passes.prune.selection import select_by_layer, select_globally
from armlet.spec.passes import PruneChannels
from armlet.spec.passes.prune import GOALS, GoalName
from armlet.spec.widths import multiple_of
from armlet.train import GroupLasso

_STREAM = 6  # each purpose of a seed draws from a stream of its own

Removals = list[tuple[ChannelGroup, tuple[int, ...]]]


@dataclass(frozen=True, slots=True)
class ChannelPruning:
    """Structured pruning.

    Attributes:
        goal: what says how much goes.
        value: the share of each group's channels that goes, for a ratio from 0 to below 1; else what may be left, see
            `goal_of`.
        target: of a latency, and of the vectors that `round_to` comes from.
        criterion: what ranks channels, a name of `importance.CRITERIA`.
        n_samples: training samples that are looked at.
        scope: whether channels are ranked within their group or over all groups, at a ratio.
        steps: rounds of removing and training.
        round_to: groups keep a multiple of this many channels; small ones may so be left whole, and heads are not
            counted.
        through_layer_norm: whether channels that a layer normalisation takes together may go, too.
        exclude: patterns of layers whose groups are left whole.
        shrink: how the network is trained with group lasso before any channel goes, None for not at all.
        strength: of group lasso.
        finetune: how the smaller network is trained, None for not at all.
    """

    goal: GoalName
    value: float
    target: str | None
    criterion: str
    n_samples: int
    scope: Literal["layer", "global"]
    steps: int
    round_to: int
    through_layer_norm: bool
    exclude: tuple[str, ...]
    shrink: Finetuning | None
    strength: float
    finetune: Finetuning | None

    @property
    def never_raises(self) -> tuple[CostName, ...]:
        """Channels only go."""
        return ("macs", "parameters", "weight_bytes")

    def requires(self, network: Network, context: PassContext) -> tuple[str, ...]:
        """The network is float, and every pattern fits something."""
        problems = (*float_only(network, "prune_channels"), *unmatched(self.exclude, network.module))
        if problems:
            return problems
        taught = (teaching_problems(options, network, context) for options in (self.shrink, self.finetune))
        return tuple(dict.fromkeys(chain.from_iterable(taught)))

    def run(self, network: Network, context: PassContext) -> PassResult:
        """Rank, remove, train; in several rounds if asked for."""
        inputs = network.architecture.inputs
        found = prunable_groups(
            network.module, inputs, trace(network.module, inputs), through_layer_norm=self.through_layer_norm
        )
        notes = [f"{g.name} keeps its channels: {g.reason}" for g in found.fixed]
        notes += [f"{g.name} keeps its {g.unit}: excluded" for g in found.prunable if self._excluded(g)]
        if self.round_to > 1:
            notes.append(f"what is left is a multiple of {self.round_to} where possible")
        before = {g.name: g for g in found.prunable if not self._excluded(g)}
        goal = None
        if self.goal != "ratio":
            goal = goal_of(self.goal, self.value, self.target, network, context)
        whole = goal.cost_of(network) if goal else 0.0
        shrunk, history, trained = network, list[Epoch](), 0
        if self.shrink is not None:
            part = replace(context, work=context.work / "group_lasso")
            lasso = GroupLasso(tuple(before.values()), self.strength)
            shrunk, epochs = finetune(network, self.shrink, part, lasso=lasso)
            history += epochs
            notes.append(_zeros(shrunk, lasso.groups))
        smaller = shrunk
        for step in range(1, self.steps + 1):
            part = replace(context, work=context.work / f"step{step}") if self.steps > 1 else context
            removals = self._select(smaller, part, before, step, self._goal_at(step, goal, whole))
            removes = any(channels for _, channels in removals)
            if removes:
                smaller = replace(smaller, module=remove_channels(smaller.module, removals))
                _check_runs(smaller)
            # What a round that removes nothing would train, a later one does.
            if removes or (step == self.steps and smaller is not shrunk):
                smaller, epochs = self._trained(smaller, part, before, (trained, step))
                history += epochs
                trained = step
        if smaller is shrunk:
            return PassResult(shrunk, (*notes, "no channel was removed"), _numbered(history))
        after = {g.name: g.n_channels for g in self._groups(smaller).prunable}
        notes += [_note(group, after[name]) for name, group in before.items()]
        if goal is not None:
            notes.append(f"{goal.name}: {goal.text(whole)} -> {goal.text(goal.cost_of(smaller))}")
        return PassResult(smaller, tuple(notes), _numbered(history))

    def ensures(self, before: Network, after: Network) -> tuple[str, ...]:
        """Every group keeps at least one channel, and a multiple of `round_to` where it lost any."""
        was = {g.name: g.n_channels for g in self._groups(before).prunable}
        problems = []
        for group in self._groups(after).prunable:
            n = group.n_channels
            if group.name not in was or n > was[group.name]:
                problems.append(f"{group.name} has {n} {group.unit}, more than before")
            elif n != was[group.name] and n % self._multiple(group):
                problems.append(f"{group.name} has {n} {group.unit}, not a multiple of {self.round_to}")
        return tuple(problems)

    def _groups(self, network: Network) -> ChannelGroups:
        traced = trace(network.module, network.architecture.inputs)
        return channel_groups(traced, through_layer_norm=self.through_layer_norm)

    def _open(self, network: Network, whole: Mapping[str, ChannelGroup]) -> list[ChannelGroup]:
        """Return the groups that may lose channels, as they are now; `whole` are those before the first round."""
        return [g for g in self._groups(network).prunable if g.name in whole]

    def _multiple(self, group: ChannelGroup) -> int:
        return 1 if group.unit == "heads" else self.round_to

    def _excluded(self, group: ChannelGroup) -> bool:
        return any(is_named(layer, self.exclude) for layer in group.layers)

    def _goal_at(self, step: int, goal: Goal | None, whole: float) -> Goal | None:
        """Return the budget after a round: each takes the same share of what the one before it left."""
        if goal is None or whole <= goal.most:
            return goal
        return replace(goal, most=whole * (goal.most / whole) ** (step / self.steps))

    def _select(
        self,
        network: Network,
        context: PassContext,
        whole: Mapping[str, ChannelGroup],
        step: int,
        goal: Goal | None,
    ) -> Removals:
        groups = self._open(network, whole)
        train, task = context.splits.train, context.splits.task.kind
        chosen = np.random.default_rng((context.seed, _STREAM)).permutation(len(train))[: self.n_samples]
        samples = train.take(np.sort(chosen))
        scores = importance(groups, self.criterion, Evidence(network, samples, task, context.seed))
        multiples = [self._multiple(group) for group in groups]
        if goal is None:
            # Of the whole groups, so that what rounding leaves in one round goes in the next.
            ratio = 1 - (1 - self.value) ** (step / self.steps)
            select = select_by_layer if self.scope == "layer" else select_globally
            sizes = [whole[group.name].n_channels for group in groups]
            least = [group.least for group in groups]
            return list(zip(groups, select(scores, ratio, multiples, sizes, least), strict=True))
        # A stable sort: of equal channels the first go, on every machine.
        ranked = [
            Ranked(group, tuple(np.argsort(score, kind="stable").tolist()), multiple)
            for group, score, multiple in zip(groups, scores, multiples, strict=True)
        ]
        curves = sensitivity(network, ranked, samples, task, context.progress)
        counts = allocate(network, ranked, curves, goal, context.progress)
        return [(r.group, tuple(sorted(r.order[:count]))) for r, count in zip(ranked, counts, strict=True)]

    def _trained(
        self,
        network: Network,
        context: PassContext,
        whole: Mapping[str, ChannelGroup],
        rounds: tuple[int, int],
    ) -> tuple[Network, tuple[Epoch, ...]]:
        """Train for the epochs of the rounds behind the first of two, up to the second."""
        after, step = rounds
        if self.finetune is None:
            return network, ()
        train = self.finetune.train
        epochs = train.epochs * step // self.steps - train.epochs * after // self.steps
        options = replace(self.finetune, train=replace(train, epochs=epochs))
        lasso = None
        if self.shrink is not None and step < self.steps:
            lasso = GroupLasso(tuple(self._open(network, whole)), self.strength)
        return finetune(network, options, context, lasso=lasso)


def _numbered(history: list[Epoch]) -> tuple[Epoch, ...]:
    """Return the epochs of all rounds, counted through."""
    return tuple(replace(epoch, epoch=number) for number, epoch in enumerate(history, 1))


def _check_runs(network: Network) -> None:
    """Refuse a network whose own code holds a size that pruning changed.

    Raises:
        PreconditionFailed: says where it stumbles.
    """
    try:
        trace(network.module, network.architecture.inputs)
    except UnsupportedOperator as error:
        raise PreconditionFailed(
            f"prune_channels: the network's code holds a size that pruning changes, so that the pruned one can't run: "
            f"{error}; compute the size from a weight's shape, or exclude the layer"
        ) from error


def _zeros(network: Network, groups: Sequence[ChannelGroup]) -> str:
    scores = magnitude(groups, network.module.state_dict(), 2)
    n_zero, n_channels = sum(int((s == 0).sum()) for s in scores), sum(map(len, scores))
    return f"group lasso: {n_zero} of {n_channels} channels shrank to zero"


def _note(group: ChannelGroup, left: int) -> str:
    n = group.n_channels
    return (
        f"{group.name}: {n} -> {left} {group.unit}"
        if left < n
        else f"{group.name} keeps all {n} {group.unit}"
    )


@PASSES.register("prune_channels")
def build(options: PruneChannels) -> Pass:
    """Build the pass from its section of a recipe; vectors are those of float32 unless the recipe has settled them."""
    lasso = options.group_lasso
    goal, value = next((name, getattr(options, name)) for name in GOALS if getattr(options, name) is not None)
    return ChannelPruning(
        goal=goal,
        value=value,
        target=options.target,
        criterion=options.importance,
        n_samples=options.samples,
        scope=options.scope,
        steps=options.steps,
        round_to=multiple_of(options),
        through_layer_norm=options.through_layer_norm,
        exclude=options.exclude,
        shrink=finetuning_of(lasso),
        strength=0.0 if lasso is None else lasso.strength,
        finetune=finetuning_of(options.finetune),
    )
