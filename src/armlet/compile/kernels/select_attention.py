"""Chooses the kernels of what attention and normalisation are made of; `select` does the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from math import prod
from types import MappingProxyType
from typing import Any

import numpy as np

from armlet.compile.frontend import graph as g
from armlet.compile.kernels import elementwise, integer_matmul, layer_norm, matmul, pool, softmax
from armlet.compile.kernels.epilogue import FloatClamp, Requantize
from armlet.compile.kernels.loops import LARGEST
from armlet.compile.layout.program import Kernel, ProgramBuilder
from armlet.compile.quantized.arithmetic import (
    constant_addition,
    exponentials,
    gains,
    normalization,
    requantization,
)
from armlet.compile.quantized.attention import factor_of
from armlet.compile.quantized.reference import mask_steps


def _requantize(
    layer: g.Layer, op: g.MatMul | g.Softmax | g.Multiply | g.RowMean, builder: ProgramBuilder
) -> tuple[Requantize, int]:
    """Return what becomes of an integer layer's accumulators, and the multiplier of all of them."""
    assert layer.integer is not None  # noqa: S101 - the caller has looked
    output, shape = layer.integer.output, builder.graph.tensors[layer.inputs[0]].shape
    fixed = requantization(np.array([factor_of(op, shape, layer.integer.inputs, output)]))
    return Requantize(fixed.shift, output.zero, -128, 127), int(fixed.multipliers[0])


def _matmul(layer: g.Layer, op: g.MatMul, builder: ProgramBuilder) -> None:
    left, right = (builder.row_major(name) for name in layer.inputs)
    *leading, rows, inner = left.tensor.shape
    sizes = prod(leading), rows, inner, right.tensor.shape[-1]
    spec = matmul.MatMul(*sizes, FloatClamp(None, None), multiplier=op.factor)
    if layer.integer:
        a, b = layer.integer.inputs
        epilogue, multiplier = _requantize(layer, op, builder)
        spec = matmul.MatMul(*sizes, epilogue, (a.zero, b.zero), multiplier)
    tile = integer_matmul.tile_of(spec, builder.vector)
    schedule, build = ("tiles", matmul.build) if tile is None else (tile.step, integer_matmul.build)
    kernel = Kernel("matmul", schedule, spec, build, spec.macs)
    _call(layer, kernel, [left.var, right.var], builder)


def _softmax(layer: g.Layer, op: g.Softmax, builder: ProgramBuilder) -> None:
    value = builder.row_major(layer.inputs[0])
    *leading, columns = value.tensor.shape
    operands = [value.var, *(builder.row_major(name).var for name in layer.inputs[1:])]
    if op.mask is not None:
        mask = op.mask.reshape(-1)
        operands.append(mask.clip(*LARGEST) if builder.vector.real == "float16" else mask)
    if layer.integer is None:
        spec = softmax.Softmax(prod(leading), columns, op.mask_rows)
        _call(layer, Kernel("softmax", "rows", spec, softmax.build), operands, builder)
        return
    epilogue, multiplier = _requantize(layer, op, builder)
    scale = layer.integer.inputs[0].scale
    flagged = op.by_flag is not None
    if op.by_flag is not None:
        operands.append(mask_steps(op.by_flag, scale).astype(np.int32).reshape(-1))
    integer = softmax.IntegerSoftmax(
        prod(leading), columns, epilogue, multiplier, op.mask_rows, scale, flagged
    )
    kernel = Kernel("softmax", "rows", integer, softmax.build_integer)
    _call(layer, kernel, [*operands, exponentials(scale)], builder)


def _layer_norm(layer: g.Layer, op: g.LayerNorm, builder: ProgramBuilder) -> None:
    value = builder.row_major(layer.inputs[0])
    *leading, columns = value.tensor.shape
    if layer.integer is None:
        spec = layer_norm.LayerNorm(prod(leading), columns, op.epsilon, one_gain=op.gain.size < columns)
        kernel = Kernel("layer_norm", "rows", spec, layer_norm.build)
        _call(layer, kernel, [value.var, op.gain, op.bias], builder)
        return
    op = replace(op, gain=np.broadcast_to(op.gain, columns), bias=np.broadcast_to(op.bias, columns))
    output = layer.integer.output
    by = normalization(columns, layer.integer.inputs[0].scale, op.epsilon)
    gain, bias = gains(op, by.unit, output)
    integer = layer_norm.IntegerLayerNorm(prod(leading), columns, by, gain.shift, output.zero)
    kernel = Kernel("layer_norm", "rows", integer, layer_norm.build_integer)
    _call(layer, kernel, [value.var, gain.multipliers, bias], builder)


def _row_mean(layer: g.Layer, op: g.RowMean, builder: ProgramBuilder) -> None:
    value = builder.row_major(layer.inputs[0])
    _, rows, columns = value.tensor.shape
    spec = pool.Mean(rows, 1, columns, (rows, 1), (1, 1), FloatClamp(None, None))
    if layer.integer:
        epilogue, multiplier = _requantize(layer, op, builder)
        start = -rows * layer.integer.inputs[0].zero
        spec = pool.Mean(rows, 1, columns, (rows, 1), (1, 1), epilogue, start, multiplier)
    _call(layer, Kernel("mean", "vector", spec, pool.build_mean), [value.var], builder)


def _add_constant(layer: g.Layer, op: g.AddConstant, builder: ProgramBuilder) -> None:
    assert layer.integer is not None  # noqa: S101 - in float it is generic
    value, origin, output = builder.row_major(layer.inputs[0]), layer.integer.inputs[0], layer.integer.output
    fixed, constants = constant_addition(op, origin, output)
    multiplier = int(fixed.multipliers[0])
    offset = (1 << (fixed.shift - 1)) - multiplier * origin.zero
    spec = elementwise.SumConstant(value.tensor.size, multiplier, offset, fixed.shift, output.zero)
    _call(
        layer, Kernel("add", "vector", spec, elementwise.build_sum_constant), [value.var, constants], builder
    )


def _multiply(layer: g.Layer, op: g.Multiply, builder: ProgramBuilder) -> None:
    assert layer.integer is not None  # noqa: S101 - products in float are generic
    left, right = (builder.value(name) for name in layer.inputs)
    spatial = len(left.tensor.shape) == 4
    if left.order != right.order or left.tensor.shape != right.tensor.shape:
        left, right = (
            builder.channels_last(name) if spatial else builder.row_major(name) for name in layer.inputs
        )
    a, b = layer.integer.inputs
    epilogue, multiplier = _requantize(layer, op, builder)
    size = left.tensor.size
    spec = elementwise.Product(size, size // right.tensor.size, (a.zero, b.zero), epilogue, multiplier)
    kernel = Kernel("multiply", "vector", spec, elementwise.build_product)
    var = builder.call(layer.name, kernel, [left.var, right.var], size, "int8")
    builder.define(layer.output, var, left.order)


def _call(layer: g.Layer, kernel: Kernel, arguments: list[Any], builder: ProgramBuilder) -> None:
    """Call a kernel whose result lies in row-major order."""
    size = builder.graph.tensors[layer.output].size
    var = builder.call(layer.name, kernel, arguments, size, builder.element(layer))
    builder.define(layer.output, var, None)


EMITTERS: Mapping[type, Callable[[g.Layer, Any, ProgramBuilder], None]] = MappingProxyType(
    {
        g.MatMul: _matmul,
        g.Softmax: _softmax,
        g.LayerNorm: _layer_norm,
        g.RowMean: _row_mean,
        g.Multiply: _multiply,
        g.AddConstant: _add_constant,
    }
)
"""What emits each operator."""
