"""Channel groups: which slices of which parameters can only be removed together.

The graph, not the kinds of the modules, says what depends on what. Every value carries one tracked dimension whose
positions have channel numbers; each operator maps the numbers of its inputs to those of its output, and positions
that must stay or go together have their numbers joined:

1. convolution, linear: the output has new numbers, tied to dimension 0 of the weight and to the bias; the input's
   numbers are tied to dimension 1 of the weight;
2. grouped convolution: it loses whole groups, so all inputs and outputs of a group are joined; in a depthwise
   convolution that is one channel each;
3. batch normalisation: its parameters and statistics are tied to the input's numbers;
4. elementwise with two operands: numbers at one position are joined; a parameter as operand is tied to them;
5. concatenation along the tracked dimension puts numbers one after the other, along another one joins them;
6. flatten and reshape repeat a channel's number once for each of its values, so that a linear layer behind them is tied
   to blocks of columns.

Numbers that reach the network's input or output, or an operator that is not understood, are fixed.
Source: dependency groups, Fang et al. 2023, "DepGraph: Towards Any Structural Pruning".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch.fx import Node

from armlet.analysis.graph import Traced, arguments, aten, layer_name, shape_of

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Member:
    """One dimension of one parameter or buffer.

    Attributes:
        tensor: its name in the module.
        dim: the dimension that is sliced.
        indices: for each channel of the group, the indices along `dim` that belong to it, maybe none.
    """

    tensor: str
    dim: int
    indices: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class ChannelGroup:
    """Channels that are ranked against each other; each is removed from all members or from none.

    Attributes:
        name: the first layer that computes the channels.
        layers: all layers that compute them.
        n_channels: how many there are.
    """

    name: str
    layers: tuple[str, ...]
    n_channels: int
    members: tuple[Member, ...]


@dataclass(frozen=True, slots=True)
class FixedGroup:
    """Channels that can't be removed, and why."""

    name: str
    layers: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class ChannelGroups:
    """All groups of a network, in graph order."""

    prunable: tuple[ChannelGroup, ...]
    fixed: tuple[FixedGroup, ...]


def channel_groups(traced: Traced) -> ChannelGroups:
    """Return the channel groups of a network."""
    tracker = _Tracker(traced)
    for node in traced.nodes:
        tracker.visit(node)
    for node in traced.outputs:
        tracker.fix(node, "they are the network's output")
    return tracker.groups()


@dataclass(frozen=True, slots=True)
class _Channels:
    """The tracked dimension of a value, with the number of the channel at each of its positions."""

    dim: int
    ids: Ids


@dataclass(slots=True)
class _Tracker:
    """Walks one graph; channel numbers are joined in a union-find forest."""

    traced: Traced
    parent: list[int] = field(default_factory=list)
    values: dict[Node, _Channels] = field(default_factory=dict)
    tied: dict[tuple[str, int], Ids] = field(default_factory=dict)
    producers: dict[str, Ids] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)
    untouchable: dict[str, str] = field(default_factory=dict)

    # Numbers

    def new(self, n: int) -> Ids:
        start = len(self.parent)
        self.parent.extend(range(start, start + n))
        return np.arange(start, start + n)

    def find(self, number: int) -> int:
        while self.parent[number] != number:
            self.parent[number] = self.parent[self.parent[number]]
            number = self.parent[number]
        return number

    def join(self, first: Ids, second: Ids) -> None:
        for a, b in zip(first.tolist(), second.tolist(), strict=True):
            a, b = sorted((self.find(a), self.find(b)))
            self.parent[b] = a

    def tie(self, tensor: str, dim: int, ids: Ids) -> None:
        """Say that index i along `dim` of a tensor belongs to channel ids[i]."""
        if (tensor, dim) in self.tied:
            self.join(self.tied[tensor, dim], ids)
        else:
            self.tied[tensor, dim] = ids

    def fix(self, node: object, reason: str) -> None:
        """Say that the channels of a value can't be removed."""
        if isinstance(node, Node) and node in self.values:
            for number in self.values[node].ids.tolist():
                self.reasons.setdefault(number, reason)

    # Operators

    def visit(self, node: Node) -> None:
        if isinstance(node.meta.get("val"), torch.SymInt | int):
            return  # a size of a value
        rule = _RULES.get(str(node.target))
        if rule is None or not rule(self, node):
            reason = f"they can't be followed through {layer_name(node)}"
            for source in node.all_input_nodes:
                self.fix(source, reason)
                if (name := self.traced.tensor_name(source)) is not None:
                    self.untouchable.setdefault(name, reason)

    def keep(self, node: Node) -> bool:
        """An operator that leaves every position where it is."""
        if (channels := self.values.get(arguments(node)[0])) is not None:
            self.values[node] = channels
        return True

    def conv(self, node: Node) -> bool:
        source, weight = arguments(node)[0], self.traced.tensor_name(arguments(node)[1])
        groups = arguments(node)[6] if len(arguments(node)) > 6 else 1
        if weight is None:
            return False
        n_outputs, n_group_inputs = (int(n) for n in shape_of(arguments(node)[1])[:2])
        outputs = self.produce(node, weight, 1, n_outputs)
        channels = self.values.get(source)
        if channels is not None and channels.dim != 1:
            return False
        if groups == 1:
            if channels is not None:
                self.tie(weight, 1, channels.ids)
            return True
        # Rule 2. Inputs that are not tracked can't be removed, so neither can the outputs.
        inputs = self.new(groups * n_group_inputs) if channels is None else channels.ids
        for in_group, out_group in zip(np.split(inputs, groups), np.split(outputs, groups), strict=True):
            self.join(np.full(len(in_group) - 1, in_group[0]), in_group[1:])
            self.join(np.full(len(out_group), in_group[0]), out_group)
        if channels is None:
            self.fix(node, f"they come from {layer_name(source)}, which is not tracked")
        return True

    def conv_transpose(self, node: Node) -> bool:
        """Rule 1, with the weight's dimensions 0 and 1 exchanged."""
        source, weight = arguments(node)[0], self.traced.tensor_name(arguments(node)[1])
        groups = arguments(node)[6] if len(arguments(node)) > 6 else 1
        if weight is None or groups != 1:
            return False
        self.produce(node, weight, 1, int(shape_of(arguments(node)[1])[1]), out_dim=1)
        channels = self.values.get(source)
        if channels is None:
            return True
        if channels.dim != 1:
            return False
        self.tie(weight, 0, channels.ids)
        return True

    def linear(self, node: Node) -> bool:
        source, weight = arguments(node)[0], self.traced.tensor_name(arguments(node)[1])
        if weight is None:
            return False
        last = len(shape_of(node)) - 1
        self.produce(node, weight, last, int(shape_of(arguments(node)[1])[0]))
        channels = self.values.get(source)
        if channels is None:
            return True
        if channels.dim != last:
            return False
        self.tie(weight, 1, channels.ids)
        return True

    def produce(self, node: Node, weight: str, dim: int, n: int, out_dim: int = 0) -> Ids:
        """Give a layer's output new numbers; a layer that runs twice keeps those of its first run."""
        ids = self.tied.get((weight, out_dim))
        if ids is None:
            ids = self.new(n)
            self.tie(weight, out_dim, ids)
            self.producers[weight.rpartition(".")[0]] = ids
            bias = self.traced.tensor_name(arguments(node)[2]) if len(arguments(node)) > 2 else None
            if bias is not None:
                self.tie(bias, 0, ids)
        self.values[node] = _Channels(dim, ids)
        return ids

    def batch_norm(self, node: Node) -> bool:
        channels = self.values.get(arguments(node)[0])
        if channels is None:
            return True
        if channels.dim != 1:
            return False
        for tensor in arguments(node)[1:5]:
            if (name := self.traced.tensor_name(tensor)) is not None:
                self.tie(name, 0, channels.ids)
        return self.keep(node)

    def elementwise(self, node: Node) -> bool:
        """Rule 4; dimensions are aligned from the right, as broadcasting does."""
        rank = len(shape_of(node))
        operands = [
            n for n in arguments(node)[:2] if isinstance(n, Node) and hasattr(n.meta.get("val"), "shape")
        ]
        tracked = [n for n in operands if n in self.values]
        if not tracked:
            return True
        from_right = {self.values[n].dim - len(shape_of(n)) for n in tracked}
        first = self.values[tracked[0]]
        if len(from_right) > 1 or any(len(self.values[n].ids) != len(first.ids) for n in tracked):
            return False
        (position,) = from_right
        for operand in operands:
            shape = shape_of(operand)
            if operand in self.values:
                self.join(first.ids, self.values[operand].ids)
            elif len(shape) >= -position and shape[position] != 1:
                name = self.traced.tensor_name(operand)
                if name is None:
                    return False
                self.tie(name, len(shape) + position, first.ids)
        self.values[node] = _Channels(rank + position, first.ids)
        return True

    def cat(self, node: Node) -> bool:
        sources = arguments(node)[0]
        rank = len(shape_of(node))
        dim = (arguments(node)[1] if len(arguments(node)) > 1 else 0) % rank
        dims = {self.values[n].dim for n in sources if n in self.values}
        if not dims:
            return True
        if len(dims) > 1:
            return False
        (tracked,) = dims
        parts = [self.numbers(n, tracked) for n in sources]
        if dim == tracked:
            self.values[node] = _Channels(dim, np.concatenate(parts))
            return True
        for part in parts[1:]:
            self.join(parts[0], part)
        self.values[node] = _Channels(tracked, parts[0])
        return True

    def numbers(self, node: Node, dim: int) -> Ids:
        """Return a value's numbers; those of one that is not tracked are new, and fixed."""
        if node not in self.values:
            self.values[node] = _Channels(dim, self.new(int(shape_of(node)[dim])))
            self.fix(node, f"they stand beside {layer_name(node)}, which is not tracked")
        return self.values[node].ids

    def pool(self, node: Node) -> bool:
        """Pooling moves within the last two dimensions."""
        channels = self.values.get(arguments(node)[0])
        return channels is None or (channels.dim < len(shape_of(node)) - 2 and self.keep(node))

    def mean(self, node: Node) -> bool:
        channels = self.values.get(arguments(node)[0])
        if channels is None:
            return True
        rank = len(shape_of(arguments(node)[0]))
        over = {d % rank for d in arguments(node)[1] or range(rank)}
        if channels.dim in over:
            return False
        keeps = arguments(node)[2] if len(arguments(node)) > 2 else False
        dim = channels.dim if keeps else channels.dim - sum(d < channels.dim for d in over)
        self.values[node] = _Channels(dim, channels.ids)
        return True

    def permute(self, node: Node) -> bool:
        channels = self.values.get(arguments(node)[0])
        if channels is None:
            return True
        rank = len(shape_of(node))
        if node.target is aten.transpose.int:
            order = list(range(rank))
            a, b = arguments(node)[1], arguments(node)[2]
            order[a], order[b] = order[b], order[a]
        else:
            order = [d % rank for d in arguments(node)[1]]
        self.values[node] = _Channels(order.index(channels.dim), channels.ids)
        return True

    def reshape(self, node: Node) -> bool:
        """Rule 6: find the output dimension that the tracked one went into, whole."""
        channels = self.values.get(arguments(node)[0])
        if channels is None:
            return True
        before, after = list(shape_of(arguments(node)[0])), list(shape_of(node))
        if before[0] != after[0] or channels.dim == 0:
            return False
        spread = np.zeros([int(n) for n in before[1:]], np.int64)
        spread += np.expand_dims(channels.ids, tuple(range(1, len(before) - channels.dim)))
        moved = spread.reshape([int(n) for n in after[1:]])
        for dim in range(moved.ndim):
            lines = np.moveaxis(moved, dim, 0).reshape(moved.shape[dim], -1)
            if (lines == lines[:, :1]).all():
                self.values[node] = _Channels(dim + 1, lines[:, 0])
                return True
        return False

    # Result

    def groups(self) -> ChannelGroups:
        roots = {name: np.array([self.find(i) for i in ids.tolist()]) for name, ids in self.producers.items()}
        tied = {key: np.array([self.find(i) for i in ids.tolist()]) for key, ids in self.tied.items()}
        reasons = {
            i: self.untouchable[n] for (n, _), ids in tied.items() if n in self.untouchable for i in ids
        }
        for number, reason in self.reasons.items():
            reasons.setdefault(self.find(number), reason)
        prunable, fixed = [], []
        for layers in _connected(roots):
            channels = list(dict.fromkeys(i for layer in layers for i in roots[layer].tolist()))
            if why := next((reasons[i] for i in channels if i in reasons), ""):
                fixed.append(FixedGroup(layers[0], layers, why))
                continue
            members = tuple(
                Member(tensor, dim, tuple(tuple(np.flatnonzero(ids == i).tolist()) for i in channels))
                for (tensor, dim), ids in sorted(tied.items())
                if not set(channels).isdisjoint(ids.tolist())
            )
            prunable.append(ChannelGroup(layers[0], layers, len(channels), members))
        return ChannelGroups(tuple(prunable), tuple(fixed))


def _connected(roots: dict[str, Ids]) -> list[tuple[str, ...]]:
    """Return the layers in sets that compute channels in common, each in graph order."""
    sets: list[tuple[set[int], tuple[str, ...]]] = []
    for layer, ids in roots.items():
        numbers: set[int] = set(ids.tolist())
        layers: tuple[str, ...] = (layer,)
        for other in [s for s in sets if not numbers.isdisjoint(s[0])]:
            sets.remove(other)
            numbers, layers = numbers | other[0], (*other[1], *layers)
        sets.append((numbers, layers))
    order = {layer: position for position, layer in enumerate(roots)}
    found = [tuple(sorted(layers, key=order.__getitem__)) for _, layers in sets]
    return sorted(found, key=lambda layers: order[layers[0]])


_RULES: dict[str, Callable[[_Tracker, Node], bool]] = {
    f"aten.{operator}": rule
    for rule, operators in (
        (_Tracker.conv, "conv1d.default conv2d.default conv2d.padding"),
        (_Tracker.conv_transpose, "conv_transpose2d.input"),
        (_Tracker.linear, "linear.default"),
        (_Tracker.batch_norm, "batch_norm.default"),
        (
            _Tracker.elementwise,
            "add.Tensor add_.Tensor sub.Tensor mul.Tensor mul_.Tensor div.Tensor maximum.default minimum.default",
        ),
        (_Tracker.cat, "cat.default"),
        (_Tracker.pool, "max_pool2d.default avg_pool2d.default adaptive_avg_pool2d.default"),
        (_Tracker.mean, "mean.dim"),
        (_Tracker.permute, "permute.default transpose.int"),
        (
            _Tracker.reshape,
            "flatten.using_ints view.default reshape.default squeeze.dim squeeze.dims unsqueeze.default",
        ),
        (
            _Tracker.keep,
            "relu.default relu_.default relu6.default hardtanh.default hardtanh_.default clamp.default "
            "leaky_relu.default leaky_relu_.default hardswish.default hardswish_.default silu.default silu_.default "
            "gelu.default tanh.default sigmoid.default contiguous.default clone.default",
        ),
    )
    for operator in operators.split()
}
