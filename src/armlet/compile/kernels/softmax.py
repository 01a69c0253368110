"""Softmax of rows: in float32, and from int8 to int8 by a table of exponentials and one division for each row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from armlet.compile.kernels import epilogue as ep
from armlet.compile.kernels.functions import exp
from armlet.compile.kernels.loops import (
    Buffer,
    Parameter,
    Vector,
    cast,
    constant,
    lanes_for,
    load,
    loop,
    prim_func,
    registers,
    splat,
    store,
    tiles,
    total,
)

if TYPE_CHECKING:
    import tvm


@dataclass(frozen=True, slots=True)
class Softmax:
    """Softmax of each row, float32."""

    rows: int
    columns: int


@dataclass(frozen=True, slots=True)
class IntegerSoftmax:
    """Softmax of each row, int8 (`quantized.reference.softmax`).

    Attributes:
        epilogue: of shares in units of 2^-29.
        multiplier: of the epilogue.
    """

    rows: int
    columns: int
    epilogue: ep.Requantize
    multiplier: int


def build(spec: Softmax, vector: Vector) -> tvm.tirx.PrimFunc:
    """Return the kernel (x, y)."""
    from tvm import tirx

    lanes = lanes_for(spec.columns, vector.lanes("float32"))

    def body(x: Buffer, y: Buffer) -> None:
        best, most, sums = registers(lanes, "float32"), registers(1, "float32"), registers(1, "float32")
        with loop(spec.rows) as row:
            start = row * spec.columns
            store(best, 0, lanes, constant(float("-inf"), "float32", lanes))
            with tiles(spec.columns, lanes) as (_, at):
                store(best, 0, lanes, tirx.max(load(best, 0, lanes), load(x, start + at, lanes)))
            store(most, 0, 1, best[0])
            for i in range(1, lanes):
                store(most, 0, 1, tirx.max(most[0], best[i]))
            with tiles(spec.columns, lanes) as (_, at):
                difference = load(x, start + at, lanes) - splat(most[0], lanes)
                store(y, start + at, lanes, exp(difference, lanes))
            total(sums, spec.columns, lanes, "float32", lambda at, n: load(y, start + at, n))
            with loop(spec.columns) as at:
                store(y, start + at, 1, y[start + at] / sums[0])

    size = spec.rows * spec.columns
    return prim_func([Parameter("x", size, "float32"), Parameter("y", size, "float32")], body)


def build_integer(spec: IntegerSoftmax, vector: Vector) -> tvm.tirx.PrimFunc:
    """Return the kernel (x, exponentials, y)."""
    from tvm import tirx
    from tvm.script.ir_builder import tirx as t

    lanes = lanes_for(spec.columns, vector.lanes("int16"))

    def body(x: Buffer, table: Buffer, y: Buffer) -> None:
        terms = t.alloc_buffer((spec.columns,), "int32")
        most, sums, reciprocal = registers(1, "int32"), registers(1, "int64"), registers(1, "int32")
        shares = registers(lanes, "int32")
        with loop(spec.rows) as row:
            start = row * spec.columns
            store(most, 0, 1, constant(-128, "int32", 1))
            with loop(spec.columns) as at:
                store(most, 0, 1, tirx.max(most[0], cast(x[start + at], "int32", 1)))
            store(sums, 0, 1, constant(0, "int64", 1))
            with loop(spec.columns) as at:
                store(terms, at, 1, table[most[0] - cast(x[start + at], "int32", 1)])
                store(sums, 0, 1, sums[0] + cast(terms[at], "int64", 1))
            quotient = tirx.truncdiv(tirx.const(2**60, "int64"), sums[0])
            store(reciprocal, 0, 1, cast(quotient, "int32", 1))
            with tiles(spec.columns, lanes) as (_, at):
                for i in range(0, lanes, min(lanes, 4)):
                    n = min(lanes, 4)
                    high = ep.shifted_product(load(terms, at + i, n), splat(reciprocal[0], n), 31, n, vector)
                    store(shares, i, n, high)
                multiplier = spec.multiplier
                done = ep.finished(
                    spec.epilogue, (shares, 0), lanes, lambda _, n: constant(multiplier, "int32", n), vector
                )
                store(y, start + at, lanes, done)

    size = spec.rows * spec.columns
    parameters = [
        Parameter("x", size, "int8"),
        Parameter("exponentials", 256, "int32"),
        Parameter("y", size, "int8"),
    ]
    return prim_func(parameters, body)
