"""Chooses the kernels of what depends on a length; `select` does the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from armlet.compile.frontend import graph as g
from armlet.compile.kernels import lengths
from armlet.compile.kernels.epilogue import Requantize
from armlet.compile.layout.program import Kernel, ProgramBuilder
from armlet.compile.quantized.arithmetic import counted


def _flags(layer: g.Layer, op: g.Flags, builder: ProgramBuilder) -> None:
    kernel = Kernel("flags", "scalar", lengths.Flags(op.starts.size), lengths.build_flags)
    operands = [builder.row_major(layer.inputs[0]).var, op.starts]
    builder.define(layer.output, builder.call(layer.name, kernel, operands, op.starts.size, "int8"), None)


def _hide(layer: g.Layer, op: g.Hide, builder: ProgramBuilder) -> None:
    del op
    assert layer.integer is not None  # noqa: S101 - it is nothing in float
    value, flags = (builder.row_major(name) for name in layer.inputs)
    rows, size = flags.tensor.size, value.tensor.size
    spec = lengths.Hide(rows, size // rows, layer.integer.output.zero)
    kernel = Kernel("hide", "rows", spec, lengths.build_hide)
    var = builder.call(layer.name, kernel, [value.var, flags.var], size, "int8")
    builder.define(layer.output, var, None)


def _counted_mean(layer: g.Layer, op: g.CountedMean, builder: ProgramBuilder) -> None:
    assert layer.integer is not None  # noqa: S101 - it is nothing in float
    value, numbers = (builder.row_major(name) for name in layer.inputs)
    (origin,), output = layer.integer.inputs, layer.integer.output
    _, rows, columns = value.tensor.shape
    factors = counted(op, origin, output)
    done = Requantize(factors.shift, output.zero, -128, 127)
    given = numbers.tensor
    spec = lengths.CountedMean(rows, columns, origin.zero, done, op.most, given.size, given.dtype)
    kernel = Kernel("mean", "vector", spec, lengths.build_counted_mean)
    operands = [value.var, numbers.var, factors.multipliers]
    builder.define(layer.output, builder.call(layer.name, kernel, operands, columns, "int8"), None)


EMITTERS: Mapping[type, Callable[[g.Layer, Any, ProgramBuilder], None]] = MappingProxyType(
    {g.Flags: _flags, g.Hide: _hide, g.CountedMean: _counted_mean}
)
"""What emits each operator."""
