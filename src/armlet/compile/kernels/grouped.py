"""Product of float32 values with an int8 matrix whose groups of inputs have scales of their own.

A tile of rows × output channels stays in registers twice: the sums of one group, and the total, to which they are added
times the group's scales.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from armlet.compile.kernels import conv2d
from armlet.compile.kernels.choices import Tiles
from armlet.compile.kernels.epilogue import FloatClamp, WeightScale
from armlet.compile.kernels.loops import (
    Buffer,
    Expr,
    Parameter,
    Vector,
    clamped,
    constant,
    load,
    loop,
    prim_func,
    registers,
    splat,
    store,
    tiles,
)
from armlet.compile.kernels.reduction import Tile

if TYPE_CHECKING:
    import tvm


@dataclass(frozen=True, slots=True)
class Dense:
    """float32 [rows, inputs] to float32 [rows, outputs]: clamp(bias + Σ_groups scale × Σ_inputs x × weight).

    Attributes:
        groups: of inputs, all of one size.
    """

    rows: int
    inputs: int
    outputs: int
    groups: int
    clamp: FloatClamp

    @property
    def products(self) -> conv2d.Conv2d:
        """The product with one scale for each output: weights are packed as for that one."""
        epilogue, one = WeightScale(None, None), (1, 1)
        return conv2d.Conv2d(1, self.rows, self.inputs, self.outputs, one, one, 1, epilogue)


def tile_of(spec: Dense, vector: Vector) -> Tile:
    """Choose the tile: half of the accumulators are those of a group, and columns come one at a time."""
    few = replace(vector, n_registers=vector.n_registers // 2, by_lane=False, tiles=Tiles())
    return conv2d.tile_of(spec.products, few)


def build(spec: Dense, vector: Vector) -> tvm.tirx.PrimFunc:
    """Return the kernel (x, weight, scales, bias, y); `layout.packing` packs weights, and scales [outputs, groups]."""
    tile = tile_of(spec, vector)
    lanes, size = tile.lanes, spec.inputs // spec.groups
    # Where in the tile its vectors are: (row, output channel).
    places = [(row, at) for at in range(0, tile.channels, lanes) for row in range(tile.pixels)]

    def packed(channel: Expr, columns: int, column: Expr) -> Expr:
        """Return where the constants of one column begin, for the output channels of a block."""
        block = channel * columns if tile.packed == tile.channels else channel
        return block + column * tile.packed

    def body(x: Buffer, weight: Buffer, scales: Buffer, bias: Buffer, y: Buffer) -> None:
        total, part = (registers(tile.pixels * tile.channels, "float32") for _ in range(2))

        def add(sums: Buffer, row: int, at: int, value: Expr) -> None:
            place = row * tile.channels + at
            store(sums, place, lanes, load(sums, place, lanes) + value)

        with (
            tiles(spec.outputs, tile.channels, parallel=True) as (_, channel),
            tiles(spec.rows, tile.pixels, parallel=True) as (_, first),
        ):
            for row, at in places:
                store(total, row * tile.channels + at, lanes, load(bias, channel + at, lanes))
            with loop(spec.groups) as group:
                for row, at in places:
                    store(part, row * tile.channels + at, lanes, constant(0.0, "float32", lanes))
                with loop(size) as k:
                    column = group * size + k
                    weights = packed(channel, spec.inputs, column)
                    for row, at in places:
                        value = splat(x[(first + row) * spec.inputs + column], lanes)
                        add(part, row, at, load(weight, weights + at, lanes, "float32") * value)
                factors = packed(channel, spec.groups, group)
                for row, at in places:
                    scaled = load(part, row * tile.channels + at, lanes) * load(scales, factors + at, lanes)
                    add(total, row, at, scaled)
            for row, at in places:
                value = load(total, row * tile.channels + at, lanes)
                value = clamped(value, spec.clamp.low, spec.clamp.high, "float32", lanes)
                store(y, (first + row) * spec.outputs + channel + at, lanes, value)

    parameters = [Parameter("x", spec.rows * spec.inputs, "float32")]
    parameters += [Parameter("weight", spec.outputs * spec.inputs, "int8")]
    parameters += [Parameter("scales", spec.outputs * spec.groups, "float32")]
    parameters += [Parameter("bias", spec.outputs, "float32")]
    return prim_func([*parameters, Parameter("y", spec.rows * spec.outputs, "float32")], body)
