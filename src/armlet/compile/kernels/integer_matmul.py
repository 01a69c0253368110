"""Products of two int8 values, matrix by matrix, by the instructions that add up several products.

They are those of a convolution whose weights are the second value: it is brought into the order that the instruction
takes, once for all rows of a batch. Zero points are taken off outside the loop:

    Σ_k (a - z_a) (b - z_b) = Σ_k a b - z_b Σ_k a - z_a Σ_k b + K z_a z_b
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from armlet.compile.kernels import conv2d
from armlet.compile.kernels import epilogue as ep
from armlet.compile.kernels.loops import (
    Buffer,
    Expr,
    Parameter,
    Vector,
    constant,
    lanes_for,
    load,
    loop,
    prim_func,
    registers,
    shuffle,
    splat,
    store,
    tiles,
    total,
)
from armlet.compile.kernels.matmul import MatMul
from armlet.compile.kernels.reduction import Place, Tile

if TYPE_CHECKING:
    import tvm

LEAST_ROWS = 4
"""With fewer, ordering the second value takes about as long as it saves; from here on, the models of Cortex-A76 and
Neoverse V1 have 0.2 to 0.9 times the cycles of plain multiplications."""


def tile_of(spec: MatMul, vector: Vector) -> Tile | None:
    """Choose the tile; None where no such instruction pays."""
    if not isinstance(spec.epilogue, ep.Requantize) or spec.rows < LEAST_ROWS:
        return None
    tile = conv2d.tile_of(_convolution(spec), vector)
    return replace(tile, packed=spec.columns) if tile.adjacent == tile.unit > 1 else None


def _convolution(spec: MatMul) -> conv2d.Conv2d:
    one = (1, 1)
    return conv2d.Conv2d(1, spec.rows, spec.inner, spec.columns, one, one, 1, spec.epilogue)


def build(spec: MatMul, vector: Vector) -> tvm.tirx.PrimFunc:
    """Return the kernel (a, b, y) for which `tile_of` has a tile."""
    from tvm.script.ir_builder import tirx as t

    tile, convolution = tile_of(spec, vector), _convolution(spec)
    assert tile is not None  # noqa: S101 - the caller has looked
    assert isinstance(spec.epilogue, ep.Requantize)  # noqa: S101 - or there were no tile
    epilogue, (zero_a, zero_b) = spec.epilogue, spec.zeros

    def body(a: Buffer, b: Buffer, y: Buffer) -> None:
        acc = registers(tile.pixels * tile.channels, "int32")
        weight = t.alloc_buffer((spec.columns * tile.steps(convolution) * tile.unit,), "int8")
        of_column = t.alloc_buffer((spec.columns,), "int32")
        of_row = t.alloc_buffer((spec.rows,), "int32") if zero_b else None
        with loop(spec.batches, parallel=True) as batch:
            rows, columns = batch * spec.rows * spec.inner, batch * spec.inner * spec.columns
            _order(spec, tile, (b, columns), weight)
            _column_terms(spec, (b, columns), of_column, zero_a + tile.offset)
            if of_row is not None:
                _row_terms(spec, (a, rows), of_row, vector)

            def begin(channel: Expr, row: Expr) -> Expr:
                term = load(of_column, channel, tile.lanes)
                return term if of_row is None else term + splat(of_row[row], tile.lanes)

            def finished(place: int, channel: Expr) -> Expr:
                del channel
                factor = int(spec.multiplier)
                return ep.finished(
                    epilogue, (acc, place), tile.lanes, lambda _, n: constant(factor, "int32", n), vector
                )

            result = batch * spec.rows * spec.columns
            conv2d.compute(convolution, tile, (a, weight, acc, y), begin, finished, (rows, 0, result))

    sizes = (spec.rows * spec.inner, spec.inner * spec.columns, spec.rows * spec.columns)
    names = zip("aby", sizes, strict=True)
    return prim_func([Parameter(name, spec.batches * size, "int8") for name, size in names], body)


def _order(spec: MatMul, tile: Tile, b: Place, weight: Buffer) -> None:
    """Store b as (step, column, unit); elements that the step before the last has are zero in it."""
    values, start = b
    lanes = lanes_for(spec.columns, 16)
    whole = spec.inner // tile.unit

    def one_step(number: Expr, first: Expr, missing: int) -> None:
        with tiles(spec.columns, lanes) as (_, column):
            rows = [constant(0, "int8", lanes)] * missing
            rows += [
                load(values, start + (first + k) * spec.columns + column, lanes)
                for k in range(missing, tile.unit)
            ]
            place = (number * spec.columns + column) * tile.unit
            store(weight, place, lanes * tile.unit, _interleaved(rows, lanes))

    with loop(whole) as number:
        one_step(number, number * tile.unit, 0)
    if spec.inner % tile.unit:
        first = spec.inner - tile.unit
        one_step(whole, first, whole * tile.unit - first)


def _interleaved(vectors: Sequence[Expr], lanes: int) -> Expr:
    """Return the first elements of all vectors, then the second ones, and so on; their number is a power of two."""
    if len(vectors) == 1:
        return vectors[0]
    halves = [_interleaved(vectors[begin::2], lanes) for begin in (0, 1)]
    n = lanes * len(vectors) // 2
    return shuffle(halves, [place for i in range(n) for place in (i, n + i)])


def _column_terms(spec: MatMul, b: Place, terms: Buffer, zero: int) -> None:
    """Store K z_a z_b - zero × Σ_k b for every column."""
    values, start = b
    lanes = lanes_for(spec.columns, 8)
    sums = registers(lanes, "int32")
    with tiles(spec.columns, lanes) as (_, column):
        store(sums, 0, lanes, constant(0, "int32", lanes))
        with loop(spec.inner) as k:
            element = load(values, start + k * spec.columns + column, lanes, "int32")
            store(sums, 0, lanes, load(sums, 0, lanes) + element)
        term = constant(spec.inner * spec.zeros[0] * spec.zeros[1], "int32", lanes)
        store(terms, column, lanes, term - load(sums, 0, lanes) * constant(zero, "int32", lanes))


def _row_terms(spec: MatMul, a: Place, terms: Buffer, vector: Vector) -> None:
    """Store -z_b × Σ_k a for every row."""
    values, start = a
    lanes = lanes_for(spec.inner, vector.lanes("int16"))
    result = registers(1, "int32")
    with loop(spec.rows) as row:
        place = start + row * spec.inner
        total(result, spec.inner, lanes, "int32", lambda at, n: load(values, place + at, n, "int32"))
        store(terms, row, 1, result[0] * constant(-spec.zeros[1], "int32", 1))
