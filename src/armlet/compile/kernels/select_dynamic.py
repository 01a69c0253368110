"""Calls the kernels of layers whose input is quantised while the program runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from types import MappingProxyType
from typing import Any

import numpy as np

from armlet.compile.frontend import graph as g
from armlet.compile.kernels import conv2d, dynamic
from armlet.compile.kernels.epilogue import FloatClamp
from armlet.compile.layout.order import permuted_columns
from armlet.compile.layout.packing import pack_conv2d
from armlet.compile.layout.program import Kernel, ProgramBuilder


def emit_dense(layer: g.Layer, op: g.Dense, builder: ProgramBuilder) -> None:
    """Call the product of a value that is quantised by now: the layer's inputs are its integers and their range."""
    rows = prod(builder.graph.tensors[layer.inputs[0]].shape[:-1])
    source = builder.value(layer.inputs[0]) if rows == 1 else builder.row_major(layer.inputs[0])
    if len(source.tensor.shape) == 4:
        source = builder.row_major(layer.inputs[0])
    assert op.weight.scale is not None  # noqa: S101 - `frontend.dynamic` gives it
    weight = permuted_columns(op.weight.values, source.order)
    outputs, inputs = weight.shape
    clamp = FloatClamp(op.clamp.low, op.clamp.high)
    spec = dynamic.Dense(rows, inputs, outputs, clamp, bool(weight.min() == -128))
    tile = conv2d.tile_of(spec.products, builder.vector)
    minus = -weight.astype(np.int32).sum(1, dtype=np.int32)
    constants = [pack_conv2d(weight[:, :, None, None], spec.products, tile), minus]
    constants += [op.weight.scale.astype(np.float32), op.bias.real().astype(np.float32)]
    kernel = Kernel(
        "dynamic_dense", tile.step, spec, dynamic.build_dense, spec.products.macs, precision="int8"
    )
    found = builder.value(layer.inputs[1]).var
    var = builder.call(layer.name, kernel, [source.var, found, *constants], rows * outputs, "float32")
    builder.define(layer.output, var, None)


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
