"""Convolution over channels-last tensors, normal and grouped, in int8 or float32; a dense layer is its 1 × 1 case.

In float32 the weights may be int8, with a scale for each channel that the sum is multiplied by.

A tile of pixels × output channels stays in registers while the reduction runs. Weights are packed in the order in
which they are read. One reduction step of the float32 kernel is one product, or `lanes`: four, whose inputs are loaded
as one vector, where the core multiplies by one lane of it. One of the int8 kernel is

- `pairs`: two products in int16, added there, then added to int32. Two products fit because |w0| + |w1| ≤ 254 and
  |x| ≤ 128 give at most 32,512; `singles` where a weight is -128;
- `sadalp`: four products, in int16 two of them for each of two lanes, which are added to one lane of int32 (smull,
  smlal, sadalp on Armv8.0);
- `sdot`: four products at once, where the core has it;
- `smmla`: eight products at once for each of two pixels and two channels, where the core has it;
- `pmaddwd`: two int16 products at once, on x86;
- `vpdpbusd`: four products of an unsigned and a signed number at once, with AVX-512 VNNI. The input gets 128 added, and
  the accumulators begin at 128 times the sum of the weights less (`layout.packing.starts`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, TypeAlias

from armlet.compile.kernels import epilogue as ep
from armlet.compile.kernels.loops import (
    Buffer,
    Expr,
    Parameter,
    Vector,
    cast,
    ceil_div,
    combine,
    lanes_for,
    load,
    loop,
    minimum,
    prim_func,
    registers,
    shuffle,
    splat,
    store,
    tiles,
)

if TYPE_CHECKING:
    import tvm

Step = Literal["singles", "lanes", "pairs", "sadalp", "sdot", "smmla", "pmaddwd", "vpdpbusd"]
_UNITS: Mapping[Step, int] = MappingProxyType(
    {"singles": 1, "lanes": 4, "pairs": 2, "sadalp": 4, "sdot": 4, "smmla": 8, "pmaddwd": 2, "vpdpbusd": 4}
)
"""Input elements of each reduction step."""
_HORIZONTAL = ("sdot", "smmla", "pmaddwd", "vpdpbusd")
"""Steps of one instruction that adds up several products in each lane."""
_INSTRUCTIONS: Mapping[str, tuple[Step, ...]] = MappingProxyType(
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
_SIGNS = -0x7F7F7F80
"""0x80808080: turning four signs around adds 128 to four signed numbers, as unsigned ones."""
Place: TypeAlias = tuple[Buffer, Expr]
"""A buffer and where in it."""


@dataclass(frozen=True, slots=True)
class Conv2d:
    """One convolution kernel: everything that its code depends on.

    Attributes:
        height, width, channels: of the padded input.
        outputs: output channels.
        kernel, stride: height and width.
        weights_reach_minus_128: whether two products may overflow int16.
        sums: what the sums of the inputs that each pixel reads are apart from each other, where weights are more than
            their int8 numbers by a shift for each output; 0 where they are not.
    """

    height: int
    width: int
    channels: int
    outputs: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    groups: int
    epilogue: ep.Epilogue
    weights_reach_minus_128: bool = False
    sums: int = 0

    @property
    def out_height(self) -> int:
        """Rows of the output."""
        return (self.height - self.kernel[0]) // self.stride[0] + 1

    @property
    def out_width(self) -> int:
        """Columns of the output."""
        return (self.width - self.kernel[1]) // self.stride[1] + 1

    @property
    def runs(self) -> int:
        """How many contiguous runs of the input one output pixel reads: kernel rows, or single taps in groups."""
        return self.kernel[0] * (self.kernel[1] if self.groups > 1 else 1)

    @property
    def run_length(self) -> int:
        """Elements of one run."""
        return self.channels // self.groups * (1 if self.groups > 1 else self.kernel[1])

    @property
    def macs(self) -> int:
        """Multiply-accumulates that the layer asks for."""
        return self.out_height * self.out_width * self.outputs * self.runs * self.run_length


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
    """

    channels: int
    packed: int
    pixels: int
    lanes: int
    step: Step
    unit: int

    @property
    def adjacent(self) -> int:
        """Weights of one channel that lie side by side; those of a step lie as (unit / these, channel, these)."""
        if self.step == "sadalp":
            return 2
        return self.unit if self.step in _HORIZONTAL else 1

    @property
    def rows(self) -> int:
        """Pixels of one vector operation of a reduction step, whose channels are `lanes` / `rows`."""
        return _together(self.step)

    @property
    def offset(self) -> int:
        """What a reduction step adds to each input, so that it has no sign."""
        return 128 if self.step == "vpdpbusd" else 0

    def steps(self, spec: Conv2d) -> int:
        """Return the reduction steps of one run; the last one ends at the run's last element."""
        return ceil_div(spec.run_length, self.unit)


def tile_of(spec: Conv2d, vector: Vector) -> Tile:
    """Choose the tile: about half the registers hold accumulators, and as little as possible is computed twice."""
    outputs = spec.outputs // spec.groups
    step = _step_of(spec, vector)
    native = vector.lanes("int32") if step in (*_HORIZONTAL, "sadalp") else ep.width(spec.epilogue, vector)
    lanes = lanes_for(outputs, native)
    # Products in int16 take registers, too.
    share = 3 / 8 if step == "sadalp" else 1 / 2
    budget = int(vector.n_registers * share) * vector.lanes("int32")
    most_pixels = spec.out_width
    widths = [w for w in (lanes, 2 * lanes, 4 * lanes, 8 * lanes) if w <= min(outputs, budget)]
    if most_pixels > 1:  # two channels' worth of accumulators for each pixel still leave room for pixels
        widths = [w for w in widths if w <= max(lanes, budget // min(most_pixels, 4))]
    channels = min(widths, key=lambda w: (ceil_div(outputs, w) * w, -w))
    together = _together(step)
    pixels = min(
        range(together, min(most_pixels, max(budget // channels, 1)) + 1, together),
        key=lambda p: (ceil_div(most_pixels, p) * (p + 1), -p),
    )
    return Tile(channels, outputs if outputs % channels else channels, pixels, lanes, step, _UNITS[step])


def _together(step: Step) -> int:
    """Return how many pixels one instruction works on."""
    return 2 if step == "smmla" else 1


def _step_of(spec: Conv2d, vector: Vector) -> Step:
    """Choose the reduction step: the widest that the vector unit has and that one run and the outputs fill."""
    outputs = spec.outputs // spec.groups
    if not ep.multiplies_integers(spec.epilogue):
        # The last step may compute up to three products with zeros.
        padded = ceil_div(spec.run_length, _UNITS["lanes"]) * _UNITS["lanes"]
        fits = outputs >= 4 and spec.run_length >= 4 and padded <= 1.1 * spec.run_length
        return "lanes" if vector.by_lane and fits else "singles"
    for step in _INSTRUCTIONS[vector.products]:
        if step == "sadalp" and spec.weights_reach_minus_128:
            continue
        # AVX-512 has its instruction for shorter vectors, too.
        least = 4 if step == "vpdpbusd" else vector.lanes("int32")
        if outputs >= least and spec.run_length >= _UNITS[step] and spec.out_width >= _together(step):
            return step
    return "pairs" if spec.run_length >= 2 and not spec.weights_reach_minus_128 else "singles"


def build(spec: Conv2d, vector: Vector) -> tvm.tirx.PrimFunc:
    """Return the kernel (x, weight, bias, [multipliers], [sums, shifts], y); `layout.packing` packs the weights."""
    tile = tile_of(spec, vector)
    element, acc_type = ep.element(spec.epilogue), ep.accumulator(spec.epilogue)
    factors = ep.factor_element(spec.epilogue)

    def body(x: Buffer, weight: Buffer, bias: Buffer, *rest: Buffer) -> None:
        acc = registers(tile.pixels * tile.channels, acc_type)

        def finished(place: int, channel: Expr) -> Expr:
            factors = multipliers(channel, rest)
            return ep.finished(spec.epilogue, (acc, place), tile.lanes, factors, vector)

        def begin(channel: Expr, window: Expr) -> Expr:
            start = load(bias, channel, tile.lanes)
            if not spec.sums:
                return start
            return start + load(rest[-2], channel, tile.lanes) * splat(
                rest[-3][window * spec.sums], tile.lanes
            )

        compute(spec, tile, (x, weight, acc, rest[-1]), begin, finished)

    return prim_func(
        [
            Parameter("x", spec.height * spec.width * spec.channels, element),
            Parameter("weight", n_packed(spec, tile), ep.weight_element(spec.epilogue)),
            Parameter("bias", spec.outputs, acc_type),
            *([Parameter("multipliers", spec.outputs, factors)] if factors else []),
            *shift_parameters(spec),
            Parameter("y", spec.out_height * spec.out_width * spec.outputs, ep.result(spec.epilogue)),
        ],
        body,
    )


def shift_parameters(spec: Conv2d) -> list[Parameter]:
    """Return the parameters of a kernel whose weights have shifts: sums of inputs, and shifts; none of any other."""
    if not spec.sums:
        return []
    n_windows = spec.out_height * spec.out_width * spec.groups
    return [Parameter("sums", n_windows * spec.sums, "int32"), Parameter("shifts", spec.outputs, "int32")]


def multipliers(channel: Expr, rest: Sequence[Buffer]) -> ep.Multipliers:
    """Return the loads of multipliers from `channel` on, from the first of the remaining parameters."""
    return lambda first, lanes: load(rest[0], channel + first, lanes)


def n_packed(spec: Conv2d, tile: Tile) -> int:
    """Return how many weights there are when they are packed."""
    return spec.outputs * spec.runs * tile.steps(spec) * tile.unit


def compute(
    spec: Conv2d,
    tile: Tile,
    buffers: tuple[Buffer, Buffer, Buffer, Buffer],
    begin: Callable[[Expr, Expr], Expr],
    finished: Callable[[int, Expr], Expr],
) -> None:
    """Write the loops over all tiles.

    Args:
        spec: of the convolution.
        tile: how it is cut up.
        buffers: x, the packed weight, the accumulators of one tile in the order (pixel, channel), y.
        begin: what the accumulators from an output channel on start at, whose inputs are a window: a pixel and group.
        finished: the results of the accumulators at a place, which are those from an output channel on.
    """
    x, weight, acc, y = buffers
    outputs = spec.outputs // spec.groups
    with (
        loop(spec.groups) as group,
        tiles(outputs, tile.channels) as (_, channel),
        loop(spec.out_height) as row,
        tiles(spec.out_width, tile.pixels) as (_, column),
    ):
        first = group * outputs + channel
        sums = acc if tile.rows == 1 else registers(tile.pixels * tile.channels, str(acc.dtype))
        for pixel in range(0, tile.pixels, tile.rows):
            windows = [
                (row * spec.out_width + column + pixel + i) * spec.groups + group for i in range(tile.rows)
            ]
            for at in range(0, tile.channels, tile.lanes):
                values = [begin(first + at, window) for window in windows]
                _begin(tile, sums, pixel * tile.channels + at * tile.rows, values)
        reduce(spec, tile, (x, weight, sums), (group, channel, row, column))
        if tile.rows > 1:
            _part_pixels(tile, sums, acc)
        out = (row * spec.out_width + column) * spec.outputs + first
        for at in range(0, tile.channels, tile.lanes):
            for pixel in range(tile.pixels):
                value = finished(pixel * tile.channels + at, first + at)
                store(y, out + pixel * spec.outputs + at, tile.lanes, value)


def reduce(
    spec: Conv2d, tile: Tile, buffers: tuple[Buffer, Buffer, Buffer], place: tuple[Expr, Expr, Expr, Expr]
) -> None:
    """Write the reduction loops of one tile.

    Its accumulators are in the order (pixel, channel), or (pixels of one operation, channels of one operation, pixel,
    channel) where an operation has several pixels.
    """
    x, weight, acc = buffers
    group, channel, row, column = place
    steps = tile.steps(spec)
    columns = spec.kernel[1] if spec.groups > 1 else 1
    run_weights = steps * tile.unit * tile.packed
    if tile.packed == tile.channels:
        block = (group * (spec.outputs // spec.groups) + channel) * spec.runs * steps * tile.unit
    else:
        block = group * spec.runs * run_weights + channel * tile.adjacent
    with loop(spec.kernel[0]) as ky, loop(columns) as kx, loop(steps) as number:
        start = number * tile.unit
        if spec.run_length % tile.unit:
            start = minimum(start, spec.run_length - tile.unit)
        pixel = (row * spec.stride[0] + ky) * spec.width + column * spec.stride[1] + kx
        source = pixel * spec.channels + group * (spec.channels // spec.groups) + start
        weights = block + (ky * columns + kx) * run_weights + number * tile.unit * tile.packed
        between = spec.stride[1] * spec.channels
        if tile.step == "lanes":
            _multiply_by_lanes(tile, (x, source), between, (weight, weights), acc)
            return
        for at in range(0, tile.channels, tile.lanes // tile.rows):
            for p in range(0, tile.pixels, tile.rows):
                where, read = p * tile.channels + at * tile.rows, source + p * between
                before = load(acc, where, tile.lanes)
                if tile.step == "smmla":
                    value = _smmla(before, (x, read), between, (weight, weights + at * tile.unit))
                else:
                    value = _step(tile, before, (x, read), (weight, weights), at)
                store(acc, where, tile.lanes, value)


def _multiply_by_lanes(tile: Tile, x: Place, between: int, weight: Place, acc: Buffer) -> None:
    """Add to a tile's accumulators the products of four inputs of each of its pixels, which are so far apart."""
    (inputs, source), (weights, start) = x, weight
    wide = None if str(weights.dtype) == "float32" else "float32"
    for k in range(tile.unit):
        for at in range(0, tile.channels, tile.lanes):
            factors = load(weights, start + k * tile.packed + at, tile.lanes, wide)
            for p in range(tile.pixels):
                one = shuffle([load(inputs, source + p * between, tile.unit)], [k] * tile.lanes)
                where = p * tile.channels + at
                store(acc, where, tile.lanes, load(acc, where, tile.lanes) + factors * one)


def _begin(tile: Tile, sums: Buffer, place: int, values: list[Expr]) -> None:
    """Store what one vector of channels starts at, one for each pixel of an operation; two in 2 × 2 blocks."""
    if tile.rows > 1:
        values = [shuffle(values, picked) for picked in ((0, 1, 4, 5), (2, 3, 6, 7))]
    for number, value in enumerate(values):
        store(sums, place + number * tile.lanes, tile.lanes, value)


def _part_pixels(tile: Tile, sums: Buffer, acc: Buffer) -> None:
    """Store the accumulators of 2 × 2 blocks in the order (pixel, channel)."""
    for pixel in range(0, tile.pixels, 2):
        for at in range(0, tile.channels, 4):
            blocks = [load(sums, pixel * tile.channels + 2 * at + i, 4) for i in (0, 4)]
            for row, picked in enumerate(((0, 1, 4, 5), (2, 3, 6, 7))):
                store(acc, (pixel + row) * tile.channels + at, 4, shuffle(blocks, picked))


def _step(tile: Tile, acc: Expr, x: Place, weight: Place, at: int) -> Expr:
    """Return the accumulators of the channels from `at` on after one reduction step."""
    lanes = tile.lanes
    (inputs, source), (weights, start) = x, weight
    if tile.step in _HORIZONTAL:
        return _horizontal(tile, acc, x, (weights, start + at * tile.unit))
    if tile.step == "sadalp":
        return _pairwise(tile, acc, x, (weights, start + at * tile.adjacent))
    if str(inputs.dtype) == "float32":
        wide = None if str(weights.dtype) == "float32" else "float32"
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
        return t.call_llvm_pure_intrin(
            "int32x4", "llvm.aarch64.neon.sdot.v4i32.v16i8", acc, load(*weight, operands), many
        )
    if tile.step == "vpdpbusd":
        one = t.bitwise_xor(t.reinterpret("int32", load(*x, 4)), t.int32(_SIGNS))
        many = t.reinterpret(f"int8x{operands}", splat(one, lanes))
        name = f"llvm.x86.avx512.vpdpbusd.{32 * lanes}"
        return t.call_llvm_pure_intrin(f"int32x{lanes}", name, acc, many, load(*weight, operands))
    one = t.reinterpret("int32", load(*x, 2, "int16"))
    many = t.reinterpret(f"int16x{operands}", splat(one, lanes))
    name = "llvm.x86.sse2.pmadd.wd" if lanes == 4 else "llvm.x86.avx2.pmadd.wd"
    return acc + t.call_llvm_pure_intrin(f"int32x{lanes}", name, load(*weight, operands, "int16"), many)
