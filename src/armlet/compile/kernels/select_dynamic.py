"""Calls the kernels of layers whose input is quantised while the program runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from types import MappingProxyType
from typing import Any

import numpy as np

from armlet.compile.frontend import graph as g
from armlet.compile.frontend.values import Array
from armlet.compile.kernels import conv2d, dynamic
from armlet.compile.kernels.epilogue import Accumulators, FloatClamp
from armlet.compile.kernels.select_shifted import with_sums
from armlet.compile.layout.order import channels_last, permuted_columns
from armlet.compile.layout.packing import pack_conv2d
from armlet.compile.layout.program import Kernel, ProgramBuilder


def emit_dense(layer: g.Layer, op: g.Dense, builder: ProgramBuilder) -> None:
    """Call the matrix product of a value that is quantised by now: the inputs are its integers and their range."""
    rows = prod(builder.graph.tensors[layer.inputs[0]].shape[:-1])
    source = builder.value(layer.inputs[0]) if rows == 1 else builder.row_major(layer.inputs[0])
    if len(source.tensor.shape) == 4:
        source = builder.row_major(layer.inputs[0])
    weight = permuted_columns(op.weight.values, source.order)
    outputs, inputs = weight.shape
    one = (1, 1)
    integers = conv2d.Conv2d(1, rows, inputs, outputs, one, one, 1, Accumulators())
    var = _product(layer, "dynamic_dense", integers, (source.var, weight[:, :, None, None]), builder)
    builder.define(layer.output, var, None)


def emit_conv2d(layer: g.Layer, op: g.Conv2d, builder: ProgramBuilder) -> None:
    """Call the convolution of a value that is quantised, with its border, by now."""
    source, weight = builder.channels_last(layer.inputs[0]), op.weight.values
    _, channels, height, width = source.tensor.shape
    kernel = (weight.shape[2], weight.shape[3])
    if op.groups == 1 and kernel == (1, 1) and op.stride == (1, 1):
        height, width = 1, height * width  # one long row: tiles of pixels fit better
    integers = conv2d.Conv2d(
        height, width, channels, len(weight), kernel, op.stride, op.groups, Accumulators()
    )
    var = _product(layer, "dynamic_conv2d", integers, (source.var, weight), builder)
    builder.define(layer.output, var, channels_last(builder.graph.tensors[layer.output].shape))


def _product(
    layer: g.Layer,
    name: str,
    integers: conv2d.Conv2d,
    operands: tuple[object, Array],
    builder: ProgramBuilder,
) -> object:
    """Call the kernel of a layer with its weight [outputs, inputs / groups, kernel height, kernel width]."""
    (x, weight), op = operands, layer.op
    assert isinstance(op, g.Dense | g.Conv2d)  # noqa: S101 - both callers have one
    assert op.weight.scale is not None  # noqa: S101 - `frontend.dynamic` gives it
    integers, weight, further = with_sums(layer, integers, (x, weight), builder)
    spec = dynamic.Product(integers, FloatClamp(op.clamp.low, op.clamp.high))
    tile = conv2d.tile_of(integers, builder.vector)
    minus = -weight.reshape(len(weight), -1).sum(1, dtype=np.int32)
    constants = [pack_conv2d(weight, integers, tile), minus]
    constants += [op.weight.scale.astype(np.float32), op.bias.real().astype(np.float32)]
    constants += further
    kernel = Kernel(name, tile.step, spec, dynamic.build_product, integers.macs, precision="int8")
    found, size = builder.value(layer.inputs[1]).var, builder.graph.tensors[layer.output].size
    return builder.call(layer.name, kernel, [x, found, *constants], size, "float32")


def _range(layer: g.Layer, op: g.Range, builder: ProgramBuilder) -> None:
    del op
    value = builder.value(layer.inputs[0])
    kernel = Kernel("dynamic_range", "vector", dynamic.Range(value.tensor.size), dynamic.build_range)
    builder.define(layer.output, builder.call(layer.name, kernel, [value.var], 2, "float32"), None)


def _quantize_by(layer: g.Layer, op: g.QuantizeBy, builder: ProgramBuilder) -> None:
    del op
    value, found = (builder.value(name) for name in layer.inputs)
    size = value.tensor.size
    kernel = Kernel("dynamic_quantize", "vector", dynamic.QuantizeBy(size), dynamic.build_quantize_by)
    var = builder.call(layer.name, kernel, [value.var, found.var], size, "int8")
    builder.define(layer.output, var, value.order)


EMITTERS: Mapping[type, Callable[[g.Layer, Any, ProgramBuilder], None]] = MappingProxyType(
    {g.Range: _range, g.QuantizeBy: _quantize_by}
)
"""What emits each operator."""
