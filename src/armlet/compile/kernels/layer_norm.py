"""Layer normalisation of rows: real ones in float32, int8 to int8 with the root of the variance found bit by bit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from armlet.compile.kernels import epilogue as ep
from armlet.compile.kernels.loops import (
    Buffer,
    Expr,
    Parameter,
    Vector,
    cast,
    constant,
    lanes_for,
    load,
    loop,
    meets_once,
    prim_func,
    registers,
    splat,
    store,
    tiles,
    total,
)
from armlet.compile.quantized.reference import Normalization

if TYPE_CHECKING:
    import tvm

_ROOT_BITS = 31
"""Bits of the largest root: what it is taken of is below 2^62."""


@dataclass(frozen=True, slots=True)
class LayerNorm:
    """Normalisation of each row, of real numbers, computed in float32.

    Attributes:
        one_gain: whether there is one gain and one bias for all columns.
    """

    rows: int
    columns: int
    epsilon: float
    one_gain: bool = False


@dataclass(frozen=True, slots=True)
class IntegerLayerNorm:
    """Normalisation of each row, int8 (`quantized.reference.normalize`, `affine`).

    Attributes:
        shift: of the gains.
        zero: zero point of the output.
    """

    rows: int
    columns: int
    normalization: Normalization
    shift: int
    zero: int


def build(spec: LayerNorm, vector: Vector) -> tvm.tirx.PrimFunc:
    """Return the kernel (x, gain, bias, y)."""
    from tvm import tirx

    columns, lanes = spec.columns, lanes_for(spec.columns, vector.lanes("float32"))

    def of_column(values: Buffer, at: Expr) -> Expr:
        if spec.one_gain:
            return splat(load(values, 0, 1, "float32"), lanes)
        return load(values, at, lanes, "float32")

    def body(x: Buffer, gain: Buffer, bias: Buffer, y: Buffer) -> None:
        mean, factor = registers(1, "float32"), registers(1, "float32")
        with loop(spec.rows, parallel=True) as row:
            start = row * columns

            def centred(at: Expr, n: int) -> Expr:
                return load(x, start + at, n, "float32") - splat(mean[0], n)

            total(mean, columns, lanes, "float32", lambda at, n: load(x, start + at, n, "float32"))
            store(mean, 0, 1, mean[0] / constant(float(columns), "float32", 1))
            total(factor, columns, lanes, "float32", lambda at, n: centred(at, n) * centred(at, n))
            variance = factor[0] / constant(float(columns), "float32", 1) + constant(
                spec.epsilon, "float32", 1
            )
            store(factor, 0, 1, constant(1.0, "float32", 1) / tirx.sqrt(variance))
            with tiles(columns, lanes) as (_, at):
                normal = centred(at, lanes) * splat(factor[0], lanes)
                scaled = normal * of_column(gain, at) + of_column(bias, at)
                store(y, start + at, lanes, cast(scaled, vector.real, lanes))

    size = spec.rows * columns
    of_columns = 1 if spec.one_gain else columns
    parameters = [("x", size), ("gain", of_columns), ("bias", of_columns), ("y", size)]
    in_place = [0] if meets_once(columns, lanes) else []
    return prim_func([Parameter(name, n, vector.real) for name, n in parameters], body, in_place)


def build_integer(spec: IntegerLayerNorm, vector: Vector) -> tvm.tirx.PrimFunc:
    """Return the kernel (x, gain, bias, y)."""
    columns, by = spec.columns, spec.normalization
    lanes = lanes_for(columns, vector.lanes("int16"))
    part = min(lanes, 4)

    def body(x: Buffer, gain: Buffer, bias: Buffer, y: Buffer) -> None:
        sums, squares = registers(1, "int32"), registers(1, "int32")
        root, reciprocal, done = registers(1, "int64"), registers(1, "int32"), registers(lanes, "int32")
        with loop(spec.rows, parallel=True) as row:
            start = row * columns
            store(sums, 0, 1, constant(0, "int32", 1))
            store(squares, 0, 1, constant(0, "int32", 1))
            with loop(columns) as at:
                value = cast(x[start + at], "int32", 1)
                store(sums, 0, 1, sums[0] + value)
                store(squares, 0, 1, squares[0] + value * value)
            _write_reciprocal(by, columns, (sums, squares), (root, reciprocal))
            with tiles(columns, lanes) as (_, at):
                for i in range(0, lanes, part):
                    wide = load(x, start + at + i, part, "int32") * constant(columns, "int32", part)
                    centred = (wide - splat(sums[0], part)) << constant(by.input_shift, "int32", part)
                    normal = ep.shifted_product(centred, splat(reciprocal[0], part), 31, part, vector)
                    scaled = ep.shifted_product(normal, load(gain, at + i, part), spec.shift, part, vector)
                    rounded = scaled + load(bias, at + i, part) + constant(32, "int32", part)
                    store(done, i, part, rounded >> constant(6, "int32", part))
                store(y, start + at, lanes, ep.to_int8(load(done, 0, lanes), spec.zero, (-128, 127), lanes))

    size = spec.rows * columns
    parameters = [
        ("x", size, "int8"),
        ("gain", columns, "int32"),
        ("bias", columns, "int32"),
        ("y", size, "int8"),
    ]
    in_place = [0] if meets_once(columns, lanes) else []
    return prim_func([Parameter(*p) for p in parameters], body, in_place)


def _write_reciprocal(
    by: Normalization, columns: int, sums: tuple[Buffer, Buffer], results: tuple[Buffer, Buffer]
) -> None:
    """Write one over the root of the variance, from the sums of a row and of its squares."""
    from tvm import tirx

    def number(value: int) -> Expr:
        return tirx.const(value, "int64")

    root, reciprocal = results
    spread = registers(1, "int64")
    once, squared = (cast(s[0], "int64", 1) for s in sums)
    value = squared * number(columns) - once * once
    store(spread, 0, 1, (value << number(by.root_shift)) + number(by.epsilon))
    store(root, 0, 1, number(0))
    with loop(_ROOT_BITS) as i:
        candidate = root[0] + (number(1) << (number(_ROOT_BITS - 1) - cast(i, "int64", 1)))
        store(root, 0, 1, tirx.Select(candidate * candidate <= spread[0], candidate, root[0]))
    quotient = tirx.truncdiv(number(1 << by.reciprocal_shift), root[0])
    store(reciprocal, 0, 1, cast(tirx.min(quotient, number(2**31 - 1)), "int32", 1))
