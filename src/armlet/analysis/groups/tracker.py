"""The numbers of channels on their way through a graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch.fx import Node

from armlet.analysis.graph import Traced, layer_name
from armlet.analysis.groups.result import ChannelGroup, ChannelGroups, FixedGroup, Member, Unit

Ids = npt.NDArray[np.int64]
Rule = Callable[["Tracker", Node], bool]
"""Follows the numbers through one operator; False where it can't."""

_SPECIAL: tuple[Unit, ...] = ("heads", "hidden units", "channels", "units")


@dataclass(frozen=True, slots=True)
class Channels:
    """The tracked dimension of a value, with the number of the channel at each of its positions."""

    dim: int
    ids: Ids


@dataclass(slots=True)
class Tracker:
    """Walks one graph; channel numbers are joined in a union-find forest.

    Attributes:
        values: what is tracked of each node's value.
        results: the same for operators with several results.
        tied: the numbers along a dimension of a parameter.
        reading: those of these dimensions that are multiplied with the channels.
        producers: the numbers that a layer computes, by its name, and what they are.
        reasons: why a number is fixed.
        untouchable: why a parameter can't be sliced.
        heads: numbers that are heads of attention.
        grouped: numbers that are groups of a convolution.
    """

    traced: Traced
    through_layer_norm: bool = False
    parent: list[int] = field(default_factory=list)
    values: dict[Node, Channels] = field(default_factory=dict)
    results: dict[Node, tuple[Channels, ...]] = field(default_factory=dict)
    tied: dict[tuple[str, int], Ids] = field(default_factory=dict)
    reading: set[tuple[str, int]] = field(default_factory=set)
    producers: dict[str, tuple[Ids, Unit]] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)
    untouchable: dict[str, str] = field(default_factory=dict)
    heads: set[int] = field(default_factory=set)
    grouped: set[int] = field(default_factory=set)

    def new(self, n: int) -> Ids:
        """Return `n` new numbers."""
        start = len(self.parent)
        self.parent.extend(range(start, start + n))
        return np.arange(start, start + n)

    def find(self, number: int) -> int:
        """Return the number that stands for all that are joined with this one."""
        while self.parent[number] != number:
            self.parent[number] = self.parent[self.parent[number]]
            number = self.parent[number]
        return number

    def join(self, first: Ids, second: Ids) -> None:
        """Say that numbers at one position stay or go together."""
        for a, b in zip(first.tolist(), second.tolist(), strict=True):
            a, b = sorted((self.find(a), self.find(b)))
            self.parent[b] = a

    def join_all(self, ids: Ids) -> None:
        """Say that all of these stay or go together."""
        self.join(np.full(len(ids) - 1, ids[0]), ids[1:])

    def tie(self, tensor: str, dim: int, ids: Ids) -> None:
        """Say that index i along `dim` of a tensor belongs to channel ids[i]."""
        if (tensor, dim) in self.tied:
            self.join(self.tied[tensor, dim], ids)
        else:
            self.tied[tensor, dim] = ids

    def read(self, tensor: str, dim: int, ids: Ids) -> None:
        """Say that index i along `dim` of a tensor is multiplied with channel ids[i]."""
        self.tie(tensor, dim, ids)
        self.reading.add((tensor, dim))

    def fix(self, node: object, reason: str) -> None:
        """Say that the channels of a value can't be removed."""
        if isinstance(node, Node) and node in self.values:
            self.fix_ids(self.values[node].ids, reason)

    def fix_ids(self, ids: Ids, reason: str) -> None:
        """Say that these can't be removed."""
        for number in ids.tolist():
            self.reasons.setdefault(number, reason)

    def visit(self, node: Node, rules: Mapping[str, Rule]) -> None:
        """Follow the numbers through one operator, or fix those of all that goes in."""
        if isinstance(node.meta.get("val"), torch.SymInt | int):
            return  # a size of a value
        rule = rules.get(str(node.target))
        if rule is None or not rule(self, node):
            reason = f"they can't be followed through {layer_name(node)}"
            for source in node.all_input_nodes:
                self.fix(source, reason)
                if (name := self.traced.tensor_name(source)) is not None:
                    self.untouchable.setdefault(name, reason)

    def produce(self, layer: str, tensor: str, dim: int, n: int, unit: Unit) -> Ids:
        """Return the numbers that a layer computes: new ones, or those of its first run if it runs again.

        Args:
            layer: its name.
            tensor: its weight.
            dim: of the weight, that has them.
            n: how many there are.
            unit: what they are.
        """
        ids = self.tied.get((tensor, dim))
        if ids is None:
            ids = self.new(n)
            self.tie(tensor, dim, ids)
            self.producers[layer] = ids, unit
        return ids

    def numbers(self, node: Node, dim: int) -> Ids:
        """Return a value's numbers; those of one that is not tracked are new, and fixed."""
        if node not in self.values:
            self.values[node] = Channels(dim, self.new(int(node.meta["val"].shape[dim])))
            self.fix(node, f"they stand beside {layer_name(node)}, which is not tracked")
        return self.values[node].ids

    def groups(self) -> ChannelGroups:
        """Return what was found."""
        roots = {name: self._roots(ids) for name, (ids, _) in self.producers.items()}
        tied = {key: self._roots(ids) for key, ids in self.tied.items()}
        reasons = {
            i: self.untouchable[n]
            for (n, _), ids in tied.items()
            if n in self.untouchable
            for i in ids.tolist()
        }
        for number, reason in self.reasons.items():
            reasons.setdefault(self.find(number), reason)
        heads, grouped = ({self.find(i) for i in numbers} for numbers in (self.heads, self.grouped))
        sets = _connected(roots)
        channels_of = [
            list(dict.fromkeys(i for layer in layers for i in roots[layer].tolist())) for layers in sets
        ]
        members = _members(channels_of, tied, self.reading)
        prunable, fixed = [], []
        for layers, channels, found in zip(sets, channels_of, members, strict=True):
            if why := next((reasons[i] for i in channels if i in reasons), ""):
                fixed.append(FixedGroup(layers[0], layers, why))
                continue
            units = {self.producers[layer][1] for layer in layers} | (
                {"heads"} if heads & {*channels} else set()
            )
            unit = next(word for word in _SPECIAL if word in units)
            least = 1 if grouped.isdisjoint(channels) else 2
            prunable.append(ChannelGroup(layers[0], layers, len(channels), found, unit, least))
        return ChannelGroups(tuple(prunable), (*fixed, *self._unknown()))

    def _unknown(self) -> Iterator[FixedGroup]:
        """Give a group without channels for each module whose weights only operators that are not known use."""
        known = {name for name, _ in self.tied}
        state, found = self.traced.program.state_dict, dict[str, str]()
        for name, reason in self.untouchable.items():
            if name not in known and name in state and state[name].dim() > 1:
                found.setdefault(name.rpartition(".")[0] or name, reason)
        for layer, reason in found.items():
            yield FixedGroup(layer, (layer,), reason)

    def _roots(self, ids: Ids) -> Ids:
        return np.array([self.find(i) for i in ids.tolist()], np.int64)


def _members(
    channels_of: list[list[int]], tied: Mapping[tuple[str, int], Ids], reading: set[tuple[str, int]]
) -> list[tuple[Member, ...]]:
    """Return the members of each group, in the order of their names."""
    place = {i: (group, n) for group, channels in enumerate(channels_of) for n, i in enumerate(channels)}
    found: list[list[Member]] = [[] for _ in channels_of]
    for (tensor, dim), ids in sorted(tied.items()):
        indices: dict[int, list[list[int]]] = {}
        for index, number in enumerate(ids.tolist()):
            if number in place:
                group, n = place[number]
                if group not in indices:
                    indices[group] = [[] for _ in channels_of[group]]
                indices[group][n].append(index)
        for group, of_channels in indices.items():
            reads = (tensor, dim) in reading
            found[group].append(Member(tensor, dim, tuple(map(tuple, of_channels)), reads))
    return [tuple(group) for group in found]


def _connected(roots: Mapping[str, Ids]) -> list[tuple[str, ...]]:
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
