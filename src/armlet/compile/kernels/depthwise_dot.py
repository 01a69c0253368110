"""INT8 depthwise convolution by dot products: four rows of a channel side by side, one column of the filter at a time.

What multiplies four pairs of int8 and adds them up (sdot, vpdpbusd) needs a channel's four inputs in adjacent bytes.
The bytes of four rows are interleaved twice (zip on Arm, unpack on x86), and the result serves each of the output
pixels beside each other that the column belongs to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from armlet.compile.kernels import epilogue as ep
from armlet.compile.kernels.border import pixel_of
from armlet.compile.kernels.loops import (
    Buffer,
    Expr,
    Vector,
    ceil_div,
    load,
    loop,
    registers,
    shuffle,
    splat,
    store,
    tiles,
)
from armlet.compile.kernels.reduction import SIGNS, Step

if TYPE_CHECKING:
    from armlet.compile.kernels.depthwise import Depthwise

ROWS = 4
"""Rows of the filter that one instruction takes; the last ones have weights of zero where there are fewer."""
_QUARTERS = range(4)


@dataclass(frozen=True, slots=True)
class Block:
    """How channels are cut up, and so how the constants are packed.

    Attributes:
        channels: of one block, 16, 32 or 64; the last block ends at the last channel.
        step: the instruction.
    """

    channels: int
    step: Step

    @property
    def lanes(self) -> int:
        """Channels of one vector of accumulators, a quarter of the block."""
        return self.channels // 4

    @property
    def offset(self) -> int:
        """What each input is more than its int8, so that it has no sign."""
        return 128 if self.step == "vpdpbusd" else 0

    def order(self) -> list[int]:
        """Return the block's channels in the accumulators' order: interleaving keeps each 16 bytes together."""
        return [
            16 * part + 4 * quarter + i
            for quarter in _QUARTERS
            for part in range(self.channels // 16)
            for i in range(4)
        ]

    def starts(self, n_channels: int) -> list[int]:
        """Return the first channel of each block."""
        last = n_channels - self.channels
        return [min(start, last) for start in range(0, n_channels, self.channels)]


def block_of(spec: Depthwise, vector: Vector) -> Block | None:
    """Choose the block; None without such an instruction, for few channels or one row, or where size comes first."""
    if not isinstance(spec.epilogue, ep.Requantize) or spec.largest_weight > 128:
        return None
    if spec.small or spec.channels < 16 or spec.kernel[0] < 2:
        return None
    if vector.products in ("sdot", "smmla"):
        return Block(16, "sdot")
    if vector.products == "vpdpbusd" and spec.epilogue.shift >= 32:
        fitting = [size for size in (64, 32, 16) if size <= spec.channels]
        # A block costs about as much as its channels and sixteen more.
        return Block(min(fitting, key=lambda s: ceil_div(spec.channels, s) * (s + 16)), "vpdpbusd")
    return None


def pixels_of(spec: Depthwise) -> int:
    """Choose how many output pixels are computed together; those past the last one are computed twice."""

    def cost(pixels: int) -> int:
        columns = (pixels - 1) * spec.stride[1] + spec.kernel[1]
        return ceil_div(spec.out_width, pixels) * (columns + pixels * spec.kernel[1])

    return min(range(1, min(spec.out_width, 4) + 1), key=cost)


def write(
    spec: Depthwise,
    block: Block,
    buffers: tuple[Buffer, Buffer, Buffer, Buffer, Buffer],
    vector: Vector,
    pixels: int,
) -> None:
    """Write the loops over x, packed weight, bias and multipliers, and y, so many pixels at a time."""
    x, weight, bias, multipliers, y = buffers
    assert isinstance(spec.epilogue, ep.Requantize)  # noqa: S101 - `block_of` has looked
    size, groups = block.channels, ceil_div(spec.kernel[0], ROWS)
    acc = registers(pixels * size, "int32")
    pairs, parts = (registers(size * ROWS, "int8") for _ in range(2))
    with (
        loop(spec.out_height, parallel=True) as row,
        tiles(spec.out_width, pixels, parallel=True) as (_, column),
        tiles(spec.channels, size, parallel=True) as (number, channel),
    ):
        for at in range(0, pixels * size, block.lanes):
            store(acc, at, block.lanes, load(bias, number * size + at % size, block.lanes))
        for step in range(((pixels - 1) * spec.stride[1] + spec.kernel[1]) * groups):
            across, group = divmod(step, groups)
            taps = [(p, across - p * spec.stride[1]) for p in range(pixels)]
            used = [(p, kx) for p, kx in taps if 0 <= kx < spec.kernel[1]]
            if not used:  # a column that a stride leaves out
                continue
            corner = (row * spec.stride[0]) * spec.width + column * spec.stride[1] + across
            below = [min(group * ROWS + i, spec.kernel[0] - 1) for i in range(ROWS)]
            places = [(corner + ky * spec.width) * spec.channels + channel for ky in below]
            _interleave(block, x, places, (pairs, parts))
            for pixel, kx in used:
                first = ((number * spec.kernel[1] + kx) * groups + group) * size * ROWS
                _multiply(block, parts, (weight, first), (acc, pixel * size))
        for pixel in range(pixels):
            out = pixel_of(spec.border, row, column + pixel, spec.out_width) * spec.channels + channel
            value = _finished(spec.epilogue, block, (acc, pixel * size), (multipliers, number * size), vector)
            store(y, out, size, value)


def _interleave(block: Block, x: Buffer, places: list[Expr], halves: tuple[Buffer, Buffer]) -> None:
    """Store the inputs at four places, those of a channel side by side, in quarters: two by two, then all."""
    from tvm.script.ir_builder import tirx as t

    pairs, parts = halves
    size, words = block.channels, f"int32x{block.lanes}"

    def inputs(place: Expr) -> Expr:
        value = load(x, place, size)
        if not block.offset:
            return value
        if str(x.dtype) == "uint8":
            return t.reinterpret(f"int8x{size}", value)
        signless = t.bitwise_xor(t.reinterpret(words, value), splat(t.int32(SIGNS), block.lanes))
        return t.reinterpret(f"int8x{size}", signless)

    def zipped(a: Expr, b: Expr, width: int, upper: bool) -> Expr:
        """Interleave elements of so many bytes from the lower or upper halves of each 16 bytes."""
        n, per = size // width, 16 // width
        picked = [
            part + (per // 2 if upper else 0) + i + other * n
            for part in range(0, n, per)
            for i in range(per // 2)
            for other in (0, 1)
        ]
        return shuffle([a, b], picked)

    values = [inputs(place) for place in places]
    for number, (a, b) in enumerate((values[:2], values[2:])):
        for upper in (False, True):
            store(pairs, (2 * number + upper) * size, size, zipped(a, b, 1, upper))
    for quarter in _QUARTERS:
        half, upper = quarter // 2, quarter % 2 == 1
        a, b = (t.reinterpret(f"int16x{size // 2}", load(pairs, (2 * n + half) * size, size)) for n in (0, 1))
        store(parts, quarter * size, size, t.reinterpret(f"int8x{size}", zipped(a, b, 2, upper)))


def _multiply(block: Block, parts: Buffer, weight: tuple[Buffer, Expr], acc: tuple[Buffer, int]) -> None:
    """Add to one pixel's accumulators the products of four rows in one column."""
    from tvm.script.ir_builder import tirx as t

    size, lanes = block.channels, block.lanes
    name = (
        "llvm.aarch64.neon.sdot.v4i32.v16i8"
        if block.step == "sdot"
        else f"llvm.x86.avx512.vpdpbusd.{32 * lanes}"
    )
    for quarter in _QUARTERS:
        place = acc[1] + quarter * lanes
        operands = load(parts, quarter * size, size), load(weight[0], weight[1] + quarter * size, size)
        total = t.call_llvm_pure_intrin(f"int32x{lanes}", name, load(acc[0], place, lanes), *operands)
        store(acc[0], place, lanes, total)


def _finished(
    epilogue: ep.Requantize,
    block: Block,
    acc: tuple[Buffer, int],
    factors: tuple[Buffer, Expr],
    vector: Vector,
) -> Expr:
    """Return what is stored for one pixel, its channels in their own order again."""
    from tvm.script.ir_builder import tirx as t

    (sums, place), (multipliers, first), lanes = acc, factors, block.lanes

    def loaded(start: int) -> ep.Multipliers:
        return lambda at, n: load(multipliers, first + start + at, n)

    if block.channels == 16 and block.step == "sdot":  # the accumulators are in the channels' order
        return ep.finished(epilogue, acc, 16, loaded(0), vector)
    quarters = [
        ep.rescaled(epilogue, (sums, place + q * lanes), lanes, loaded(q * lanes), vector) for q in _QUARTERS
    ]
    # Packing keeps 16 bytes where they are, too, and saturates.
    family = {64: "avx512", 32: "avx2", 16: "sse2"}[block.channels]
    bits = {64: ".512", 32: "", 16: ".128"}[block.channels]
    halves = [
        t.call_llvm_pure_intrin(
            f"int16x{2 * lanes}", f"llvm.x86.{family}.packssdw{bits}", *quarters[i : i + 2]
        )
        for i in (0, 2)
    ]
    packed = t.call_llvm_pure_intrin(f"int8x{4 * lanes}", f"llvm.x86.{family}.packsswb{bits}", *halves)
    limited = ep.within(packed, (epilogue.low, epilogue.high), block.channels)
    return ep.stored(epilogue, limited, block.channels)
