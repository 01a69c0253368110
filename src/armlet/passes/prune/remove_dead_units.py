"""Removes channels whose value never changes, and puts what they add into the biases behind them.

Rules, each of which must hold for a channel to go:
1. it can be removed at all (`armlet.analysis.groups`), and everything that reads it is a linear layer or a convolution;
2. at every place that reads it, it has the same value for all samples, pixels and tokens, bit for bit;
3. where a reader pads its input with zeros, or is transposed, that value is 0: elsewhere its share would differ at the
   border;
4. with `proof: weights`: the weights of all layers that compute it are zero, or a normalisation scales it by zero.

The result answers as before on the samples, and with rule 4 on every input, up to the rounding of shorter sums.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Node

from armlet.analysis.graph import Traced, arguments, aten, trace, value_name
from armlet.analysis.groups import ChannelGroup, Member, channel_groups
from armlet.data.splits import Samples
from armlet.models.network import Network
from armlet.passes.base import (
    PASSES,
    CostName,
    Pass,
    PassContext,
    PassResult,
    float_only,
    is_named,
    unmatched,
)
from armlet.passes.prune.held import prunable_groups
from armlet.passes.prune.remove import remove_channels
from armlet.spec.passes import RemoveDeadUnits

_READERS = (aten.linear.default, aten.conv2d.default, aten.conv2d.padding, aten.conv_transpose2d.input)
_BATCH = 256

Layer = nn.Linear | nn.Conv2d | nn.ConvTranspose2d
_KNOWN = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm1d, nn.BatchNorm2d)


@dataclass(frozen=True, slots=True)
class _Range:
    """The least and the greatest value of each position of a value's channels, float32 [C]."""

    least: Tensor
    greatest: Tensor


@dataclass(frozen=True, slots=True)
class _Dead:
    """Channels of a group that never change.

    Attributes:
        proven: those of them that change for no input.
    """

    group: ChannelGroup
    channels: tuple[int, ...]
    proven: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class DeadUnitRemoval:
    """Exact removal of channels without information.

    Attributes:
        proof: whether a value may also be known from the samples alone.
        n_samples: training samples that are looked at.
        exclude: patterns of layers whose groups are left whole.
    """

    proof: Literal["samples", "weights"]
    n_samples: int
    exclude: tuple[str, ...]

    @property
    def never_raises(self) -> tuple[CostName, ...]:
        """A bias that a reader gets is no longer than the column that it loses."""
        return ("macs", "parameters", "weight_bytes")

    def requires(self, network: Network, context: PassContext) -> tuple[str, ...]:
        """The network is float, and every pattern fits something."""
        return (*float_only(network, "remove_dead_units"), *unmatched(self.exclude, network.module))

    def run(self, network: Network, context: PassContext) -> PassResult:
        """Look at the samples, fold the constants, remove."""
        module, samples = network.module, context.splits.train.take(slice(self.n_samples))
        traced = trace(module, network.architecture.inputs)
        readers = _readers(traced)
        ranges = _ranges(traced, [node for nodes in readers.values() for node in nodes], samples)
        found, notes = [], []
        for group in prunable_groups(module, network.architecture.inputs, traced).prunable:
            if any(is_named(layer, self.exclude) for layer in group.layers):
                notes.append(f"{group.name} is left as it is: excluded")
                continue
            dead = self._dead(group, module, traced, ranges)
            if isinstance(dead, str):
                notes.append(f"{group.name} is not looked at: {dead}")
            elif dead.channels:
                found.append(dead)
                notes.append(_note(dead, len(samples)))
        if not found:
            return PassResult(network, (*notes, "no channel is without information"))
        for dead in found:
            _fold(dead, module, readers, ranges)
        # A bias that a reader got belongs to the groups of its own outputs, from which channels may go too.
        now = trace(module, network.architecture.inputs)
        groups = {group.name: group for group in channel_groups(now).prunable}
        smaller = remove_channels(module, [(groups[dead.group.name], dead.channels) for dead in found])
        return PassResult(replace(network, module=smaller), tuple(notes))

    def ensures(self, before: Network, after: Network) -> tuple[str, ...]:
        """Nothing but what the conformance of every pass asks."""
        return ()

    def _dead(
        self,
        group: ChannelGroup,
        module: nn.Module,
        traced: Traced,
        ranges: Mapping[str, _Range],
    ) -> _Dead | str:
        """Return the channels that never change, or why that can't be said."""
        owners = {member.tensor: _owner(member, module) for member in group.members}
        strange = [name for name, owner in owners.items() if not isinstance(owner, _KNOWN)]
        if strange:
            return f"{strange[0]} is of no linear layer, convolution or batch normalisation"
        reading = [member for member in group.members if _reads(member, owners[member.tensor])]
        readers = _readers(traced)
        if not reading or any(member.tensor not in readers for member in reading):
            return "what reads it is not known"
        constant = np.ones(group.n_channels, bool)
        for member in reading:
            for node in readers[member.tensor]:
                bounds = ranges[value_name(_input(node))]
                same = (bounds.least == bounds.greatest).numpy()
                if _differs_at_the_border(owners[member.tensor]):
                    same &= (bounds.least == 0).numpy()
                constant &= [bool(same[list(indices)].all()) for indices in member.indices]
        proven = _silenced(group, module, traced)
        if self.proof == "weights":
            constant &= proven
        missing = group.least - int((~constant).sum())
        constant[np.flatnonzero(constant)[: max(missing, 0)]] = False
        channels = tuple(np.flatnonzero(constant).tolist())
        return _Dead(group, channels, tuple(c for c in channels if proven[c]))


def _readers(traced: Traced) -> dict[str, list[Node]]:
    """Return the nodes that use each weight."""
    found: dict[str, list[Node]] = {}
    for node in traced.nodes:
        if node.target in _READERS and (name := traced.tensor_name(arguments(node)[1])) is not None:
            found.setdefault(name, []).append(node)
    return found


def _input(node: Node) -> Node:
    source = arguments(node)[0]
    if not isinstance(source, Node):
        raise TypeError(f"{node} reads no value")
    return source


def _ranges(traced: Traced, readers: list[Node], samples: Samples) -> dict[str, _Range]:
    """Return what each value that is read spans, by its name."""
    channel_dims = {
        value_name(_input(node)): -1 if node.target == aten.linear.default else 1 for node in readers
    }
    observed = traced.runnable(tuple(channel_dims))
    found: dict[str, _Range] = {}
    with torch.no_grad():
        for start in range(0, len(samples), _BATCH):
            batch = samples.take(slice(start, start + _BATCH))
            values = observed(*map(torch.from_numpy, batch.inputs))
            for (name, dim), value in zip(channel_dims.items(), values, strict=True):
                rows = value.movedim(dim, 0).flatten(1)
                least, greatest = rows.amin(dim=1), rows.amax(dim=1)
                if name in found:
                    least = torch.minimum(least, found[name].least)
                    greatest = torch.maximum(greatest, found[name].greatest)
                found[name] = _Range(least, greatest)
    return found


def _owner(member: Member, module: nn.Module) -> nn.Module:
    return module.get_submodule(member.tensor.rpartition(".")[0])


def _reads(member: Member, owner: nn.Module) -> bool:
    """Whether a member is the side of a weight that its layer's input meets."""
    is_weight = member.tensor.rpartition(".")[2] == "weight" and isinstance(owner, Layer)
    return is_weight and member.dim == (0 if isinstance(owner, nn.ConvTranspose2d) else 1)


def _differs_at_the_border(layer: nn.Module) -> bool:
    if isinstance(layer, nn.ConvTranspose2d):
        return True  # pixels at the border, and those between strides, meet fewer taps
    return isinstance(layer, nn.Conv2d) and layer.padding not in ((0, 0), "valid")


def _silenced(group: ChannelGroup, module: nn.Module, traced: Traced) -> np.ndarray:
    """Return which channels are the same for every input: each layer that computes them is silent there.

    A layer is silent where its weights are zero, or where nothing but a normalisation that scales by zero uses it.
    """
    silent = np.ones(group.n_channels, bool)
    for layer in group.layers:
        name = f"{layer}.weight"
        member = next(
            m for m in group.members if m.tensor == name and not _reads(m, module.get_submodule(layer))
        )
        weight = module.get_parameter(name).detach().movedim(member.dim, 0).flatten(1)
        quiet = (weight == 0).all(dim=1)
        for scale in _scales_behind(name, module, traced):
            quiet |= scale == 0
        silent &= [bool(quiet[list(indices)].all()) for indices in member.indices]
    return silent


def _scales_behind(name: str, module: nn.Module, traced: Traced) -> list[Tensor]:
    """Return the scale of the normalisation that alone uses a layer's value, none where something else does."""
    nodes = [n for n in traced.nodes if len(arguments(n)) > 1 and traced.tensor_name(arguments(n)[1]) == name]
    users = [user for node in nodes for user in node.users]
    if len(nodes) != 1 or len(users) != 1 or users[0].target != aten.batch_norm.default:
        return []
    scale = traced.tensor_name(arguments(users[0])[1])
    return [] if scale is None else [module.get_parameter(scale).detach()]


def _fold(
    dead: _Dead, module: nn.Module, readers: Mapping[str, list[Node]], ranges: Mapping[str, _Range]
) -> None:
    """Add what the channels add to the biases of their readers."""
    for member in dead.group.members:
        layer = _owner(member, module)
        if not _reads(member, layer) or not isinstance(layer, Layer) or member.tensor not in readers:
            continue
        values = ranges[value_name(_input(readers[member.tensor][0]))].least.double()
        columns = [index for channel in dead.channels for index in member.indices[channel]]
        if not values[columns].any():
            continue
        weight = layer.weight.detach().double()
        taps = weight.flatten(2).sum(dim=2) if weight.dim() == 4 else weight
        added = taps[:, columns] @ values[columns]
        before = torch.zeros_like(added) if layer.bias is None else layer.bias.detach().double()
        layer.bias = nn.Parameter((before + added).to(layer.weight.dtype))


def _note(dead: _Dead, n_samples: int) -> str:
    n, sure = len(dead.channels), len(dead.proven)
    return (
        f"{dead.group.name}: {n} of {dead.group.n_channels} channels removed, the same in all {n_samples} samples;"
        f" {sure} of them for every input, as their weights or scales are zero"
    )


@PASSES.register("remove_dead_units")
def build(options: RemoveDeadUnits) -> Pass:
    """Build the pass from its section of a recipe."""
    return DeadUnitRemoval(options.proof, options.calibration_samples, options.exclude)
