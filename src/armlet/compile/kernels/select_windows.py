"""Chooses the kernels of convolutions, dense layers and pooling, and packs their constants.

A border that a layer asks for around its input is written by the kernel that makes the input, where no other layer
reads that; else it is copied into one. So is the form without a sign that AVX-512 multiplies int8 in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import prod
from operator import or_
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from armlet.compile.frontend import graph as g
from armlet.compile.frontend.values import Array, Clamp, Constant
from armlet.compile.kernels import conv2d, depthwise, move, pool
from armlet.compile.kernels.border import Border
from armlet.compile.kernels.depthwise_dot import block_of
from armlet.compile.kernels.epilogue import Epilogue, FloatClamp, Requantize, WeightScale, result
from armlet.compile.kernels.loops import smallest
from armlet.compile.kernels.select_depthwise import emit_depthwise
from armlet.compile.kernels.select_dynamic import emit_conv2d, emit_dense
from armlet.compile.kernels.select_grouped import emit_grouped
from armlet.compile.kernels.select_shifted import with_sums
from armlet.compile.kernels.select_winograd import emit_winograd, tile_for
from armlet.compile.layout.order import channels_last, permuted_columns
from armlet.compile.layout.packing import pack_conv2d, starts
from armlet.compile.layout.program import Kernel, ProgramBuilder
from armlet.compile.quantized.arithmetic import limits, requantization

if TYPE_CHECKING:
    from tvm import relax


@dataclass(frozen=True, slots=True)
class Form:
    """How a layer stores its result, as those who read it ask for.

    Attributes:
        unsigned: whether int8 numbers are stored as uint8, 128 more.
    """

    border: Border | None = None
    unsigned: bool = False

    def of(self, epilogue: Epilogue) -> Epilogue:
        """Return what happens to accumulators, in this form."""
        if self.unsigned and isinstance(epilogue, Requantize):
            return replace(epilogue, result="uint8")
        return epilogue


@dataclass(frozen=True, slots=True)
class _Convolution:
    """A convolution before its operands have their form.

    Attributes:
        spec: of its kernel over the padded input.
        constants: weight, what the accumulators begin at, and factors by channel.
        pad: what copies the input into a border where its maker has not written one.
    """

    spec: conv2d.Conv2d | depthwise.Depthwise
    constants: tuple[Array, Array, Array | None]
    pad: move.Pad


def form_for(layer: g.Layer, builder: ProgramBuilder) -> Form:
    """Return the form that those who read a layer's result ask for.

    It has no sign if a reader multiplies it so and all of them take it so, and a border if there is one reader.
    """
    readers = builder.readers(layer.output) or ()
    pads = [_pad_of(reader, builder) for reader in readers]
    sums = [isinstance(reader.op, g.Add | g.Limit) for reader in readers]
    wanted = [pad is not None and pad.unsigned for pad in pads]
    unsigned = any(wanted) and all(map(or_, wanted, sums))
    if len(pads) != 1 or pads[0] is None or pads[0].slack or not any(pads[0].padding):
        return Form(None, unsigned)
    return Form(pads[0].border, unsigned)


def _pad_of(layer: g.Layer, builder: ProgramBuilder) -> move.Pad | None:
    """Return what would copy a layer's input into its border; None of one that asks for no form."""
    if isinstance(layer.op, g.Conv2d) and not layer.op.dynamic:
        return _convolution(layer, layer.op, builder).pad
    return _pool_pad(layer, layer.op, builder) if isinstance(layer.op, g.Pool) else None


def _padded(layer: g.Layer, pad: move.Pad, builder: ProgramBuilder) -> relax.Var:
    """Return the layer's input in channels-last order, with its border and some slack after it."""
    source = builder.channels_last(layer.inputs[0])
    if source.border is not None or not (any(pad.padding) or pad.slack):
        return source.var
    if str(source.var.ty.dtype) == "uint8":  # already, for several readers
        pad = replace(pad, dtype="uint8", value=pad.value + 128, unsigned=False)
    kernel = Kernel("pad", "copy", pad, move.build_pad)
    return builder.call(layer.name, kernel, [source.var], pad.out_size, pad.result)


def _convolution(layer: g.Layer, op: g.Conv2d, builder: ProgramBuilder) -> _Convolution:
    zero = layer.integer.inputs[0].zero if layer.integer else 0
    weight, bias, factors = weights_of(layer, op)
    epilogue, by_channel = epilogue_of(layer, op.clamp, factors)
    outputs, per_group, *extents = weight.shape
    channels, kernel = per_group * op.groups, (extents[0], extents[1])
    _, _, height, width = builder.graph.tensors[layer.inputs[0]].shape
    top, left, bottom, right = op.padding
    padded = height + top + bottom, width + left + right
    short = layer.integer and op.groups == 1
    slack = conv2d.slack_for(channels * kernel[1], builder.vector) if short else 0
    spec: conv2d.Conv2d | depthwise.Depthwise
    if op.groups == channels == outputs and channels > 1:
        reach = depthwise.largest_weight(weight)
        spec = depthwise.Depthwise(*padded, channels, kernel, op.stride, epilogue, reach, builder.small)
        block = block_of(spec, builder.vector)
        unsigned = block is not None and block.offset > 0
    else:
        spec = conv2d.Conv2d(*padded, channels, outputs, kernel, op.stride, op.groups, epilogue, slack=slack)
        unsigned = conv2d.reads_unsigned(spec, builder.vector)
    pad = move.Pad(height, width, channels, op.padding, zero, builder.element(layer), slack, unsigned)
    return _Convolution(spec, (weight, bias, by_channel), pad)


def _conv2d(layer: g.Layer, op: g.Conv2d, builder: ProgramBuilder) -> None:
    if op.dynamic:
        emit_conv2d(layer, op, builder)
        return
    found, form = _convolution(layer, op, builder), form_for(layer, builder)
    x = _padded(layer, found.pad, builder)
    epilogue, unsigned = form.of(found.spec.epilogue), str(x.ty.dtype) == "uint8"
    spec = replace(found.spec, epilogue=epilogue, unsigned=unsigned, border=form.border)
    weight, bias, by_channel = found.constants
    if isinstance(spec, depthwise.Depthwise):
        var = emit_depthwise(layer, spec, (x, weight, bias, by_channel), builder)
    else:
        if spec.groups == 1 and spec.kernel == (1, 1) and spec.stride == (1, 1):
            # One long row: tiles of pixels fit better.
            spec = replace(spec, height=1, width=spec.height * spec.width)
        tile = None if builder.small else tile_for(spec, builder.vector)
        if tile is None:
            var = _call_conv2d(layer, "conv2d", spec, (x, weight, bias, by_channel), builder)
        else:
            var = emit_winograd(layer, spec, tile, (x, weight, bias), builder)
    shape = builder.graph.tensors[layer.output].shape
    builder.define(layer.output, var, channels_last(shape), form.border)


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
    weight, bias, factors = weights_of(layer, op)
    weight = permuted_columns(weight, source.order)
    epilogue, by_channel = epilogue_of(layer, op.clamp, factors)
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
    return builder.call(
        layer.name, kernel, [x, *constants], spec.out_size, result(spec.epilogue, builder.vector)
    )


def _pool_pad(layer: g.Layer, op: g.Pool, builder: ProgramBuilder) -> move.Pad:
    _, channels, height, width = builder.graph.tensors[layer.inputs[0]].shape
    value: float = layer.integer.inputs[0].zero if layer.integer else 0
    if op.kind == "max_pool2d":
        value = smallest(builder.element(layer))
    return move.Pad(height, width, channels, op.padding, value, builder.element(layer))


def _pool(layer: g.Layer, op: g.Pool, builder: ProgramBuilder) -> None:
    shape, pad = builder.graph.tensors[layer.output].shape, _pool_pad(layer, op, builder)
    x, form = _padded(layer, pad, builder), form_for(layer, builder)
    top, left, bottom, right = op.padding
    extents = pad.height + top + bottom, pad.width + left + right, pad.channels, op.kernel, op.stride
    spec: pool.MaxPool | pool.Mean
    if op.kind == "max_pool2d":
        spec = pool.MaxPool(*extents, builder.element(layer), form.unsigned, form.border)
        kernel = Kernel(op.kind, "vector", spec, pool.build_max)
    else:
        count = op.kernel[0] * op.kernel[1]
        factors = None
        if layer.integer:
            factors = np.array([layer.integer.inputs[0].scale / (layer.integer.output.scale * count)])
        epilogue, multipliers = epilogue_of(layer, Clamp(), factors)
        spec = pool.Mean(*extents, form.of(epilogue), border=form.border)
        if layer.integer and multipliers is not None:
            origin = layer.integer.inputs[0]
            spec = replace(spec, bias=-count * origin.zero, multiplier=int(multipliers[0]))
        kernel = Kernel(op.kind, "vector", spec, pool.build_mean)
    dtype = "uint8" if form.unsigned else builder.element(layer)
    var = builder.call(layer.name, kernel, [x], spec.out_size, dtype)
    builder.define(layer.output, var, channels_last(shape), form.border)


EMITTERS: Mapping[type, Callable[[g.Layer, Any, ProgramBuilder], None]] = MappingProxyType(
    {g.Conv2d: _conv2d, g.Dense: _dense, g.Pool: _pool}
)
"""What emits each operator."""


def epilogue_of(layer: g.Layer, clamp: Clamp, factors: Array | None) -> tuple[Epilogue, Array | None]:
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


def weights_of(layer: g.Layer, op: g.Conv2d | g.Dense) -> tuple[Array, Array, Array | None]:
    """Return weights, what the accumulators begin at, and the factors from them to the result.

    An integer layer's bias has the input's zero point folded in. A float layer whose weights are integers keeps them
    and has their scales as factors; with plain weights it has none.
    """
    weight, bias = op.weight, op.bias
    if layer.integer is None:
        scales = scales_by_channel(weight)
        if scales is None:
            return weight.real().astype(np.float32), bias.real().astype(np.float32), None
        return weight.values, (bias.real() / scales).astype(np.float32), scales
    origin = layer.integer.inputs[0]
    sums = weight.values.astype(np.int64).reshape(weight.values.shape[0], -1).sum(1)
    assert bias.scale is not None  # noqa: S101 - set by `quantized.integer` on every integer layer
    factors = bias.scale / layer.integer.output.scale
    return weight.values, (bias.values - origin.zero * sums).astype(np.int32), factors


def scales_by_channel(weight: Constant) -> Array | None:
    """Return the scale of each output channel of int8 weights, float64; None where they have no such form."""
    if weight.scale is None or weight.zero is None or weight.values.dtype != np.int8 or np.any(weight.zero):
        return None
    if weight.has_blocks or (weight.scale.size > 1 and weight.axis != 0):
        return None
    return np.broadcast_to(weight.scale.astype(np.float64).reshape(-1), (weight.values.shape[0],))
