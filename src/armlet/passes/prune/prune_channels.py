"""Removes whole channels, units, hidden units and heads, with everything that depends on them, and trains what is left.

Limits: channels are found in the graph, so they can be removed only where `armlet.analysis.groups` can follow them;
what it can't follow is left whole and named in the notes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from armlet.analysis.graph import trace
from armlet.analysis.groups import ChannelGroup, ChannelGroups, channel_groups
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
from armlet.passes.prune.remove import remove_channels
from armlet.passes.prune.selection import channel_scores, select_by_layer, select_globally
from armlet.spec.passes import PruneChannels

_NORM_ORDER = {"l1": 1, "l2": 2}


@dataclass(frozen=True, slots=True)
class ChannelPruning:
    """Structured pruning by magnitude.

    Attributes:
        ratio: share of the channels of each group that goes, from 0 to below 1.
        importance: norm that ranks channels.
        scope: whether channels are ranked within their group or over all groups.
        round_to: groups keep a multiple of this many channels; small ones may so be left whole, and heads are not
            counted.
        through_layer_norm: whether channels that a layer normalisation takes together may go, too.
        exclude: patterns of layers whose groups are left whole.
        finetune: how the smaller network is trained, None for not at all.
    """

    ratio: float
    importance: Literal["l1", "l2"]
    scope: Literal["layer", "global"]
    round_to: int
    through_layer_norm: bool
    exclude: tuple[str, ...]
    finetune: Finetuning | None

    @property
    def never_raises(self) -> tuple[CostName, ...]:
        """Channels only go."""
        return ("macs", "parameters", "weight_bytes")

    def requires(self, network: Network, context: PassContext) -> tuple[str, ...]:
        """The network is float, and every pattern fits something."""
        problems = (*float_only(network, "prune_channels"), *unmatched(self.exclude, network.module))
        return problems or teaching_problems(self.finetune, network, context)

    def run(self, network: Network, context: PassContext) -> PassResult:
        """Rank, remove, train."""
        found = self._groups(network)
        groups = [g for g in found.prunable if not self._excluded(g)]
        notes = [f"{g.name} keeps its channels: {g.reason}" for g in found.fixed]
        notes += [f"{g.name} keeps its channels: excluded" for g in found.prunable if self._excluded(g)]
        removals = self._select(network, groups)
        if not any(channels for _, channels in removals):
            return PassResult(network, (*notes, "no channel was removed, so nothing was trained"))
        notes += [_note(group, len(channels)) for group, channels in removals]
        smaller = replace(network, module=remove_channels(network.module, removals))
        _check_runs(smaller)
        if self.finetune is None:
            return PassResult(smaller, tuple(notes))
        trained, history = finetune(smaller, self.finetune, context)
        return PassResult(trained, tuple(notes), history)

    def ensures(self, before: Network, after: Network) -> tuple[str, ...]:
        """Every group keeps at least one channel, and a multiple of `round_to` where it lost any."""
        was = {g.name: g.n_channels for g in self._groups(before).prunable}
        problems = []
        for group in self._groups(after).prunable:
            n = group.n_channels
            if group.name not in was or n > was[group.name]:
                problems.append(f"{group.name} has {n} channels, more than before")
            elif n != was[group.name] and n % self._multiple(group):
                problems.append(f"{group.name} has {n} channels, not a multiple of {self.round_to}")
        return tuple(problems)

    def _groups(self, network: Network) -> ChannelGroups:
        traced = trace(network.module, network.architecture.inputs)
        return channel_groups(traced, through_layer_norm=self.through_layer_norm)

    def _multiple(self, group: ChannelGroup) -> int:
        return 1 if group.unit == "heads" else self.round_to

    def _excluded(self, group: ChannelGroup) -> bool:
        return any(is_named(layer, self.exclude) for layer in group.layers)

    def _select(
        self, network: Network, groups: list[ChannelGroup]
    ) -> list[tuple[ChannelGroup, tuple[int, ...]]]:
        tensors = network.module.state_dict()
        scores = [channel_scores(group, tensors, _NORM_ORDER[self.importance]) for group in groups]
        select = select_by_layer if self.scope == "layer" else select_globally
        chosen = select(scores, self.ratio, [self._multiple(group) for group in groups])
        return list(zip(groups, chosen, strict=True))


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


def _note(group: ChannelGroup, n_removed: int) -> str:
    n = group.n_channels
    return (
        f"{group.name}: {n} -> {n - n_removed} {group.unit}"
        if n_removed
        else f"{group.name} keeps all {n} {group.unit}"
    )


@PASSES.register("prune_channels")
def build(options: PruneChannels) -> Pass:
    """Build the pass from its section of a recipe."""
    return ChannelPruning(
        ratio=options.ratio,
        importance=options.importance,
        scope=options.scope,
        round_to=options.round_to,
        through_layer_norm=options.through_layer_norm,
        exclude=options.exclude,
        finetune=finetuning_of(options.finetune),
    )
