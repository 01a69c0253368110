"""Chooses the kernel of every layer, in the order that its values lie in, and packs its constants."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from math import prod
from types import MappingProxyType
from typing import Any

import numpy as np

from armlet.artifacts import Fallback
from armlet.compile.frontend import graph as g
from armlet.compile.frontend.values import Array, Clamp, Constant
from armlet.compile.kernels import conv2d, elementwise, move, pool
from armlet.compile.kernels.epilogue import Epilogue, FloatClamp, Requantize, WeightScale
from armlet.compile.kernels.generic import lower_generic
from armlet.compile.kernels.loops import Vector, smallest
from armlet.compile.kernels.select_attention import EMITTERS as ATTENTION
from armlet.compile.kernels.select_depthwise import emit_depthwise
from armlet.compile.kernels.select_dynamic import EMITTERS as DYNAMIC
from armlet.compile.kernels.select_dynamic import emit_conv2d, emit_dense
from armlet.compile.kernels.select_grouped import emit_grouped
from armlet.compile.kernels.select_lengths import EMITTERS as LENGTHS
from armlet.compile.kernels.select_moves import EMITTERS as MOVES
from armlet.compile.kernels.select_recurrent import emit_recurrent
from armlet.compile.kernels.select_shifted import with_sums
from armlet.compile.kernels.select_winograd import emit_winograd, tile_for
from armlet.compile.layout.order import channels_last, permuted_columns
from armlet.compile.layout.packing import pack_conv2d, starts
from armlet.compile.layout.program import Kernel, ProgramBuilder
from armlet.compile.lowered import CallInfo, LoweredProgram
from armlet.compile.quantized.arithmetic import addition, limits, requantization, slopes


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
        island = _island(graph, position)
        if island:
            _generic(island, builder)
        else:
            layer = graph.layers[position]
            _EMITTERS[type(layer.op)](layer, layer.op, builder)
        position += max(len(island), 1)


def _padded(
    layer: g.Layer, padding: tuple[int, int, int, int], value: float, builder: ProgramBuilder, slack: int = 0
) -> tuple[object, int, int]:
    """Return the layer's input in channels-last order with its border and some slack after it, its height and width."""
    source = builder.channels_last(layer.inputs[0])
    _, channels, height, width = source.tensor.shape
    top, left, bottom, right = padding
    if not any(padding) and not slack:
        return source.var, height, width
    spec = move.Pad(height, width, channels, padding, value, source.tensor.dtype, slack)
    kernel = Kernel("pad", "copy", spec, move.build_pad)
    var = builder.call(layer.name, kernel, [source.var], spec.out_size, source.tensor.dtype)
    return var, height + top + bottom, width + left + right


def _epilogue(layer: g.Layer, clamp: Clamp, factors: Array | None) -> tuple[Epilogue, Array | None]:
    """Return what happens to a layer's accumulators, and the factors that it takes for each channel.

    Args:
        layer: integer or float.
        clamp: limits of the result.
        factors: from accumulators to the result; of a float layer, the scales of its integer weights.
    """
    if layer.integer is None:
        if factors is None:
            return FloatClamp(clamp.low, clamp.high), None
        return WeightScale(clamp.low, clamp.high), factors.astype(np.float32)
    assert factors is not None  # noqa: S101 - every integer layer has them
    fixed = requantization(factors)
    output = layer.integer.output
    return Requantize(fixed.shift, output.zero, *limits(clamp, output)), fixed.multipliers


def _weights(layer: g.Layer, op: g.Conv2d | g.Dense) -> tuple[Array, Array, Array | None]:
    """Return weights, what the accumulators begin at, and the factors from them to the result.

    An integer layer's bias has the input's zero point folded in. A float layer whose weights are integers keeps them
    and has their scales as factors; with plain weights it has none.
    """
    weight, bias = op.weight, op.bias
    if layer.integer is None:
        scales = _scales_by_channel(weight)
        if scales is None:
            return weight.real().astype(np.float32), bias.real().astype(np.float32), None
        return weight.values, (bias.real() / scales).astype(np.float32), scales
    origin = layer.integer.inputs[0]
    sums = weight.values.astype(np.int64).reshape(weight.values.shape[0], -1).sum(1)
    assert bias.scale is not None  # noqa: S101 - set by `quantized.integer` on every integer layer
    factors = bias.scale / layer.integer.output.scale
    return weight.values, (bias.values - origin.zero * sums).astype(np.int32), factors


def _scales_by_channel(weight: Constant) -> Array | None:
    """Return the scale of each output channel of int8 weights, float64; None where they have no such form."""
    if weight.scale is None or weight.zero is None or weight.values.dtype != np.int8 or np.any(weight.zero):
        return None
    if weight.has_blocks or (weight.scale.size > 1 and weight.axis != 0):
        return None
    return np.broadcast_to(weight.scale.astype(np.float64).reshape(-1), (weight.values.shape[0],))


def _conv2d(layer: g.Layer, op: g.Conv2d, builder: ProgramBuilder) -> None:
    if op.dynamic:
        emit_conv2d(layer, op, builder)
        return
    zero = layer.integer.inputs[0].zero if layer.integer else 0
    weight, bias, factors = _weights(layer, op)
    epilogue, by_channel = _epilogue(layer, op.clamp, factors)
    outputs, per_group, *kernel = weight.shape
    channels = per_group * op.groups
    short = layer.integer and op.groups == 1
    slack = conv2d.slack_for(channels * kernel[1], builder.vector) if short else 0
    x, height, width = _padded(layer, op.padding, zero, builder, slack)
    shape = builder.graph.tensors[layer.output].shape
    if op.groups == channels == outputs and channels > 1:
        extents = height, width, channels, tuple(kernel), op.stride
        var = emit_depthwise(layer, (*extents, epilogue), (x, weight, bias, by_channel), builder)
    else:
        if op.groups == 1 and tuple(kernel) == (1, 1) and op.stride == (1, 1):
            height, width = 1, height * width  # one long row: tiles of pixels fit better
        shape_of = height, width, channels, outputs, tuple(kernel), op.stride, op.groups
        spec = conv2d.Conv2d(*shape_of, epilogue, slack=slack)
        tile = None if builder.small else tile_for(spec, builder.vector)
        if tile is None:
            var = _call_conv2d(layer, "conv2d", spec, (x, weight, bias, by_channel), builder)
        else:
            var = emit_winograd(layer, spec, tile, (x, weight, bias), builder)
    builder.define(layer.output, var, channels_last(shape))


def _dense(layer: g.Layer, op: g.Dense, builder: ProgramBuilder) -> None:
    if op.dynamic:
        emit_dense(layer, op, builder)
        return
    if op.weight.has_blocks:
        emit_grouped(layer, op, builder)
        return
    rows = prod(builder.graph.tensors[layer.inputs[0]].shape[:-1])
    source = builder.value(layer.inputs[0]) if rows == 1 else builder.row_major(layer.inputs[0])
    if len(source.tensor.shape) == 4:
        source = builder.row_major(layer.inputs[0])
    weight, bias, factors = _weights(layer, op)
    weight = permuted_columns(weight, source.order)
    epilogue, by_channel = _epilogue(layer, op.clamp, factors)
    outputs, inputs = weight.shape
    spec = conv2d.Conv2d(1, rows, inputs, outputs, (1, 1), (1, 1), 1, epilogue)
    var = _call_conv2d(
        layer, "dense", spec, (source.var, weight[:, :, None, None], bias, by_channel), builder
    )
    builder.define(layer.output, var, None)


def _call_conv2d(
    layer: g.Layer,
    op: str,
    spec: conv2d.Conv2d,
    operands: tuple[object, Array, Array, Array | None],
    builder: ProgramBuilder,
) -> object:
    x, weight, bias, by_channel = operands
    spec, weight, further = with_sums(layer, spec, (x, weight), builder)
    tile = conv2d.tile_of(spec, builder.vector)
    constants = [pack_conv2d(weight, spec, tile), starts(bias, weight, tile)]
    constants += [*([] if by_channel is None else [by_channel]), *further]
    kernel = Kernel(op, tile.step, spec, conv2d.build, spec.macs)
    size = spec.out_height * spec.out_width * spec.outputs
    return builder.call(layer.name, kernel, [x, *constants], size, builder.element(layer))


def _pool(layer: g.Layer, op: g.Pool, builder: ProgramBuilder) -> None:
    channels = builder.graph.tensors[layer.inputs[0]].shape[1]
    shape = builder.graph.tensors[layer.output].shape
    if op.kind == "max_pool2d":
        x, height, width = _padded(layer, op.padding, smallest(builder.element(layer)), builder)
        spec = pool.MaxPool(height, width, channels, op.kernel, op.stride, builder.element(layer))
        kernel = Kernel(op.kind, "vector", spec, pool.build_max)
    else:
        zero = layer.integer.inputs[0].zero if layer.integer else 0
        x, height, width = _padded(layer, op.padding, zero, builder)
        count = op.kernel[0] * op.kernel[1]
        factors = None
        if layer.integer:
            factors = np.array([layer.integer.inputs[0].scale / (layer.integer.output.scale * count)])
        epilogue, multipliers = _epilogue(layer, Clamp(), factors)
        mean = pool.Mean(height, width, channels, op.kernel, op.stride, epilogue)
        if multipliers is not None:
            mean = replace(mean, bias=-count * zero, multiplier=int(multipliers[0]))
        kernel = Kernel(op.kind, "vector", mean, pool.build_mean)
    var = builder.call(layer.name, kernel, [x], prod(shape), builder.element(layer))
    builder.define(layer.output, var, channels_last(shape))


def _sum(layer: g.Layer, op: g.Add | g.Limit, builder: ProgramBuilder) -> None:
    clamp = op.clamp
    values = [builder.value(name) for name in layer.inputs]
    if len({v.order for v in values}) > 1:
        spatial = all(len(v.tensor.shape) == 4 for v in values)
        values = [builder.channels_last(n) if spatial else builder.row_major(n) for n in layer.inputs]
    size = values[0].tensor.size
    name = "add" if len(values) > 1 else "rescale" if layer.integer else "clamp"
    if layer.integer is None:
        spec = elementwise.FloatSum(size, len(values), FloatClamp(clamp.low, clamp.high))
        kernel = Kernel(name, "vector", spec, elementwise.build_float_sum)
    else:
        output = layer.integer.output
        fixed = addition(np.array([i.scale / output.scale for i in layer.integer.inputs]))
        multipliers = tuple(int(m) for m in fixed.multipliers)
        zeros = sum(m * i.zero for m, i in zip(multipliers, layer.integer.inputs, strict=True))
        offset = (1 << (fixed.shift - 1)) - zeros
        total = elementwise.Sum(size, multipliers, offset, fixed.shift, output.zero, *limits(clamp, output))
        kernel = Kernel(name, "vector", total, elementwise.build_sum)
    var = builder.call(layer.name, kernel, [v.var for v in values], size, builder.element(layer))
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
    scales = None if layer.integer else _scales_by_channel(op.table)
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
        g.Conv2d: _conv2d,
        g.Dense: _dense,
        g.Pool: _pool,
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
        **ATTENTION,
        **MOVES,
        **DYNAMIC,
        **LENGTHS,
    }
)
"""What emits each operator; generic ones are emitted by the island."""


def _island(graph: g.Graph, start: int) -> tuple[g.Layer, ...]:
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
    calls = lower_generic(island, shapes, outputs, spatial, builder.vector)
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
