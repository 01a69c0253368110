"""Which tokens lie before a length, hiding the others, and the mean of as many: int8 throughout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from armlet.compile.kernels import epilogue as ep
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
)

if TYPE_CHECKING:
    import tvm


@dataclass(frozen=True, slots=True)
class Flags:
    """int32 [1] to int8 [size]: 1 where a start is below the length, else 0."""

    size: int


@dataclass(frozen=True, slots=True)
class Hide:
    """int8 [rows, columns]: x in rows whose flag is 1, the zero point in rows whose flag is 0."""

    rows: int
    columns: int
    zero: int


@dataclass(frozen=True, slots=True)
class CountedMean:
    """int8 [rows, columns] to [columns]: requantised sums, with the multiplier of a number.

    Attributes:
        zero: zero point of x.
        epilogue: of the sums.
        numbers: elements whose sum is that number, which is taken into 1 ... `most`.
        dtype: theirs: "int8" flags, or one "int32" length.
    """

    rows: int
    columns: int
    zero: int
    epilogue: ep.Requantize
    most: int
    numbers: int
    dtype: str


def build_flags(spec: Flags, vector: Vector) -> tvm.tirx.PrimFunc:
    """Return the kernel (length, starts, flags)."""
    del vector
    from tvm import tirx

    def body(length: Buffer, starts: Buffer, y: Buffer) -> None:
        one, none = (constant(n, "int8", 1) for n in (1, 0))
        with loop(spec.size) as at:
            store(y, at, 1, tirx.Select(starts[at] < length[0], one, none))

    parameters = [Parameter("length", 1, "int32"), Parameter("starts", spec.size, "int32")]
    return prim_func([*parameters, Parameter("flags", spec.size, "int8")], body)


def build_hide(spec: Hide, vector: Vector) -> tvm.tirx.PrimFunc:
    """Return the kernel (x, flags, y): x × flag + zero × (1 - flag)."""
    lanes = lanes_for(spec.columns, vector.lanes("int8"))

    def body(x: Buffer, flags: Buffer, y: Buffer) -> None:
        zero = constant(spec.zero, "int8", lanes)
        with (
            loop(spec.rows, parallel=True) as row,
            tiles(spec.columns, lanes, parallel=True) as (_, column),
        ):
            at = row * spec.columns + column
            flag = splat(flags[row], lanes)
            store(y, at, lanes, load(x, at, lanes) * flag + zero * (constant(1, "int8", lanes) - flag))

    size = spec.rows * spec.columns
    parameters = [Parameter("x", size, "int8"), Parameter("flags", spec.rows, "int8")]
    return prim_func([*parameters, Parameter("y", size, "int8")], body)


def build_counted_mean(spec: CountedMean, vector: Vector) -> tvm.tirx.PrimFunc:
    """Return the kernel (x, numbers, multipliers, y)."""
    from tvm import tirx

    lanes = lanes_for(spec.columns, ep.width(spec.epilogue, vector))

    def body(x: Buffer, numbers: Buffer, multipliers: Buffer, y: Buffer) -> None:
        number, total = registers(1, "int32"), registers(lanes, "int32")
        store(number, 0, 1, constant(0, "int32", 1))
        with loop(spec.numbers) as at:
            store(number, 0, 1, number[0] + cast(numbers[at], "int32", 1))
        place = tirx.max(tirx.min(number[0], constant(spec.most, "int32", 1)), constant(1, "int32", 1)) - 1
        store(number, 0, 1, multipliers[place])
        with tiles(spec.columns, lanes) as (_, column):
            store(total, 0, lanes, constant(-spec.rows * spec.zero, "int32", lanes))
            with loop(spec.rows) as row:
                value = load(x, row * spec.columns + column, lanes, "int32")
                store(total, 0, lanes, load(total, 0, lanes) + value)
            done = ep.finished(spec.epilogue, (total, 0), lanes, lambda _, n: splat(number[0], n), vector)
            store(y, column, lanes, done)

    parameters = [
        Parameter("x", spec.rows * spec.columns, "int8"),
        Parameter("numbers", spec.numbers, spec.dtype),
        Parameter("multipliers", spec.most, "int32"),
        Parameter("y", spec.columns, "int8"),
    ]
    return prim_func(parameters, body)
