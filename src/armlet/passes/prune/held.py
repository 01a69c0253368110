"""Groups that can't lose any channels: they have no more than must stay, or the network's own code holds their places.

A graph does not say where the sizes in it come from: `view(n, t, 4, 8)` may hold numbers or take them from a weight's
shape. So one channel of each group goes, by trial, and the smaller network's groups must be those of the whole one
without it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from armlet.analysis.graph import Traced, trace
from armlet.analysis.groups import ChannelGroup, ChannelGroups, FixedGroup, Member, channel_groups
from armlet.artifacts import InputSpec
from armlet.errors import UnsupportedOperator
from armlet.passes.prune.remove import remove_channels

_REASON = "the network's own code holds how many there are; it should take that from a weight's shape"
_TWO_GROUPS = (
    "they are the two groups of a convolution, which keeps two or more: with one it would be an ordinary one"
)


@dataclass(frozen=True, slots=True)
class _Trial:
    module: nn.Module
    inputs: tuple[InputSpec, ...]
    through_layer_norm: bool
    whole: tuple[ChannelGroup, ...]

    def held(self, groups: Sequence[ChannelGroup]) -> set[str]:
        """Return the names of those that can't lose a channel, by halves."""
        if not groups or self._follows(groups):
            return set()
        if len(groups) == 1:
            return {groups[0].name}
        half = len(groups) // 2
        return self.held(groups[:half]) | self.held(groups[half:])

    def _follows(self, groups: Sequence[ChannelGroup]) -> bool:
        """Whether the network without the first channel of each of these has the groups that it should have."""
        smaller = remove_channels(self.module, [(group, (0,)) for group in groups])
        logger = logging.getLogger("torch._subclasses.fake_tensor")
        disabled, logger.disabled = logger.disabled, True  # it reports what is tried here as an error
        try:
            traced = trace(smaller, self.inputs)
        except UnsupportedOperator:
            return False
        finally:
            logger.disabled = disabled
        found = {
            g.name: g for g in channel_groups(traced, through_layer_norm=self.through_layer_norm).prunable
        }
        lost = {group.name for group in groups}
        if found.keys() != {group.name for group in self.whole}:
            return False
        gone: dict[tuple[str, int], list[int]] = {}
        for member in (member for group in groups for member in group.members):
            gone.setdefault((member.tensor, member.dim), []).extend(member.indices[0])
        return all(_is_left(found[group.name], group, gone, group.name in lost) for group in self.whole)


def _is_left(
    found: ChannelGroup, group: ChannelGroup, gone: dict[tuple[str, int], list[int]], lost: bool
) -> bool:
    """Whether a group is what is left of another one."""
    if found.n_channels != group.n_channels - lost:
        return False
    if found.n_channels == 1:
        return True  # a single channel's places can't be told from others of that extent
    return found.members == tuple(_left(m, gone.get((m.tensor, m.dim), []), lost) for m in group.members)


def _left(member: Member, gone: Sequence[int], lost: bool) -> Member:
    """Return a member without its first channel if that is lost, its indices counted without those that are gone."""
    indices = tuple(
        tuple(index - sum(other < index for other in gone) for index in of_channel)
        for of_channel in member.indices[lost:]
    )
    return Member(member.tensor, member.dim, indices, member.reads)


def prunable_groups(
    module: nn.Module, inputs: tuple[InputSpec, ...], traced: Traced, *, through_layer_norm: bool = False
) -> ChannelGroups:
    """Return the channel groups of a network, those that can't lose any among the fixed ones.

    Args:
        module: the network.
        inputs: what it takes.
        traced: its graph.
        through_layer_norm: as for `channel_groups`.
    """
    found = channel_groups(traced, through_layer_norm=through_layer_norm)
    trial = _Trial(module, inputs, through_layer_norm, found.prunable)
    reasons = {g.name: _TWO_GROUPS for g in found.prunable if 1 < g.n_channels <= g.least}
    held = trial.held([g for g in found.prunable if g.n_channels > 1 and g.name not in reasons])
    reasons |= dict.fromkeys(held, _REASON)
    fixed = [FixedGroup(g.name, g.layers, reasons[g.name]) for g in found.prunable if g.name in reasons]
    return ChannelGroups(tuple(g for g in found.prunable if g.name not in reasons), (*found.fixed, *fixed))
