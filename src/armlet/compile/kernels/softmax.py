"""Softmax of rows: real ones in float32, and int8 to int8 by a table of exponentials and one division for each row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from armlet.compile.kernels import epilogue as ep
from armlet.compile.kernels.functions import exp
from armlet.compile.kernels.loops import (
    LARGEST,
    Buffer,
    Expr,
    Parameter,
    Vector,
    cast,
    clamped,
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

if TYPE_CHECKING:
    import tvm


@dataclass(frozen=True, slots=True)
class Softmax:
    """Softmax of each row, of real numbers, computed in float32.

    Attributes:
        mask_rows: rows of a mask that are added to the rows over and over; 0 without one.
    """

    rows: int
    columns: int
    mask_rows: int = 0


@dataclass(frozen=True, slots=True)
class IntegerSoftmax:
    """Softmax of each row, int8 (`quantized.reference.softmax`).

    Attributes:
        epilogue: of shares in units of 2^-29.
        multiplier: of the epilogue.
        mask_rows: as of `Softmax`.
        scale: of x, which the mask is brought to.
        flagged: whether the mask is that of each column's flag, of two masks in steps of x.
    """

    rows: int
    columns: int
    epilogue: ep.Requantize
    multiplier: int
    mask_rows: int = 0
    scale: float = 1.0
    flagged: bool = False


def build(spec: Softmax, vector: Vector) -> tvm.tirx.PrimFunc:
    """Return the kernel (x, [mask], y)."""
    from tvm import tirx
    from tvm.script.ir_builder import tirx as t

    lanes, mask_rows = lanes_for(spec.columns, vector.lanes("float32")), spec.mask_rows or 1

    def body(given: Buffer, *rest: Buffer) -> None:
        y = rest[-1]
        masked = t.alloc_buffer((spec.columns,), "float32") if spec.mask_rows else None
        best, most, sums = registers(lanes, "float32"), registers(1, "float32"), registers(1, "float32")
        with (
            loop(spec.rows // mask_rows, parallel=True) as block,
            loop(mask_rows, parallel=True) as mask_row,
        ):
            start = (block * mask_rows + mask_row) * spec.columns
            if masked is not None:
                with tiles(spec.columns, lanes) as (_, at):
                    scores = load(given, start + at, lanes, "float32")
                    added = load(rest[0], mask_row * spec.columns + at, lanes, "float32")
                    # What a mask is in float16 may be -∞, and a row of such has no shares.
                    least = LARGEST[0] if vector.real == "float16" else None
                    store(masked, at, lanes, clamped(scores + added, least, None, "float32", lanes))
            x, first = (given, start) if masked is None else (masked, 0)
            store(best, 0, lanes, constant(float("-inf"), "float32", lanes))
            with tiles(spec.columns, lanes) as (_, at):
                score = load(x, first + at, lanes, "float32")
                store(best, 0, lanes, tirx.max(load(best, 0, lanes), score))
            store(most, 0, 1, best[0])
            for i in range(1, lanes):
                store(most, 0, 1, tirx.max(most[0], best[i]))
            with tiles(spec.columns, lanes) as (_, at):
                difference = load(x, first + at, lanes, "float32") - splat(most[0], lanes)
                store(y, start + at, lanes, cast(exp(difference, lanes), vector.real, lanes))
            total(sums, spec.columns, lanes, "float32", lambda at, n: load(y, start + at, n, "float32"))
            with loop(spec.columns) as at:
                share = load(y, start + at, 1, "float32") / sums[0]
                store(y, start + at, 1, cast(share, vector.real, 1))

    size, real = spec.rows * spec.columns, vector.real
    parameters = [Parameter("x", size, real), *_mask(spec, real), Parameter("y", size, real)]
    in_place = [0] if spec.mask_rows or meets_once(spec.columns, lanes) else []
    return prim_func(parameters, body, in_place)


def _mask(spec: Softmax | IntegerSoftmax, element: str) -> list[Parameter]:
    if isinstance(spec, IntegerSoftmax) and spec.flagged:
        steps = Parameter("steps", 2 * spec.mask_rows * spec.columns, "int32")
        return [Parameter("flags", spec.columns, "int8"), steps]
    return [Parameter("mask", spec.mask_rows * spec.columns, element)] if spec.mask_rows else []


def build_integer(spec: IntegerSoftmax, vector: Vector) -> tvm.tirx.PrimFunc:
    """Return the kernel (x, [mask or flags, steps], exponentials, y)."""
    from tvm import tirx
    from tvm.script.ir_builder import tirx as t

    lanes, mask_rows = lanes_for(spec.columns, vector.lanes("int16")), spec.mask_rows or 1

    def body(x: Buffer, *rest: Buffer) -> None:
        table, y = rest[-2:]
        moved = t.alloc_buffer((spec.columns,), "int32") if spec.mask_rows else None
        terms = t.alloc_buffer((spec.columns,), "int32")
        most, sums, reciprocal = registers(1, "int32"), registers(1, "int64"), registers(1, "int32")
        shares = registers(lanes, "int32")
        with (
            loop(spec.rows // mask_rows, parallel=True) as block,
            loop(mask_rows, parallel=True) as mask_row,
        ):
            start = (block * mask_rows + mask_row) * spec.columns

            def score(at: Expr) -> Expr:
                return cast(x[start + at], "int32", 1) if moved is None else moved[at]

            if moved is not None:
                with loop(spec.columns) as at:
                    place = mask_row * spec.columns + at
                    if spec.flagged:
                        steps = rest[1][cast(rest[0][at], "int32", 1) * mask_rows * spec.columns + place]
                    else:
                        steps = ep.in_steps(rest[0][place], spec.scale, (-(2.0**16), 2.0**16), 1)
                    store(moved, at, 1, cast(x[start + at], "int32", 1) + steps)
            store(most, 0, 1, constant(-(2**17), "int32", 1))
            with loop(spec.columns) as at:
                store(most, 0, 1, tirx.max(most[0], score(at)))
            store(sums, 0, 1, constant(0, "int64", 1))
            with loop(spec.columns) as at:
                below = most[0] - score(at)
                if moved is None:
                    store(terms, at, 1, table[below])
                else:
                    found = table[tirx.min(below, constant(255, "int32", 1))]
                    store(terms, at, 1, tirx.Select(below < 256, found, constant(0, "int32", 1)))
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
        *_mask(spec, "float32"),
        Parameter("exponentials", 256, "int32"),
        Parameter("y", size, "int8"),
    ]
    return prim_func(parameters, body, in_place=[0])  # a row is read before any of it is written
