"""Takes channels out of a network: every tensor that they have a part in gets smaller."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import nn

from armlet.analysis.groups import ChannelGroup
from armlet.models.network import fit_to_shapes


def remove_channels(module: nn.Module, removals: Iterable[tuple[ChannelGroup, tuple[int, ...]]]) -> nn.Module:
    """Return a copy of a module without some channels.

    Args:
        module: is not changed.
        removals: for each group the numbers of the channels that go.

    Raises:
        UsageError: a layer is of a kind that can't be resized.
    """
    gone: dict[tuple[str, int], set[int]] = {}
    for group, channels in removals:
        for member in group.members:
            dropped = gone.setdefault((member.tensor, member.dim), set())
            dropped.update(index for channel in channels for index in member.indices[channel])
    for follower, leader in _shaped_alike(module):
        for name, dim in list(gone):
            if name.startswith(f"{leader}."):
                gone[follower + name.removeprefix(leader), dim] = gone[name, dim]
    tensors = {name: value.detach().clone() for name, value in module.state_dict().items()}
    for (name, dim), dropped in gone.items():
        kept = [index for index in range(tensors[name].shape[dim]) if index not in dropped]
        tensors[name] = tensors[name].index_select(dim, torch.tensor(kept, dtype=torch.int64)).contiguous()
    smaller = copy.deepcopy(module)
    fit_to_shapes(smaller, tensors)
    return smaller.eval()


def _shaped_alike(module: nn.Module) -> list[tuple[str, str]]:
    """Return layers that work in training only, and those whose shape they share, by full name."""
    return [
        (f"{name}.{follower}".lstrip("."), f"{name}.{leader}".lstrip("."))
        for name, layer in module.named_modules()
        for follower, leader in getattr(layer, "shaped_alike", {}).items()
    ]
