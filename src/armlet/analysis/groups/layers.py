"""Rules of operators with weights: each says which slices of them belong to which channel."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch.fx import Node

from armlet.analysis.graph import arguments, shape_of
from armlet.analysis.groups.result import Unit
from armlet.analysis.groups.tracker import Channels, Ids, Tracker

_PROJECTION = "projection"
_GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


def conv(tracker: Tracker, node: Node) -> bool:
    """Rules 1 and 2."""
    source, weight = arguments(node)[0], tracker.traced.tensor_name(arguments(node)[1])
    groups = _argument(node, 6, 1)
    if weight is None:
        return False
    n_outputs, n_group_inputs = (int(n) for n in shape_of(arguments(node)[1])[:2])
    outputs = _produce(tracker, node, weight, 1, n_outputs, "channels")
    channels = tracker.values.get(source)
    if channels is not None and channels.dim != 1:
        return False
    if groups == 1:
        if channels is not None:
            tracker.read(weight, 1, channels.ids)
        return True
    _grouped(tracker, node, (groups * n_group_inputs, groups), outputs)
    return True


def conv_transpose(tracker: Tracker, node: Node) -> bool:
    """Rules 1 and 2, with the weight's dimensions 0 and 1 exchanged."""
    source, weight = arguments(node)[0], tracker.traced.tensor_name(arguments(node)[1])
    groups = _argument(node, 6, 1)
    if weight is None:
        return False
    n_inputs, n_group_outputs = (int(n) for n in shape_of(arguments(node)[1])[:2])
    channels = tracker.values.get(source)
    if channels is not None and channels.dim != 1:
        return False
    if groups == 1:
        _produce(tracker, node, weight, 1, n_group_outputs, "channels", out_dim=1)
        if channels is not None:
            tracker.read(weight, 0, channels.ids)
        return True
    # Its outputs are a dimension of the bias only; the weight loses whole groups of inputs.
    outputs = tracker.new(groups * n_group_outputs)
    tracker.producers[layer_of(weight)] = outputs, "channels"
    _tie_bias(tracker, node, outputs)
    tracker.values[node] = Channels(1, outputs)
    inputs = _grouped(tracker, node, (n_inputs, groups), outputs)
    tracker.tie(weight, 0, inputs)
    return True


def _grouped(tracker: Tracker, node: Node, extent: tuple[int, int], outputs: Ids) -> Ids:
    """Rule 2: join the inputs and outputs of each group, and return the inputs; extent is (inputs, groups)."""
    source, (n_inputs, groups) = arguments(node)[0], extent
    channels = tracker.values.get(source)
    inputs = tracker.new(n_inputs) if channels is None else channels.ids
    for in_group, out_group in zip(np.split(inputs, groups), np.split(outputs, groups), strict=True):
        tracker.join_all(in_group)
        tracker.join(np.full(len(out_group), in_group[0]), out_group)
    tracker.grouped.update(inputs.tolist())
    if channels is None:  # inputs that are not tracked can't be removed, so neither can the outputs
        tracker.fix(node, f"they come from {source.name}, which is not tracked")
    return inputs


def linear(tracker: Tracker, node: Node) -> bool:
    """Rule 1, in the last dimension."""
    source, weight = arguments(node)[0], tracker.traced.tensor_name(arguments(node)[1])
    if weight is None:
        return False
    last = len(shape_of(node)) - 1
    _produce(tracker, node, weight, last, int(shape_of(arguments(node)[1])[0]), "units")
    channels = tracker.values.get(source)
    if channels is None:
        return True
    if channels.dim != last:
        return False
    tracker.read(weight, 1, channels.ids)
    return True


def embedding(tracker: Tracker, node: Node) -> bool:
    """Rule 1: what a token is looked up as has new numbers."""
    weight = tracker.traced.tensor_name(arguments(node)[0])
    if weight is None:
        return False
    ids = tracker.produce(layer_of(weight), weight, 1, int(shape_of(node)[-1]), "units")
    tracker.values[node] = Channels(len(shape_of(node)) - 1, ids)
    return True


def recurrent(tracker: Tracker, node: Node) -> bool:
    """Rule 3; with a projection, or factors of the recurrent weight, what is projected to are units of their own."""
    source, _, *weights, cell, _, projects = arguments(node)
    names = [tracker.traced.tensor_name(weight) for weight in weights]
    weight, recurrent_weight, bias, projection = names
    if weight is None or recurrent_weight is None or bias is None:
        return False
    gates, layer = _GATES[cell], layer_of(weight)
    n_directions, n_rows, _ = (int(n) for n in shape_of(weights[0]))
    hidden = tracker.tied.get((weight, 1))
    if hidden is None:
        hidden = np.tile(tracker.new(n_rows // gates), gates)
        tracker.tie(weight, 1, hidden)
        tracker.producers[layer] = hidden, "hidden units"
    units = hidden[: n_rows // gates]
    tracker.tie(recurrent_weight, 1, hidden)
    tracker.tie(bias, 1, np.tile(hidden, 2))
    handed_on = units
    if projection is not None:
        tracker.read(projection, 2, units)
        n_projected = int(shape_of(weights[3])[1])
        handed_on = tracker.produce(f"{layer}.{_PROJECTION}", projection, 1, n_projected, "units")
    tracker.read(recurrent_weight, 2, handed_on)
    both = np.tile(handed_on if projects else units, n_directions)
    tracker.results[node] = Channels(2, both), Channels(1, both)
    channels = tracker.values.get(source)
    if channels is None:
        return True
    if channels.dim != 2:
        return False
    tracker.read(weight, 2, channels.ids)
    return True


def result(tracker: Tracker, node: Node) -> bool:
    """One of an operator's several results."""
    source, index = arguments(node)
    if source in tracker.results:
        tracker.values[node] = tracker.results[source][index]
    return source not in tracker.values


def channel_norm(tracker: Tracker, node: Node) -> bool:
    """Rule 4: batch and instance normalisation."""
    channels = tracker.values.get(arguments(node)[0])
    if channels is None:
        return True
    names = [tracker.traced.tensor_name(tensor) for tensor in arguments(node)[1:5]]
    if channels.dim != 1 or not any(names):  # without parameters nothing says how many channels it has
        return False
    for name in filter(None, names):
        tracker.tie(name, 0, channels.ids)
    tracker.values[node] = channels
    return True


def layer_norm(tracker: Tracker, node: Node) -> bool:
    """Rule 4: what it gives for one channel depends on all."""
    source, shape, *parameters = arguments(node)
    channels = tracker.values.get(source)
    if channels is None:
        return True
    names = [tracker.traced.tensor_name(tensor) for tensor in parameters[:2]]
    if channels.dim != len(shape_of(node)) - 1 or len(shape) > 1 or not any(names):
        return False
    if not tracker.through_layer_norm:
        tracker.fix(source, "a layer normalisation takes them together: without some the others would change")
    for name in filter(None, names):
        tracker.tie(name, 0, channels.ids)
    tracker.values[node] = channels
    return True


def prelu(tracker: Tracker, node: Node) -> bool:
    """An activation with one slope, or one for each channel."""
    channels = tracker.values.get(arguments(node)[0])
    name = tracker.traced.tensor_name(arguments(node)[1])
    if channels is None:
        return True
    if name is None or channels.dim != 1:
        return False
    if int(shape_of(arguments(node)[1])[0]) > 1:
        tracker.tie(name, 0, channels.ids)
    tracker.values[node] = channels
    return True


def _produce(  # noqa: PLR0913 - what a layer's numbers are tied to has no common owner
    tracker: Tracker, node: Node, weight: str, dim: int, n: int, unit: Unit, out_dim: int = 0
) -> Ids:
    """Give a layer's output its numbers, along `dim` of the value and `out_dim` of the weight."""
    is_new = (weight, out_dim) not in tracker.tied
    ids = tracker.produce(layer_of(weight), weight, out_dim, n, unit)
    if is_new:
        _tie_bias(tracker, node, ids)
    tracker.values[node] = Channels(dim, ids)
    return ids


def layer_of(weight: str) -> str:
    """Return the name of what computes with a weight: its module, or a part of a module with several of them."""
    return weight.removesuffix(".weight").removesuffix("_weight")


def _tie_bias(tracker: Tracker, node: Node, ids: Ids) -> None:
    bias = tracker.traced.tensor_name(_argument(node, 2, None))
    if bias is not None:
        tracker.tie(bias, 0, ids)


def _argument(node: Node, position: int, default: object) -> Any:  # noqa: ANN401 - operators take anything
    return arguments(node)[position] if len(arguments(node)) > position else default
