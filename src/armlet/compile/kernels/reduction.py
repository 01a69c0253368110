"""One reduction step of a convolution's tile: the products of a few inputs, added to accumulators in registers.

The step of real numbers is one product: `singles`, or `lanes` where the inputs of some steps are loaded as one vector
and the core multiplies by one lane of it. The step of int8 is

- `pairs`: two products in int16, added there, then added to int32. Two products fit because |w0| + |w1| ≤ 254 and
  |x| ≤ 128 give at most 32,512; `singles` where a weight is -128;
- `sadalp`: four products, in int16 two of them for each of two lanes, which are added to one lane of int32 (smull,
  smlal, sadalp on Armv8.0);
- `sdot`: four products at once, where the core has it; inputs of four steps are loaded as one vector, too;
- `smmla`: eight products at once for each of two pixels and two channels, where the core has it;
- `pmaddwd`: two int16 products at once, on x86;
- `vpdpbusd`: four products of an unsigned and a signed number at once, with AVX-512 VNNI. The input gets 128 added,
  unless whatever made it has, and the accumulators begin at 128 times the sum of the weights less
  (`layout.packing.starts`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, TypeAlias

from armlet.compile.kernels.loops import Buffer, Expr, cast, ceil_div, combine, load, shuffle, splat, store

if TYPE_CHECKING:
    from armlet.compile.kernels.conv2d import Conv2d

Step = Literal["singles", "lanes", "pairs", "sadalp", "sdot", "smmla", "pmaddwd", "vpdpbusd"]
UNITS: Mapping[Step, int] = MappingProxyType(
    {"singles": 1, "lanes": 1, "pairs": 2, "sadalp": 4, "sdot": 4, "smmla": 8, "pmaddwd": 2, "vpdpbusd": 4}
)
"""Input elements of each reduction step."""
HORIZONTAL = ("sdot", "smmla", "pmaddwd", "vpdpbusd")
"""Steps of one instruction that adds up several products in each lane."""
INSTRUCTIONS: Mapping[str, tuple[Step, ...]] = MappingProxyType(
    {
        "widening": (),
        "sadalp": ("sadalp",),
        "sdot": ("sdot",),
        "smmla": ("smmla", "sdot"),
        "pmaddwd": ("pmaddwd",),
        "vpdpbusd": ("vpdpbusd",),
    }
)
"""Those steps that each vector unit has, the best first."""
SIGNS = -0x7F7F7F80
"""0x80808080: turning four signs around adds 128 to four signed numbers, as unsigned ones."""
_BLOCKS = ((0, 1, 4, 5), (2, 3, 6, 7))
"""What of two vectors makes two others, between two pixels' four channels each and 2 × 2 blocks of them: both ways."""
_SDOT = "llvm.aarch64.neon.sdot.v4i32.v16i8"
Place: TypeAlias = tuple[Buffer, Expr]
"""A buffer and where in it."""


@dataclass(frozen=True, slots=True)
class Tile:
    """How a convolution is cut up, and so how its weights are packed.

    Attributes:
        channels: output channels of one block; the last block of a group ends at its last channel.
        packed: output channels whose weights lie together: those of one block, or all of the group's where blocks
            overlap, so that no weight is stored twice.
        pixels: output pixels of one row that are computed together.
        lanes: accumulators of one vector operation.
        step: what one reduction step is.
        unit: input elements of one reduction step.
        loaded: steps whose inputs are loaded as one vector, to multiply by its lanes; 1 where each step loads its own.
        times: how often that is written in one turn of the loop, where registers hold as many vectors of inputs.
    """

    channels: int
    packed: int
    pixels: int
    lanes: int
    step: Step
    unit: int
    loaded: int = 1
    times: int = 1

    @property
    def adjacent(self) -> int:
        """Weights of one channel that lie side by side; those of a step lie as (unit / these, channel, these)."""
        if self.step == "sadalp":
            return 2
        return self.unit if self.step in HORIZONTAL else 1

    @property
    def rows(self) -> int:
        """Pixels of one vector operation of a reduction step, whose channels are `lanes` / `rows`."""
        return pixels_of(self.step)

    @property
    def offset(self) -> int:
        """What each input is more than its int8, so that it has no sign."""
        return 128 if self.step == "vpdpbusd" else 0

    def steps(self, spec: Conv2d) -> int:
        """Return the reduction steps of one run; the last one ends at the run's last element."""
        return ceil_div(spec.run_length, self.unit)


def pixels_of(step: Step) -> int:
    """Return how many pixels one instruction works on."""
    return 2 if step == "smmla" else 1


def multiply(tile: Tile, x: Place, between: int, weight: Place, acc: Buffer, lanes: Sequence[int]) -> None:
    """Write the steps of a whole tile that some lanes of the inputs loaded together are for.

    Args:
        tile: which of them it is.
        x: the first pixel's inputs.
        between: how far apart the pixels' inputs are.
        weight: those of the first of these steps.
        acc: accumulators of the tile.
        lanes: 0 alone where each step loads its own inputs.
    """
    if tile.loaded > 1:
        _multiply_by_lanes(tile, x, between, weight, acc, lanes)
        return
    (inputs, source), (weights, start) = x, weight
    for at in range(0, tile.channels, tile.lanes // tile.rows):
        for p in range(0, tile.pixels, tile.rows):
            where, read = p * tile.channels + at * tile.rows, source + p * between
            before = load(acc, where, tile.lanes)
            if tile.step == "smmla":
                value = _smmla(before, (inputs, read), between, (weights, start + at * tile.unit))
            else:
                value = _step(tile, before, (inputs, read), weight, at)
            store(acc, where, tile.lanes, value)


def _multiply_by_lanes(
    tile: Tile, x: Place, between: int, weight: Place, acc: Buffer, lanes: Sequence[int]
) -> None:
    (inputs, source), (weights, start) = x, weight
    for number, k in enumerate(lanes):
        for at in range(0, tile.channels, tile.lanes):
            place = start + (number * tile.packed + at) * tile.unit
            for p in range(tile.pixels):
                read = load(inputs, source + p * between, tile.loaded * tile.unit)
                where = p * tile.channels + at
                value = _by_lane(tile, load(acc, where, tile.lanes), read, k, (weights, place))
                store(acc, where, tile.lanes, value)


def _by_lane(tile: Tile, acc: Expr, read: Expr, k: int, weight: Place) -> Expr:
    """Return the accumulators after the step of one lane of the inputs read."""
    from tvm.script.ir_builder import tirx as t

    # As many lanes to pick from as are picked, which a shuffle asks for.
    if tile.step == "sdot":
        one = shuffle([t.reinterpret(f"int32x{tile.loaded}", read)], [k] * tile.lanes)
        many = t.reinterpret("int8x16", one)
        return t.call_llvm_pure_intrin("int32x4", _SDOT, acc, load(*weight, 16), many)
    one = shuffle([read] * ceil_div(tile.lanes, tile.loaded), [k] * tile.lanes)
    wide = None if weight[0].dtype == str(read.ty.dtype).partition("x")[0] else "float32"
    return acc + load(*weight, tile.lanes, wide) * one


def _step(tile: Tile, acc: Expr, x: Place, weight: Place, at: int) -> Expr:
    """Return the accumulators of the channels from `at` on after one reduction step."""
    lanes = tile.lanes
    (inputs, source), (weights, start) = x, weight
    if tile.step in HORIZONTAL:
        return _horizontal(tile, acc, x, (weights, start + at * tile.unit))
    if tile.step == "sadalp":
        return _pairwise(tile, acc, x, (weights, start + at * tile.adjacent))
    if str(inputs.dtype).startswith("float"):
        wide = None if weights.dtype == inputs.dtype else "float32"
        return acc + load(weights, start + at, lanes, wide) * splat(inputs[source], lanes)
    total: Expr = None
    for k in range(tile.unit):
        factor = splat(cast(inputs[source + k], "int16", 1), lanes)
        product = load(weights, start + k * tile.packed + at, lanes, "int16") * factor
        total = product if total is None else total + product
    return acc + cast(total, "int32", lanes)


def _pairwise(tile: Tile, acc: Expr, x: Place, weight: Place) -> Expr:
    """Return acc[i] + Σ_k weight[k, i] × x[k] for four lanes i: products of two inputs side by side, in int16."""
    from tvm.script.ir_builder import tirx as t

    (inputs, source), (weights, start) = x, weight
    total: Expr = None
    for k in range(0, tile.unit, 2):
        one = t.reinterpret("int16", load(inputs, source + k, 2))
        many = t.reinterpret("int8x8", splat(one, 4))
        product = t.call_llvm_pure_intrin(
            "int16x8", "llvm.aarch64.neon.smull.v8i16", load(weights, start + k * tile.packed, 8), many
        )
        total = product if total is None else total + product
    return acc + t.call_llvm_pure_intrin("int32x4", "llvm.aarch64.neon.saddlp.v4i32.v8i16", total)


def _smmla(acc: Expr, x: Place, between: int, weight: Place) -> Expr:
    """Return acc[i, j] + Σ_k x[i, k] × weight[j, k] for two pixels i, so far apart, and two channels j."""
    from tvm.script.ir_builder import tirx as t

    (inputs, source), (weights, start) = x, weight
    two = combine([load(inputs, source, 8), load(inputs, source + between, 8)], "int8", 8)
    name = "llvm.aarch64.neon.smmla.v4i32.v16i8"
    return t.call_llvm_pure_intrin("int32x4", name, acc, two, load(weights, start, 16))


def _horizontal(tile: Tile, acc: Expr, x: Place, weight: Place) -> Expr:
    """Return acc[i] + Σ_k weight[unit × i + k] × x[k] for the lanes i, by one instruction."""
    from tvm.script.ir_builder import tirx as t

    lanes, operands = tile.lanes, tile.lanes * tile.unit
    if tile.step == "sdot":
        one = t.reinterpret("int32", load(*x, 4))
        many = t.reinterpret(f"int8x{operands}", splat(one, lanes))
        return t.call_llvm_pure_intrin("int32x4", _SDOT, acc, load(*weight, operands), many)
    if tile.step == "vpdpbusd":
        one = t.reinterpret("int32", load(*x, 4))
        if str(x[0].dtype) == "int8":
            one = t.bitwise_xor(one, t.int32(SIGNS))
        many = t.reinterpret(f"int8x{operands}", splat(one, lanes))
        name = f"llvm.x86.avx512.vpdpbusd.{32 * lanes}"
        return t.call_llvm_pure_intrin(f"int32x{lanes}", name, acc, many, load(*weight, operands))
    one = t.reinterpret("int32", load(*x, 2, "int16"))
    many = t.reinterpret(f"int16x{operands}", splat(one, lanes))
    name = "llvm.x86.sse2.pmadd.wd" if lanes == 4 else "llvm.x86.avx2.pmadd.wd"
    return acc + t.call_llvm_pure_intrin(f"int32x{lanes}", name, load(*weight, operands, "int16"), many)


def begin_sums(tile: Tile, sums: Buffer, place: int, values: list[Expr]) -> None:
    """Store what one vector of channels starts at, given for each pixel of an operation."""
    if tile.rows == 1:
        store(sums, place, tile.lanes, values[0])
        return
    for number, picked in enumerate(_BLOCKS):
        store(sums, place + number * tile.lanes, tile.lanes, shuffle(values, picked))


def part_pixels(tile: Tile, sums: Buffer, acc: Buffer) -> None:
    """Store the accumulators of 2 × 2 blocks in the order (pixel, channel)."""
    for pixel in range(0, tile.pixels, 2):
        for at in range(0, tile.channels, 4):
            blocks = [load(sums, pixel * tile.channels + 2 * at + i, 4) for i in (0, 4)]
            for row, picked in enumerate(_BLOCKS):
                store(acc, (pixel + row) * tile.channels + at, 4, shuffle(blocks, picked))
