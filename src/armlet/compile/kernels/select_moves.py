"""Chooses the kernels of layers that only move or choose elements; `select` does the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from types import MappingProxyType
from typing import Any

from armlet.compile.frontend import graph as g
from armlet.compile.kernels import move
from armlet.compile.layout.order import Order, after_reshape, channels_last, keeps_order
from armlet.compile.layout.program import Kernel, ProgramBuilder


def _reshape(layer: g.Layer, op: g.Reshape, builder: ProgramBuilder) -> None:
    value = builder.value(layer.inputs[0])
    order = after_reshape(value.order, builder.graph.tensors[layer.output].shape)
    if order is None:
        value = builder.row_major(layer.inputs[0])
    builder.define(layer.output, value.var, order, value.border)


def _transpose(layer: g.Layer, op: g.Transpose, builder: ProgramBuilder) -> None:
    value = builder.row_major(layer.inputs[0])
    shape = value.tensor.shape
    if keeps_order(shape, op.order):
        builder.define(layer.output, value.var, None)
        return
    kernel = Kernel(
        "transpose", "copy", move.Transpose(shape, op.order, value.tensor.dtype), move.build_transpose
    )
    var = builder.call(layer.name, kernel, [value.var], value.tensor.size, value.tensor.dtype)
    builder.define(layer.output, var, None)


def _concat(layer: g.Layer, op: g.Concat, builder: ProgramBuilder) -> None:
    shape = builder.graph.tensors[layer.output].shape
    order: Order = None
    if len(shape) == 4 and op.axis == 1 and shape[0] == 1:
        values = [builder.channels_last(name) for name in layer.inputs]
        order, rows = channels_last(shape), prod(shape[2:])
    else:
        values = [builder.row_major(name) for name in layer.inputs]
        rows = prod(shape[: op.axis])
    dtype = values[0].tensor.dtype
    spec = move.Concat(rows, tuple(v.tensor.size // rows for v in values), dtype)
    kernel = Kernel("concat", "copy", spec, move.build_concat)
    var = builder.call(layer.name, kernel, [v.var for v in values], prod(shape), dtype)
    builder.define(layer.output, var, order)


def _spread(layer: g.Layer, op: g.Spread, builder: ProgramBuilder) -> None:
    source, shape = builder.channels_last(layer.inputs[0]), builder.graph.tensors[layer.output].shape
    _, channels, height, width = source.tensor.shape
    zero = layer.integer.inputs[0].zero if layer.integer else 0
    spec = move.Spread(height, width, channels, op.stride, op.padding, zero, source.tensor.dtype)
    kernel = Kernel("spread", "copy", spec, move.build_spread)
    var = builder.call(layer.name, kernel, [source.var], spec.out_size, source.tensor.dtype)
    builder.define(layer.output, var, channels_last(shape))


def _enlarge(layer: g.Layer, op: g.Enlarge, builder: ProgramBuilder) -> None:
    source, shape = builder.channels_last(layer.inputs[0]), builder.graph.tensors[layer.output].shape
    _, channels, height, width = source.tensor.shape
    spec = move.Enlarge(height, width, channels, op.factor, source.tensor.dtype)
    kernel = Kernel("enlarge", "copy", spec, move.build_enlarge)
    var = builder.call(layer.name, kernel, [source.var], prod(shape), source.tensor.dtype)
    builder.define(layer.output, var, channels_last(shape))


def _part(layer: g.Layer, op: g.Part, builder: ProgramBuilder) -> None:
    whole, part = builder.row_major(layer.inputs[0]), builder.graph.tensors[layer.output]
    kernel = Kernel(
        "part", "copy", move.Part(whole.tensor.size, op.start, part.size, part.dtype), move.build_part
    )
    builder.define(layer.output, builder.call(layer.name, kernel, [whole.var], part.size, part.dtype), None)


EMITTERS: Mapping[type, Callable[[g.Layer, Any, ProgramBuilder], None]] = MappingProxyType(
    {
        g.Reshape: _reshape,
        g.Transpose: _transpose,
        g.Concat: _concat,
        g.Spread: _spread,
        g.Enlarge: _enlarge,
        g.Part: _part,
    }
)
"""What emits each operator."""
