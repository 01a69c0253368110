"""Products of two values, matrix by matrix: what attention multiplies queries with keys, and shares with values by.

A tile of a few rows and one or two vectors of columns stays in registers while the loop runs over what is summed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from armlet.compile.kernels import epilogue as ep
from armlet.compile.kernels.choices import Choice, Tunable, shape_of
from armlet.compile.kernels.loops import (
    LONGEST_SUM,
    Buffer,
    Expr,
    Parameter,
    Vector,
    added_apart,
    cast,
    constant,
    lanes_for,
    load,
    loop,
    parts,
    prim_func,
    registers,
    splat,
    store,
    tiles,
)

if TYPE_CHECKING:
    import tvm


@dataclass(frozen=True, slots=True)
class MatMul:
    """[batches, rows, inner] × [batches, inner, columns], times a factor.

    Attributes:
        epilogue: what becomes of an accumulator; int8 operands have an int8 result.
        zeros: zero points of both operands.
        multiplier: of the requantization, or the factor of a product of real numbers.
    """

    batches: int
    rows: int
    inner: int
    columns: int
    epilogue: ep.Epilogue
    zeros: tuple[int, int] = (0, 0)
    multiplier: float = 1.0

    @property
    def macs(self) -> int:
        """Multiply-accumulates."""
        return self.batches * self.rows * self.inner * self.columns


def _tile_of(spec: MatMul, native: int, vector: Vector) -> Choice:
    """Choose the rows and columns of a tile, given how many sums a register holds."""
    lanes = lanes_for(spec.columns, 2 * native)
    step = min(lanes, native)
    formula = min(spec.rows, max(vector.n_registers // 2 * step // lanes, 1), 4), lanes
    candidates = tuple(
        (rows, columns)
        for rows in range(1, min(spec.rows, 8) + 1)
        for columns in dict.fromkeys(lanes_for(spec.columns, n * native) for n in (1, 2, 4))
        if rows * columns <= native * vector.n_registers * 7 // 8
    )
    key = (
        f"matmul {ep.element(spec.epilogue, vector)}, {vector.unit}: {spec.batches} of"
        f" {shape_of(spec.rows, spec.inner)} by {shape_of(spec.inner, spec.columns)}"
    )
    return vector.tiles.choose(Tunable(key, spec, vector, build, formula, candidates))


def build(spec: MatMul, vector: Vector) -> tvm.tirx.PrimFunc:
    """Return the kernel (a, b, y)."""
    element, acc_type = (
        ep.element(spec.epilogue, vector),
        ep.accumulator(spec.epilogue, vector, spec.inner),
    )
    apart = acc_type == "float32" != element
    adds = element if apart else acc_type
    height, lanes = _tile_of(spec, vector.lanes(adds), vector)

    def value(read: Expr, zero: int, n: int) -> Expr:
        """Return an operand less its zero point; int16 times int16 is what widening multiplications take."""
        if not ep.multiplies_integers(spec.epilogue):
            return read
        return cast(cast(read, "int16", n) - constant(zero, "int16", n), "int32", n)

    def body(a: Buffer, b: Buffer, y: Buffer) -> None:
        acc = registers(height * lanes, acc_type)
        sums = registers(height * lanes, element) if apart else acc
        with (
            loop(spec.batches, parallel=True) as batch,
            tiles(spec.rows, height, parallel=True) as (_, row),
            tiles(spec.columns, lanes, parallel=True) as (_, column),
        ):
            first = batch * spec.rows + row
            for i in range(height):
                store(acc, i * lanes, lanes, constant(0, acc_type, lanes))
            with (
                parts(spec.inner, LONGEST_SUM if apart else spec.inner) as (begin, n),
                added_apart(sums, acc, lanes, apart=apart),
                loop(n) as number,
            ):
                k = begin + number
                place = (batch * spec.inner + k) * spec.columns + column
                for i in range(height):
                    left = splat(value(a[(first + i) * spec.inner + k], spec.zeros[0], 1), lanes)
                    product = left * value(load(b, place, lanes), spec.zeros[1], lanes)
                    store(sums, i * lanes, lanes, load(sums, i * lanes, lanes) + product)
            for i in range(height):
                store(
                    y,
                    (first + i) * spec.columns + column,
                    lanes,
                    _finished(spec, acc, i * lanes, lanes, vector),
                )

    sizes = (spec.rows * spec.inner, spec.inner * spec.columns, spec.rows * spec.columns)
    names = zip("aby", sizes, strict=True)
    return prim_func([Parameter(name, spec.batches * size, element) for name, size in names], body)


def _finished(spec: MatMul, acc: Buffer, at: int, lanes: int, vector: Vector) -> Expr:
    if isinstance(spec.epilogue, ep.FloatClamp):
        total = load(acc, at, lanes)
        if spec.multiplier != 1:
            total = total * constant(spec.multiplier, str(acc.dtype), lanes)
        return total if str(acc.dtype) == vector.real else cast(total, vector.real, lanes)
    return ep.finished(
        spec.epilogue, (acc, at), lanes, lambda _, n: constant(int(spec.multiplier), "int32", n), vector
    )
