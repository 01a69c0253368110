"""Chooses the kernel of every layer, in the order that its values lie in, and packs its constants."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from operator import mul
from types import MappingProxyType
from typing import Any

import numpy as np

from armlet.artifacts import Fallback
from armlet.compile.frontend import graph as g
from armlet.compile.kernels import elementwise, move
from armlet.compile.kernels.epilogue import FloatClamp
from armlet.compile.kernels.generic import lower_generic, schedule
from armlet.compile.kernels.loops import Vector
from armlet.compile.kernels.select_attention import EMITTERS as ATTENTION
from armlet.compile.kernels.select_dynamic import EMITTERS as DYNAMIC
from armlet.compile.kernels.select_lengths import EMITTERS as LENGTHS
from armlet.compile.kernels.select_moves import EMITTERS as MOVES
from armlet.compile.kernels.select_recurrent import emit_recurrent
from armlet.compile.kernels.select_windows import EMITTERS as WINDOWS
from armlet.compile.kernels.select_windows import form_for, scales_by_channel
from armlet.compile.layout.order import channels_last
from armlet.compile.layout.program import Kernel, ProgramBuilder
from armlet.compile.lowered import CallInfo, LoweredProgram
from armlet.compile.quantized.arithmetic import addition, limits, slopes


def select_kernels(
    graph: g.Graph, fallbacks: tuple[Fallback, ...], vector: Vector, *, small: bool = False
) -> LoweredProgram:
    """Return the program of a graph.

    Args:
        graph: what it computes.
        fallbacks: those found so far.
        vector: unit that kernels are written for.
        small: whether constants must not grow for the sake of speed.
    """
    builder = ProgramBuilder(graph, vector, small=small)
    builder.fallbacks.extend(fallbacks)
    return builder.build(lambda: _emit_layers(graph, builder))


def _emit_layers(graph: g.Graph, builder: ProgramBuilder) -> None:
    position = 0
    while position < len(graph.layers):
        island = island_from(graph, position)
        if island:
            _generic(island, builder)
        else:
            layer = graph.layers[position]
            _EMITTERS[type(layer.op)](layer, layer.op, builder)
        position += max(len(island), 1)


def _sum(layer: g.Layer, op: g.Add | g.Limit, builder: ProgramBuilder) -> None:
    clamp = op.clamp
    values = [builder.value(name) for name in layer.inputs]
    if len({v.order for v in values}) > 1:
        spatial = all(len(v.tensor.shape) == 4 for v in values)
        values = [builder.channels_last(n) if spatial else builder.row_major(n) for n in layer.inputs]
    size, unsigned = values[0].tensor.size, form_for(layer, builder).unsigned
    name = "add" if len(values) > 1 else "rescale" if layer.integer else "clamp"
    if layer.integer is None:
        spec = elementwise.FloatSum(size, len(values), FloatClamp(clamp.low, clamp.high))
        kernel = Kernel(name, "vector", spec, elementwise.build_float_sum)
    else:
        output = layer.integer.output
        fixed = addition(np.array([i.scale / output.scale for i in layer.integer.inputs]))
        multipliers = tuple(int(m) for m in fixed.multipliers)
        operands = tuple(str(v.var.ty.dtype) for v in values)
        zeros = [
            i.zero + 128 * (operand == "uint8")
            for i, operand in zip(layer.integer.inputs, operands, strict=True)
        ]
        offset = (1 << (fixed.shift - 1)) - sum(map(mul, multipliers, zeros))
        scale = size, multipliers, offset, fixed.shift, output.zero, *limits(clamp, output)
        total = elementwise.Sum(*scale, operands, unsigned)
        kernel = Kernel(name, "vector", total, elementwise.build_sum)
    dtype = "uint8" if unsigned else builder.element(layer)
    var = builder.call(layer.name, kernel, [v.var for v in values], size, dtype)
    builder.define(layer.output, var, values[0].order)


def _prelu(layer: g.Layer, op: g.PRelu, builder: ProgramBuilder) -> None:
    assert layer.integer is not None  # noqa: S101 - in float it is generic
    origin, output = layer.integer.inputs[0], layer.integer.output
    positive, negative = slopes(op, origin, output)
    shape = builder.graph.tensors[layer.output].shape
    pictures = len(shape) == 4 and op.axis == 1
    value = builder.channels_last(layer.inputs[0]) if pictures else builder.row_major(layer.inputs[0])
    inner = 1 if pictures else prod(shape[op.axis + 1 :])
    outer = value.tensor.size // (shape[op.axis] * inner)
    zeros, multiplied = (origin.zero, output.zero), (positive, negative.shift)
    spec = elementwise.PRelu(outer, shape[op.axis], inner, *zeros, *multiplied)
    kernel = Kernel("prelu", "vector", spec, elementwise.build_prelu)
    var = builder.call(layer.name, kernel, [value.var, negative.multipliers], value.tensor.size, "int8")
    builder.define(layer.output, var, value.order)


def _quantize(layer: g.Layer, op: g.Quantize, builder: ProgramBuilder) -> None:
    value = builder.value(layer.inputs[0])
    spec = elementwise.Quantize(value.tensor.size, op.to.scale, op.to.zero)
    kernel = Kernel("quantize", "vector", spec, elementwise.build_quantize)
    var = builder.call(layer.name, kernel, [value.var], value.tensor.size, "int8")
    builder.define(layer.output, var, value.order)


def _dequantize(layer: g.Layer, op: g.Dequantize, builder: ProgramBuilder) -> None:
    value = builder.value(layer.inputs[0])
    spec = elementwise.Dequantize(value.tensor.size, op.origin.scale, op.origin.zero)
    kernel = Kernel("dequantize", "vector", spec, elementwise.build_dequantize)
    var = builder.call(layer.name, kernel, [value.var], value.tensor.size, "float32")
    builder.define(layer.output, var, value.order)


def _lookup(layer: g.Layer, op: g.Lookup, builder: ProgramBuilder) -> None:
    index = builder.row_major(layer.inputs[0])
    rows, width = op.table.values.shape
    scales = None if layer.integer else scales_by_channel(op.table)
    plain = layer.integer is None and scales is None
    if plain:
        constants = [op.table.real().astype(np.float32).reshape(-1)]
    else:
        constants = [op.table.values.reshape(-1)]
        constants += [] if scales is None else [scales.astype(np.float32)]
    element = builder.vector.real if plain else "int8"
    spec = move.Lookup(rows, width, index.tensor.size, element, scaled=scales is not None)
    kernel = Kernel("lookup", "copy", spec, move.build_lookup)
    result = builder.element(layer)
    var = builder.call(layer.name, kernel, [index.var, *constants], spec.size * spec.width, result)
    builder.define(layer.output, var, None)


def _convert(layer: g.Layer, op: g.Convert, builder: ProgramBuilder) -> None:
    del op
    value, to = builder.value(layer.inputs[0]), builder.graph.tensors[layer.output].dtype
    spec = elementwise.Convert(value.tensor.size, value.tensor.dtype, to)
    kernel = Kernel("convert", "vector", spec, elementwise.build_convert)
    var = builder.call(layer.name, kernel, [value.var], value.tensor.size, to)
    builder.define(layer.output, var, value.order)


def _recenter(layer: g.Layer, op: g.Recenter, builder: ProgramBuilder) -> None:
    del op
    value, to = builder.value(layer.inputs[0]), builder.graph.tensors[layer.output].dtype
    spec = elementwise.Recenter(value.tensor.size, to)
    kernel = Kernel("recenter", "vector", spec, elementwise.build_recenter)
    var = builder.call(layer.name, kernel, [value.var], value.tensor.size, to)
    builder.define(layer.output, var, value.order)


def _table(layer: g.Layer, op: g.Table, builder: ProgramBuilder) -> None:
    value = builder.value(layer.inputs[0])
    kernel = Kernel("table", "scalar", elementwise.Table(value.tensor.size), elementwise.build_table)
    var = builder.call(layer.name, kernel, [value.var, op.values], value.tensor.size, "int8")
    builder.define(layer.output, var, value.order)


# Each function takes the operator of its own class, which no common type but Any can say.
_EMITTERS: Mapping[type, Callable[[g.Layer, Any, ProgramBuilder], None]] = MappingProxyType(
    {
        g.Add: _sum,
        g.Limit: _sum,
        g.PRelu: _prelu,
        g.Quantize: _quantize,
        g.Dequantize: _dequantize,
        g.Recurrent: emit_recurrent,
        g.Convert: _convert,
        g.Recenter: _recenter,
        g.Lookup: _lookup,
        g.Table: _table,
        **WINDOWS,
        **ATTENTION,
        **MOVES,
        **DYNAMIC,
        **LENGTHS,
    }
)
"""What emits each operator; generic ones are emitted by the island."""


def island_from(graph: g.Graph, start: int) -> tuple[g.Layer, ...]:
    """Return the generic layers from `start` on that are lowered together: one, or elementwise ones in a chain."""
    island: list[g.Layer] = []
    for layer in graph.layers[start:]:
        if not isinstance(layer.op, g.Generic):
            break
        if island:
            before = {n.output for n in island}
            chained = layer.op.elementwise and not before.isdisjoint(layer.inputs)
            if not chained or not all(isinstance(n.op, g.Generic) and n.op.elementwise for n in island):
                break
        island.append(layer)
    return tuple(island)


def _generic(island: tuple[g.Layer, ...], builder: ProgramBuilder) -> None:
    tensors = builder.graph.tensors
    inner = {layer.output for layer in island}
    inputs = list(dict.fromkeys(n for layer in island for n in layer.inputs if n not in inner))
    spatial = _runs_channels_last(island, inputs, builder)
    shapes = {}
    variables = {}
    for name in [*inputs, *inner]:
        shape = tensors[name].shape
        shapes[name] = (shape[0], *shape[2:], shape[1]) if spatial else shape
    for name in inputs:
        value = builder.channels_last(name) if spatial else builder.row_major(name)
        variables[name] = builder.alias(value.var, shapes[name])
    outside = [n for other in builder.graph.layers if other not in island for n in other.inputs]
    outputs = [layer.output for layer in island if layer.output in {*outside, *builder.graph.outputs}]
    calls = lower_generic(island, shapes, outputs, spatial, builder.vector, schedule)
    elementwise_only = all(isinstance(layer.op, g.Generic) and layer.op.elementwise for layer in island)
    names = "+".join(layer.name for layer in island)
    for call in calls:
        op = call.name.removeprefix("fused_")
        info = CallInfo(names, op, "elementwise" if elementwise_only else "generic", "float32", 0)
        kernel = builder.add_kernel(op, call.function)
        arguments = [variables[a] if isinstance(a, str) else a for a in call.arguments]
        variables[call.output] = builder.call_tir(info, kernel, arguments, call.shape, call.dtype)
    for name in outputs:
        flat = builder.alias(variables[name], (tensors[name].size,))
        builder.define(name, flat, channels_last(tensors[name].shape) if spatial else None)
    if not elementwise_only:
        builder.fallbacks.extend(
            Fallback(n.name, n.kind, "has no schedule of its own: generic") for n in island
        )


def _runs_channels_last(island: tuple[g.Layer, ...], inputs: list[str], builder: ProgramBuilder) -> bool:
    """Return whether the island can compute on values as they lie: elementwise, all of the shape [1, C, H, W]."""
    ops = [layer.op for layer in island if isinstance(layer.op, g.Generic)]
    values = [*inputs, *(layer.output for layer in island)]
    constants = [c for op in ops for c in op.constants.values()]
    return (
        all(op.elementwise for op in ops)
        and all(len(builder.graph.tensors[v].shape) == 4 for v in values)
        and all(builder.graph.tensors[v].shape[0] == 1 for v in values)
        and all(c.size == 1 or c.ndim <= 4 for c in constants)
        and any(builder.value(v).order is not None for v in inputs)
    )
