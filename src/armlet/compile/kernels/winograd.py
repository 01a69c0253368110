"""3 × 3 convolution of stride 1 by Winograd's minimal filtering: tiles of the output from fewer products.

A tile of m × m outputs needs α × α inputs, α = m + 2. Tile and weights are transformed, multiplied element by element
summed over the channels (α² matrix products), and the sums transformed back: α² products where m² × 9 were, 2.25 times
fewer for m = 2 and 4 times for m = 4. Weights are transformed when the program is compiled (`transformed`).

The last tile of a row or column is moved back so that it ends at the edge.

Source: Lavin and Gray 2015, from Winograd 1980. Points of evaluation: 0, ±1, ∞ for m = 2; 0, ±√2, ±1/√2, ∞ for m = 4,
whose transforms amplify rounding errors less than those of 0, ±1, ±2, ∞ do (Barabasz et al. 2020).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from math import prod, sqrt
from operator import add
from typing import TYPE_CHECKING

import numpy as np

from armlet.compile.frontend.values import Array
from armlet.compile.kernels import conv2d
from armlet.compile.kernels import epilogue as ep
from armlet.compile.kernels.border import Border, pixel_of
from armlet.compile.kernels.loops import (
    Buffer,
    Expr,
    Parameter,
    Vector,
    cast,
    ceil_div,
    clamped,
    constant,
    lanes_for,
    load,
    loop,
    minimum,
    prim_func,
    registers,
    store,
    tiles,
)

if TYPE_CHECKING:
    import tvm

LARGEST_TILE = {"float32": 4, "float16": 2}
"""The largest m by the type of numbers: a layer in float16 is off by 0.2 % (root mean square) for 2, 0.5 % for 4."""
PAIRS = {2: (1.0,), 4: (sqrt(2), sqrt(0.5))}
"""Points ±p of evaluation beside 0 and ∞, by m."""
WORKING_BYTES = 1 << 16
"""About the most bytes of transformed inputs and sums at a time, as caches are small."""
MOST_TILES = 18
"""Of a block that needs more than that."""
READING = 1
"""Tiles' products in the time that reading the weights takes, once for each block."""
PIXELS = (4, 5, 6)
"""How many tiles' products are computed together, about, where there are as many."""


@dataclass(frozen=True, slots=True)
class Winograd:
    """One kernel: everything that its code depends on.

    Attributes:
        height, width, channels: of the padded input.
        outputs: output channels.
        tile: m, the height and width of a tile of the output; no more than the output's.
        epilogue: limits of the result.
        border: around the output; None where there is none.
    """

    height: int
    width: int
    channels: int
    outputs: int
    tile: int
    epilogue: ep.FloatClamp
    border: Border | None = None

    @property
    def out_height(self) -> int:
        """Rows of the output."""
        return self.height - 2

    @property
    def out_width(self) -> int:
        """Columns of the output."""
        return self.width - 2

    @property
    def alpha(self) -> int:
        """Height and width of a tile of the input."""
        return self.tile + 2

    @property
    def columns(self) -> int:
        """Tiles in a row of tiles."""
        return ceil_div(self.out_width, self.tile)

    @property
    def n_tiles(self) -> int:
        """Tiles of the output."""
        return ceil_div(self.out_height, self.tile) * self.columns

    @property
    def block(self) -> int:
        """Tiles that are computed together: those of which the fewest are computed twice, with the weights' reading."""
        most = max(WORKING_BYTES // (4 * self.alpha**2 * (self.channels + self.outputs)), MOST_TILES)
        blocks = {ceil_div(self.n_tiles, ceil_div(self.n_tiles, n)) for n in range(1, most + 1)}

        def cost(block: int) -> int:
            rows = min(ceil_div(block, n) * n for n in PIXELS) if block >= PIXELS[0] else block
            return ceil_div(self.n_tiles, block) * (rows + READING)

        return min(blocks, key=lambda block: (cost(block), block))

    @property
    def products(self) -> conv2d.Conv2d:
        """One of the α² matrix products of a block, as a 1 × 1 convolution."""
        sizes = 1, self.block, self.channels, self.outputs
        return conv2d.Conv2d(*sizes, (1, 1), (1, 1), 1, ep.FloatClamp(None, None))

    @property
    def meets_once(self) -> bool:
        """Whether each output is in one tile only: another tile's would differ in its last bits."""
        return self.out_height % self.tile == 0 and self.out_width % self.tile == 0

    @property
    def out_size(self) -> int:
        """Elements of the output and its border."""
        n_pixels = self.out_height * self.out_width if self.border is None else self.border.n_pixels
        return n_pixels * self.outputs

    @property
    def macs(self) -> int:
        """Multiply-accumulates that the layer asks for: more than there are products."""
        return self.out_height * self.out_width * self.outputs * self.channels * 9


def transformed(weight: Array, tile: int) -> Array:
    """Return weights [outputs, channels, 3, 3] as those of the products: [α², outputs, channels, 1, 1], float32."""
    points = [0.0, *(sign * p for p in PAIRS[tile] for sign in (1, -1))]
    rows = [np.array([1, a, a * a]) / prod(a - b for b in points if b != a) for a in points]
    matrix = np.array([*rows, [0, 0, 1]])
    found = np.einsum("ai,bj,ocij->aboc", matrix, matrix, weight.astype(np.float64))
    each: Array = found.reshape(-1, *weight.shape[:2], 1, 1).astype(np.float32)
    return each


def build(spec: Winograd, vector: Vector) -> tvm.tirx.PrimFunc:
    """Return the kernel (x, weight, bias, y): x channels last with its border, weight packed for each product."""
    from tvm.script.ir_builder import tirx as t

    products, real = spec.products, vector.real
    tile = conv2d.tile_of(products, vector)
    acc_type = ep.accumulator(products.epilogue, vector, spec.channels)
    n_weights = conv2d.n_packed(products, tile)

    def body(x: Buffer, weight: Buffer, bias: Buffer, y: Buffer) -> None:
        n_positions = spec.alpha**2
        values = t.alloc_buffer((n_positions * spec.block * spec.channels,), real)
        sums = t.alloc_buffer((n_positions * spec.block * spec.outputs,), real)
        acc = registers(tile.pixels * tile.channels, acc_type)
        lanes = lanes_for(max(spec.channels, spec.outputs), vector.lanes(real))
        work = registers(spec.alpha**2 * lanes, real), registers(spec.alpha * lanes, real)
        if spec.border is not None:
            spec.border.fill(y, spec.outputs, vector)
        with tiles(spec.n_tiles, spec.block, parallel=spec.meets_once) as (_, first):
            with loop(spec.block) as number:
                _transform_inputs(spec, vector, (x, values), work, (first, number))
            with loop(n_positions) as position:
                each = spec.block * spec.channels, n_weights, spec.block * spec.outputs
                conv2d.compute(
                    products,
                    tile,
                    (values, weight, acc, sums),
                    lambda _channel, _window: constant(0.0, acc_type, tile.lanes),
                    lambda place, _: cast(load(acc, place, tile.lanes), real, tile.lanes),
                    tuple(position * size for size in each),
                )
            with loop(spec.block) as number:
                _transform_sums(spec, vector, (sums, bias, y), work, (first, number))

    return prim_func(
        [
            Parameter("x", spec.height * spec.width * spec.channels, real),
            Parameter("weight", spec.alpha**2 * n_weights, real),
            Parameter("bias", spec.outputs, real),
            Parameter("y", spec.out_size, real),
        ],
        body,
        independent=True,
    )


def _corner(spec: Winograd, number: Expr) -> tuple[Expr, Expr]:
    """Return the row and column of the output at which a tile begins."""
    return (
        minimum(number // spec.columns * spec.tile, spec.out_height - spec.tile),
        minimum(number % spec.columns * spec.tile, spec.out_width - spec.tile),
    )


def _transform_inputs(
    spec: Winograd,
    vector: Vector,
    buffers: tuple[Buffer, Buffer],
    work: tuple[Buffer, Buffer],
    place: tuple[Expr, Expr],
) -> None:
    """Write the transform of a tile's inputs: x[row, column, channel] -> values[position, number, channel]."""
    (x, values), (half, line), (first, number) = buffers, work, place
    row, column = _corner(spec, first + number)
    alpha, lanes = spec.alpha, lanes_for(spec.channels, vector.lanes(vector.real))
    with tiles(spec.channels, lanes) as (_, channel):
        corner = (row * spec.width + column) * spec.channels + channel
        for j in range(alpha):
            for i in range(alpha):
                store(line, i * lanes, lanes, load(x, corner + (i * spec.width + j) * spec.channels, lanes))
            for i, value in enumerate(_to_points(spec.tile, line, lanes)):
                store(half, (i * alpha + j) * lanes, lanes, value)
        for i in range(alpha):
            for j in range(alpha):
                store(line, j * lanes, lanes, load(half, (i * alpha + j) * lanes, lanes))
            for j, value in enumerate(_to_points(spec.tile, line, lanes)):
                at = ((i * alpha + j) * spec.block + number) * spec.channels + channel
                store(values, at, lanes, value)


def _transform_sums(
    spec: Winograd,
    vector: Vector,
    buffers: tuple[Buffer, Buffer, Buffer],
    work: tuple[Buffer, Buffer],
    place: tuple[Expr, Expr],
) -> None:
    """Write the transform of a tile's sums: sums[position, number, channel] -> y[row, column, channel]."""
    (sums, bias, y), (half, line), (first, number) = buffers, work, place
    row, column = _corner(spec, first + number)
    alpha, lanes = spec.alpha, lanes_for(spec.outputs, vector.lanes(vector.real))
    with tiles(spec.outputs, lanes) as (_, channel):
        corner = pixel_of(spec.border, row, column, spec.out_width) * spec.outputs + channel
        width = spec.out_width if spec.border is None else spec.border.width
        for j in range(alpha):
            for i in range(alpha):
                at = ((i * alpha + j) * spec.block + number) * spec.outputs + channel
                store(line, i * lanes, lanes, load(sums, at, lanes))
            for i, value in enumerate(_from_points(spec.tile, line, lanes)):
                store(half, (i * alpha + j) * lanes, lanes, value)
        for i in range(spec.tile):
            for j in range(alpha):
                store(line, j * lanes, lanes, load(half, (i * alpha + j) * lanes, lanes))
            for j, value in enumerate(_from_points(spec.tile, line, lanes)):
                value = value + load(bias, channel, lanes)
                value = clamped(value, spec.epilogue.low, spec.epilogue.high, vector.real, lanes)
                store(y, corner + (i * width + j) * spec.outputs, lanes, value)


def _to_points(tile: int, line: Buffer, lanes: int) -> list[Expr]:
    """Return Bᵀd of α vectors d: at each point a the coefficients of M(x) / (x - a), at ∞ those of M(x).

    M(x) = x Π (x² - p²) has the finite points as its zeros. At a pair ±p the terms of even and odd powers are shared.
    """
    squares = [p * p for p in PAIRS[tile]]
    whole = _product(squares)  # of Π (x² - p²), powers of x²
    result = [_sum(line, lanes, {2 * k: c for k, c in enumerate(whole)})]
    for p in PAIRS[tile]:
        others = _product([s for s in squares if s != p * p])
        even = _sum(line, lanes, {2 * k + 2: c for k, c in enumerate(others)})
        odd = _sum(line, lanes, {2 * k + 1: p * c for k, c in enumerate(others)})
        result += [even + odd, even - odd]
    return [*result, _sum(line, lanes, {2 * k + 1: c for k, c in enumerate(whole)})]


def _from_points(tile: int, line: Buffer, lanes: int) -> list[Expr]:
    """Return Aᵀs of α vectors s: the value of each power of the points, that of ∞ with the highest."""
    sums = [load(line, i * lanes, lanes) for i in range(tile + 2)]
    result = []
    for power in range(tile):
        terms = []
        for p, plus, minus in zip(PAIRS[tile], sums[1:-1:2], sums[2:-1:2], strict=True):
            terms.append(_scaled(plus - minus if power % 2 else plus + minus, p**power, lanes))
        if power == 0:
            terms.append(sums[0])
        if power == tile - 1:
            terms.append(sums[-1])
        result.append(reduce(add, terms))
    return result


def _product(squares: Sequence[float]) -> list[float]:
    """Return the coefficients of Π (x - s), the constant one first."""
    return [float(c) for c in np.atleast_1d(np.poly(squares))[::-1]]


def _sum(line: Buffer, lanes: int, terms: dict[int, float]) -> Expr:
    """Return Σ c × line[i] over the terms {i: c}."""
    return reduce(add, (_scaled(load(line, i * lanes, lanes), c, lanes) for i, c in terms.items()))


def _scaled(value: Expr, factor: float, lanes: int) -> Expr:
    """Return the value times a factor, which may be one."""
    return (
        value
        if abs(factor - 1) < 1e-12
        else value * constant(factor, str(value.ty.dtype).partition("x")[0], lanes)
    )
