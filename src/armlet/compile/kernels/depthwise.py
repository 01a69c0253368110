"""Depthwise convolution over channels-last tensors, int8 or real: vectors of channels, a few pixels at a time.

Where the vector unit has dot products, those of int8 are in `depthwise_dot`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from armlet.compile.frontend.values import Array
from armlet.compile.kernels import depthwise_dot
from armlet.compile.kernels import epilogue as ep
from armlet.compile.kernels.border import Border, pixel_of
from armlet.compile.kernels.choices import Choice, Tunable, shape_of
from armlet.compile.kernels.conv2d import multipliers
from armlet.compile.kernels.loops import (
    Buffer,
    Expr,
    Parameter,
    Vector,
    cast,
    ceil_div,
    lanes_for,
    load,
    loop,
    prim_func,
    registers,
    store,
    tiles,
)

if TYPE_CHECKING:
    import tvm


@dataclass(frozen=True, slots=True)
class Depthwise:
    """One depthwise kernel: everything that its code depends on.

    Attributes:
        height, width, channels: of the padded input.
        kernel, stride: height and width.
        largest_weight: how far weights reach, 127 (two products fit in int16), 128 (one does) or 255 (they are int16).
        small: whether constants must not grow for the sake of speed.
        unsigned: whether the input is uint8, 128 more than its int8.
        border: around the output; None where there is none.
    """

    height: int
    width: int
    channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    epilogue: ep.Epilogue
    largest_weight: int = 127
    small: bool = False
    unsigned: bool = False
    border: Border | None = None

    @property
    def out_height(self) -> int:
        """Rows of the output."""
        return (self.height - self.kernel[0]) // self.stride[0] + 1

    @property
    def out_width(self) -> int:
        """Columns of the output."""
        return (self.width - self.kernel[1]) // self.stride[1] + 1

    @property
    def out_size(self) -> int:
        """Elements of the output and its border."""
        n_pixels = self.out_height * self.out_width if self.border is None else self.border.n_pixels
        return n_pixels * self.channels

    @property
    def macs(self) -> int:
        """Multiply-accumulates that the layer asks for."""
        return self.out_height * self.out_width * self.channels * self.kernel[0] * self.kernel[1]


def largest_weight(weight: Array) -> int:
    """Return how far weights reach: 127, 128 (int8 with the least number) or 255 (int16); 127 for those of floats."""
    if weight.dtype == np.int16:
        return 255
    return 128 if weight.dtype == np.int8 and weight.min() == -128 else 127


def key_of(spec: Depthwise, how: str, vector: Vector) -> str:
    """Return the key of a kernel that multiplies in some way."""
    return (
        f"depthwise_conv2d {ep.weight_element(spec.epilogue, vector)} {how}, {vector.unit}:"
        f" {shape_of(spec.height, spec.width, spec.channels)}, kernel {shape_of(*spec.kernel)},"
        f" stride {shape_of(*spec.stride)}"
    )


def _tile_of(spec: Depthwise, vector: Vector) -> Choice:
    """Choose the pixels and channels of integers that are computed together without dot products."""
    lanes = lanes_for(spec.channels, ep.width(spec.epilogue, vector))
    formula = min(spec.out_width, 4 if vector.n_registers >= 32 else 2), lanes
    candidates = tuple(
        (pixels, channels)
        for pixels in range(1, min(spec.out_width, 8) + 1)
        for channels in (lanes, 2 * lanes, 4 * lanes)
        if channels <= spec.channels
    )
    key = key_of(spec, f"to {spec.largest_weight}", vector)
    return vector.tiles.choose(Tunable(key, spec, vector, build, formula, candidates))


def _dot_tile_of(spec: Depthwise, block: depthwise_dot.Block, vector: Vector) -> Choice:
    """Choose the pixels that are computed together by dot products, and name the channels, which are the block's."""
    candidates = tuple((pixels, block.channels) for pixels in range(1, min(spec.out_width, 6) + 1))
    formula = depthwise_dot.pixels_of(spec), block.channels
    key = key_of(spec, f"{block.step} {block.channels}", vector)
    return vector.tiles.choose(Tunable(key, spec, vector, build, formula, candidates))


def build(spec: Depthwise, vector: Vector) -> tvm.tirx.PrimFunc:
    """Return the kernel (x, weight, bias, [multipliers], y); `layout.packing.pack_depthwise` packs the constants."""
    block = depthwise_dot.block_of(spec, vector)
    element = "uint8" if spec.unsigned else ep.element(spec.epilogue, vector)
    factors = ep.factor_element(spec.epilogue)

    def body(x: Buffer, weight: Buffer, bias: Buffer, *rest: Buffer) -> None:
        if spec.border is not None:
            spec.border.fill(rest[-1], spec.channels, vector)
        if block is not None:
            pixels, _ = _dot_tile_of(spec, block, vector)
            depthwise_dot.write(spec, block, (x, weight, bias, *rest), vector, pixels)
            return
        if not isinstance(spec.epilogue, ep.Requantize):
            _write_real(spec, vector, (x, weight, bias), rest)
            return
        pixels, lanes = _tile_of(spec, vector)
        acc = registers(lanes, "int32")
        with (
            loop(spec.out_height, parallel=True) as row,
            tiles(spec.out_width, pixels, parallel=True) as (_, column),
            tiles(spec.channels, lanes, parallel=True) as (_, channel),
        ):
            for pixel in range(pixels):
                total = load(bias, channel, lanes, "int32")
                corner = (row * spec.stride[0]) * spec.width + (column + pixel) * spec.stride[1]
                for part in _products(spec, (x, weight), corner, channel, lanes):
                    total = total + part
                store(acc, 0, lanes, total)
                value = ep.finished(spec.epilogue, (acc, 0), lanes, multipliers(channel, rest), vector)
                place = pixel_of(spec.border, row, column + pixel, spec.out_width)
                store(rest[-1], place * spec.channels + channel, lanes, value)

    rows, columns = spec.kernel
    stored = spec.channels
    if block is not None:
        stored = len(block.starts(spec.channels)) * block.channels
        rows = ceil_div(rows, depthwise_dot.ROWS) * depthwise_dot.ROWS
    return prim_func(
        [
            Parameter("x", spec.height * spec.width * spec.channels, element),
            Parameter(
                "weight",
                rows * columns * stored,
                "int16" if spec.largest_weight > 128 else ep.weight_element(spec.epilogue, vector),
            ),
            Parameter("bias", stored, ep.bias_element(spec.epilogue, vector)),
            *([Parameter("multipliers", stored, factors)] if factors else []),
            Parameter("y", spec.out_size, ep.result(spec.epilogue, vector)),
        ],
        body,
        independent=True,
    )


def _sides(spec: Depthwise, vector: Vector) -> tuple[int, int]:
    """Choose rows and pixels of a tile of real numbers: as few loads for each product as registers allow."""
    n_taps = spec.kernel[0] * spec.kernel[1]
    if vector.n_registers < 32:
        return 1, min(spec.out_width, 2)
    # Beside the accumulators registers hold the weights and a column of inputs, of 3 × 3 taps and not of 5 × 5.
    most = 7 if n_taps <= 9 else 5

    def cost(sides: tuple[int, int]) -> int:
        lines, columns = (
            (n - 1) * by + extent for n, by, extent in zip(sides, spec.stride, spec.kernel, strict=True)
        )
        one = sides[0] * sides[1] * (n_taps + 2) + lines * columns + n_taps
        return ceil_div(spec.out_height, sides[0]) * ceil_div(spec.out_width, sides[1]) * one

    rows, pixels = range(1, min(spec.out_height, 2) + 1), range(1, min(spec.out_width, most) + 1)
    return min(((r, p) for r in rows for p in pixels), key=lambda sides: (cost(sides), sides))


def _write_real(
    spec: Depthwise, vector: Vector, buffers: tuple[Buffer, Buffer, Buffer], rest: Sequence[Buffer]
) -> None:
    """Write the loops for real numbers over x, weight and bias, then factors if there are any, and y.

    Each input of a tile is read once, column by column, and multiplied by all weights that meet it.
    """
    x, weight, bias = buffers
    dtype = ep.accumulator(spec.epilogue, vector, spec.kernel[0] * spec.kernel[1])
    lanes = lanes_for(spec.channels, ep.width(spec.epilogue, vector))
    rows, pixels = _sides(spec, vector)
    places = [(row, pixel) for row in range(rows) for pixel in range(pixels)]
    acc = registers(len(places) * lanes, dtype)
    with (
        tiles(spec.out_height, rows, parallel=True) as (_, top),
        tiles(spec.out_width, pixels, parallel=True) as (_, left),
        tiles(spec.channels, lanes, parallel=True) as (_, channel),
    ):
        for at in range(len(places)):
            store(acc, at * lanes, lanes, load(bias, channel, lanes, dtype))
        corner = (top * spec.stride[0] * spec.width + left * spec.stride[1]) * spec.channels + channel
        for column in range((pixels - 1) * spec.stride[1] + spec.kernel[1]):
            for line in range((rows - 1) * spec.stride[0] + spec.kernel[0]):
                for at, (row, pixel) in enumerate(places):
                    ky, kx = line - row * spec.stride[0], column - pixel * spec.stride[1]
                    if not (0 <= ky < spec.kernel[0] and 0 <= kx < spec.kernel[1]):
                        continue
                    value = load(x, corner + (line * spec.width + column) * spec.channels, lanes, dtype)
                    tap = (ky * spec.kernel[1] + kx) * spec.channels + channel
                    product = value * load(weight, tap, lanes, dtype)
                    store(acc, at * lanes, lanes, load(acc, at * lanes, lanes) + product)
        for at, (row, pixel) in enumerate(places):
            value = ep.finished(spec.epilogue, (acc, at * lanes), lanes, multipliers(channel, rest), vector)
            place = pixel_of(spec.border, top + row, left + pixel, spec.out_width)
            store(rest[-1], place * spec.channels + channel, lanes, value)


def _products(
    spec: Depthwise, buffers: tuple[Buffer, Buffer], corner: Expr, channel: Expr, lanes: int
) -> list[Expr]:
    """Return the products of all taps of int8, two at a time, added in int16 where that can't overflow.

    Args:
        spec: of the kernel.
        buffers: x and weight.
        corner: first pixel of the window.
        channel: first one.
        lanes: channels.
    """
    x, weight = buffers
    taps = [(ky, kx) for ky in range(spec.kernel[0]) for kx in range(spec.kernel[1])]
    products = [
        load(x, (corner + ky * spec.width + kx) * spec.channels + channel, lanes, "int16")
        * load(weight, (ky * spec.kernel[1] + kx) * spec.channels + channel, lanes, "int16")
        for ky, kx in taps
    ]
    size = 2 if spec.largest_weight < 128 else 1
    sums = []
    for at in range(0, len(products), size):
        pair = products[at : at + size]
        sums.append(cast(pair[0] if len(pair) == 1 else pair[0] + pair[1], "int32", lanes))
    return sums
