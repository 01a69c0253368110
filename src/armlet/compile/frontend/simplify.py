"""Joins layers that one kernel does together: normalization and bias into weights, clamps, masks into softmaxes.

Leaves out what nothing depends on. Exact in real numbers; in float32 the folded weights round once more.
"""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from math import prod

import numpy as np

from armlet.compile.frontend.graph import (
    Add,
    Conv2d,
    Convert,
    Dense,
    Generic,
    Graph,
    Layer,
    Limit,
    MatMul,
    Reshape,
    Softmax,
)
from armlet.compile.frontend.values import Constant


def simplify(graph: Graph) -> Graph:
    """Return the graph with every joinable layer joined into the one before it."""
    uses, whole = graph.uses(), _of_whole_numbers(graph)
    layers: list[Layer] = []
    place: dict[str, int] = {}
    for layer in graph.layers:
        before = layers[place[layer.inputs[0]]] if layer.inputs and layer.inputs[0] in place else None
        joined = (
            _joined(before, layer, graph, whole) if before is not None and uses[before.output] == 1 else None
        )
        if joined is None:
            place[layer.output] = len(layers)
            layers.append(layer)
        else:
            position = place.pop(layer.inputs[0])
            names = dict.fromkeys((*layers[position].nodes, *layer.nodes))
            layers[position] = replace(joined, joined=tuple(n for n in names if n != joined.name))
            place[layer.output] = position
    return dataclasses.replace(graph, layers=tuple(layers))


def without_dead_layers(graph: Graph) -> Graph:
    """Return the graph without layers that no output depends on."""
    needed = set(graph.outputs)
    kept = []
    for layer in reversed(graph.layers):
        if layer.output in needed:
            kept.append(layer)
            needed.update(layer.inputs)
    return Graph(tuple(reversed(kept)), graph.tensors, graph.inputs, graph.outputs)


def _of_whole_numbers(graph: Graph) -> frozenset[str]:
    """Return the values that follow from integer inputs alone, element by element, as masks from a length do."""
    found = {name for name in graph.inputs if graph.tensors[name].dtype == "int32"}
    for layer in graph.layers:
        by_element = isinstance(layer.op, Convert | Reshape | Limit | Add) or (
            isinstance(layer.op, Generic) and layer.op.elementwise
        )
        if by_element and layer.inputs and found.issuperset(layer.inputs):
            found.add(layer.output)
    return frozenset(found)


def _joined(before: Layer, layer: Layer, graph: Graph, whole: frozenset[str]) -> Layer | None:
    """Return one layer that does `before`, then `layer`; None where there is none.

    Args:
        before: the layer that gives what the other takes.
        layer: the other.
        graph: of both.
        whole: values that follow from integer inputs alone.
    """
    op = before.op
    if isinstance(layer.op, Limit) and isinstance(op, Conv2d | Dense | Add | Limit):
        try:
            return replace(before, op=replace(op, clamp=op.clamp.then(layer.op.clamp)), output=layer.output)
        except ValueError:
            return None
    if isinstance(op, Generic | Add) and isinstance(layer.op, Softmax):
        return _masked(before, layer, graph, whole)
    if isinstance(op, MatMul) and (scale := _scalar_factor(layer)) is not None:
        return replace(before, op=MatMul(op.factor * scale), output=layer.output)
    if not isinstance(op, Conv2d | Dense) or not isinstance(layer.op, Generic) or op.clamp.is_active:
        return None
    affine = _affine(layer.op, graph.tensors[layer.output].shape, isinstance(op, Conv2d))
    if affine is None or (op.weight.scale is not None and np.any(affine[0] != 1)):
        return None  # integer weights keep their scales: only a bias may be added to them
    factor, shift = affine
    weight = op.weight
    if np.any(factor != 1):
        shape = (-1,) + (1,) * (weight.values.ndim - 1)
        scaled = (weight.real() * factor.reshape(shape)).astype(np.float32)
        weight = Constant(
            scaled + np.float32(0)
        )  # a pruned weight times a negative factor is -0.0: make it 0.0
    bias = Constant((op.bias.real() * factor + shift).astype(np.float32))
    return replace(before, op=replace(op, weight=weight, bias=bias), output=layer.output)


def _masked(before: Layer, layer: Layer, graph: Graph, whole: frozenset[str]) -> Layer | None:
    """Return the softmax of scores with a mask, where the operator before adds one whose rows repeat."""
    op, shape = before.op, graph.tensors[before.output].shape
    constants = op.constants if isinstance(op, Generic) else {}
    adds = op == Add() or (isinstance(op, Generic) and op.node.op_type == "Add")
    scores = [name for name in before.inputs if graph.tensors[name].shape == shape and name not in whole]
    masks = [name for name in before.inputs if name not in scores]
    if not adds or len(scores) != 1 or len(masks) + len(constants) != 1:
        return None
    constant = next(iter(constants.values()), None)
    extents = list(graph.tensors[masks[0]].shape if constant is None else constant.shape)
    while extents and extents[0] == 1:
        del extents[0]
    if not extents or tuple(extents) != shape[len(shape) - len(extents) :]:
        return None
    rows = prod(extents[:-1])
    mask = None if constant is None else constant.reshape(rows, -1).astype(np.float32)
    return replace(layer, op=Softmax(rows, mask), inputs=(*scores, *masks))


def _scalar_factor(layer: Layer) -> float | None:
    """Return the one positive number that a layer multiplies with or divides by, None if it does something else."""
    op = layer.op
    if not isinstance(op, Generic) or op.node.op_type not in ("Mul", "Div") or len(op.constants) != 1:
        return None
    name, values = next(iter(op.constants.items()))
    if (
        values.size != 1
        or values.reshape(-1)[0] <= 0
        or (op.node.op_type == "Div" and op.node.input[0] == name)
    ):
        return None
    value = float(values.reshape(-1)[0])
    return value if op.node.op_type == "Mul" else 1 / value


def _affine(
    op: Generic, shape: tuple[int, ...], channels_second: bool
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return (factor, shift) for each channel when the operator is one affine map for each channel."""
    channels = shape[1] if channels_second else shape[-1]
    kind = op.node.op_type
    if kind == "BatchNormalization" and (channels_second or len(shape) == 2):
        scale, shift, mean, variance = (op.constants[n].astype(np.float64) for n in op.node.input[1:5])
        epsilon = next((a.f for a in op.node.attribute if a.name == "epsilon"), 1e-5)
        factor = scale / np.sqrt(variance + epsilon)
        return factor, shift - mean * factor
    if kind not in ("Add", "Mul") or len(op.constants) != 1:
        return None
    constant = next(iter(op.constants.values())).astype(np.float64)
    axis = len(shape) - 1 if not channels_second else 1
    aligned = constant.reshape((1,) * (len(shape) - constant.ndim) + constant.shape)
    if any(extent != 1 for i, extent in enumerate(aligned.shape) if i != axis):
        return None
    vector = np.broadcast_to(aligned.reshape(-1), (channels,))
    return (vector, np.zeros(channels)) if kind == "Mul" else (np.ones(channels), vector)
