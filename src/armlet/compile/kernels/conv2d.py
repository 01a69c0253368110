"""Convolution over channels-last tensors, normal and grouped, on int8 or real numbers; a dense layer is its 1 × 1 case.

In float32 the weights may be int8, with a scale for each channel that the sum is multiplied by.

A tile of pixels × output channels stays in registers while the reduction runs. Weights are packed in the order in
which they are read; `reduction` has the ways to multiply.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from armlet.compile.kernels import epilogue as ep
from armlet.compile.kernels.border import Border, pixel_of
from armlet.compile.kernels.loops import (
    LONGEST_SUM,
    Buffer,
    Expr,
    Parameter,
    Vector,
    added_apart,
    ceil_div,
    lanes_for,
    load,
    loop,
    minimum,
    parts,
    prim_func,
    registers,
    shuffle,
    splat,
    store,
    tiles,
)
from armlet.compile.kernels.reduction import (
    HORIZONTAL,
    INSTRUCTIONS,
    UNITS,
    Step,
    Tile,
    multiply,
    pixels_of,
)

if TYPE_CHECKING:
    import tvm

_BLOCKS = ((0, 1, 4, 5), (2, 3, 6, 7))
"""What of two vectors makes two others, between two pixels' four channels each and 2 × 2 blocks of them: both ways."""


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
        slack: elements after the input that may be read, from `slack_for`.
        unsigned: whether the input is uint8, 128 more than its int8.
        border: around the output, which may lie in one long row otherwise; None where there is none.
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
    slack: int = 0
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
    def runs(self) -> int:
        """How many contiguous runs of the input one output pixel reads: kernel rows, or single taps in groups."""
        return self.kernel[0] * (self.kernel[1] if self.groups > 1 else 1)

    @property
    def run_length(self) -> int:
        """Elements of one run."""
        return self.channels // self.groups * (1 if self.groups > 1 else self.kernel[1])

    @property
    def out_size(self) -> int:
        """Elements of the output and its border."""
        n_pixels = self.out_height * self.out_width if self.border is None else self.border.n_pixels
        return n_pixels * self.outputs

    @property
    def macs(self) -> int:
        """Multiply-accumulates that the layer asks for."""
        return self.out_height * self.out_width * self.outputs * self.runs * self.run_length


def tile_of(spec: Conv2d, vector: Vector) -> Tile:
    """Choose the tile: about half the registers hold accumulators, and as little as possible is computed twice."""
    outputs = spec.outputs // spec.groups
    step = _step_of(spec, vector)
    native = vector.lanes("int32") if step in (*HORIZONTAL, "sadalp") else ep.width(spec.epilogue, vector)
    lanes = lanes_for(outputs, native)
    adds = "int32" if ep.multiplies_integers(spec.epilogue) else vector.real
    # Products in int16 take registers, too.
    share = 3 / 8 if step == "sadalp" else 1 / 2
    budget = int(vector.n_registers * share) * vector.lanes(adds)
    most_pixels = spec.out_width
    widths = [w for w in (lanes, 2 * lanes, 4 * lanes, 8 * lanes) if w <= min(outputs, budget)]
    if most_pixels > 1:  # two channels' worth of accumulators for each pixel still leave room for pixels
        widths = [w for w in widths if w <= max(lanes, budget // min(most_pixels, 4))]
    channels = min(widths, key=lambda w: (ceil_div(outputs, w) * w, -w))
    together = pixels_of(step)
    pixels = min(
        range(together, min(most_pixels, max(budget // channels, 1)) + 1, together),
        key=lambda p: (ceil_div(most_pixels, p) * (p + 1), -p),
    )
    unit = _unit_by_lanes(spec, vector) if step == "lanes" else UNITS[step]
    return Tile(channels, outputs if outputs % channels else channels, pixels, lanes, step, unit)


def _step_of(spec: Conv2d, vector: Vector) -> Step:
    """Choose the reduction step: the widest that the vector unit has and that one run and the outputs fill."""
    outputs = spec.outputs // spec.groups
    if not ep.multiplies_integers(spec.epilogue):
        fits = vector.by_lane and outputs >= 4 and _unit_by_lanes(spec, vector)
        return "lanes" if fits else "singles"
    for step in INSTRUCTIONS[vector.products]:
        if step == "sadalp" and spec.weights_reach_minus_128:
            continue
        # AVX-512 has its instruction for shorter vectors, too.
        least = 4 if step == "vpdpbusd" else vector.lanes("int32")
        readable = spec.run_length + spec.slack
        if outputs >= least and readable >= UNITS[step] and spec.out_width >= pixels_of(step):
            return step
    return "pairs" if spec.run_length >= 2 and not spec.weights_reach_minus_128 else "singles"


def reads_unsigned(spec: Conv2d, vector: Vector) -> bool:
    """Return whether a kernel multiplies inputs as uint8, 128 more than their int8, and may be given them so."""
    return _step_of(spec, vector) == "vpdpbusd"


def slack_for(run_length: int, vector: Vector) -> int:
    """Return how far past the end of an int8 input is read to multiply a run of two or three elements as one of four.

    Before the end, what is read too much belongs to the next pixels; its weights are zero.
    """
    fits = vector.products in ("sdot", "smmla", "vpdpbusd") and run_length in (2, 3)
    return 4 - run_length if fits else 0


def _unit_by_lanes(spec: Conv2d, vector: Vector) -> int:
    """Return how many inputs are loaded as one vector, to multiply by its lanes; 0 where they do not fit a run.

    The last step computes products with zeros, of which there are few.
    """
    for unit in (vector.lanes(vector.real), UNITS["lanes"]):
        if spec.run_length >= unit and ceil_div(spec.run_length, unit) * unit <= 1.1 * spec.run_length:
            return unit
    return 0


def build(spec: Conv2d, vector: Vector) -> tvm.tirx.PrimFunc:
    """Return the kernel (x, weight, bias, [multipliers], [sums, shifts], y); `layout.packing` packs the weights."""
    tile = tile_of(spec, vector)
    acc_type = ep.accumulator(spec.epilogue, vector, spec.runs * spec.run_length)
    factors = ep.factor_element(spec.epilogue)

    def body(x: Buffer, weight: Buffer, bias: Buffer, *rest: Buffer) -> None:
        acc = registers(tile.pixels * tile.channels, acc_type)

        def finished(place: int, channel: Expr) -> Expr:
            factors = multipliers(channel, rest)
            return ep.finished(spec.epilogue, (acc, place), tile.lanes, factors, vector)

        def begin(channel: Expr, window: Expr) -> Expr:
            start = load(bias, channel, tile.lanes, acc_type)
            if not spec.sums:
                return start
            return start + load(rest[-2], channel, tile.lanes) * splat(
                rest[-3][window * spec.sums], tile.lanes
            )

        if spec.border is not None:
            spec.border.fill(rest[-1], spec.outputs, vector)
        compute(spec, tile, (x, weight, acc, rest[-1]), begin, finished)

    element = "uint8" if spec.unsigned else ep.element(spec.epilogue, vector)
    return prim_func(
        [
            Parameter("x", spec.height * spec.width * spec.channels + spec.slack, element),
            Parameter("weight", n_packed(spec, tile), ep.weight_element(spec.epilogue, vector)),
            Parameter("bias", spec.outputs, ep.bias_element(spec.epilogue, vector)),
            *([Parameter("multipliers", spec.outputs, factors)] if factors else []),
            *shift_parameters(spec),
            Parameter("y", spec.out_size, ep.result(spec.epilogue, vector)),
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
    origins: tuple[Expr, Expr] = (0, 0),
) -> None:
    """Write the loops over all tiles.

    Args:
        spec: of the convolution.
        tile: how it is cut up.
        buffers: x, the packed weight, the accumulators of one tile in the order (pixel, channel), y. Where x is float16
            and the accumulators are float32, sums of `LONGEST_SUM` products at most are added to them.
        begin: what the accumulators from an output channel on start at, whose inputs are a window: a pixel and group.
        finished: the results of the accumulators at a place, which are those from an output channel on.
        origins: where in x the input begins, and in y the output.
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
        position = row * spec.out_width + column
        for pixel in range(0, tile.pixels, tile.rows):
            windows = [(position + pixel + i) * spec.groups + group for i in range(tile.rows)]
            for at in range(0, tile.channels, tile.lanes):
                values = [begin(first + at, window) for window in windows]
                _begin(tile, sums, pixel * tile.channels + at * tile.rows, values)
        reduce(spec, tile, (x, weight, sums), (group, channel, row, column), origins[0])
        if tile.rows > 1:
            _part_pixels(tile, sums, acc)
        places = [pixel_of(spec.border, row, column + p, spec.out_width) for p in range(tile.pixels)]
        for at in range(0, tile.channels, tile.lanes):
            for pixel, place in enumerate(places):
                value = finished(pixel * tile.channels + at, first + at)
                store(y, origins[1] + place * spec.outputs + first + at, tile.lanes, value)


def reduce(
    spec: Conv2d,
    tile: Tile,
    buffers: tuple[Buffer, Buffer, Buffer],
    place: tuple[Expr, Expr, Expr, Expr],
    origin: Expr = 0,
) -> None:
    """Write the reduction loops of one tile.

    Its accumulators are in the order (pixel, channel), or (pixels of one operation, channels of one operation, pixel,
    channel) where an operation has several pixels. The input begins at `origin` in x.
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
    apart = str(x.dtype) == "float16" and str(acc.dtype) == "float32"
    sums = registers(int(acc.shape[0]), "float16") if apart else acc
    # Of whole rows of the kernel, or of steps of a run where one row is too long for a sum.
    rows = LONGEST_SUM // (columns * spec.run_length) if apart else spec.kernel[0]
    most = steps if rows else max(LONGEST_SUM // tile.unit, 1)
    with (
        parts(spec.kernel[0], rows or 1) as (top, n_rows),
        added_apart(sums, acc, tile.lanes, apart=apart and rows > 0),
        loop(n_rows) as line,
        loop(columns) as kx,
        parts(steps, most) as (first, n_steps),
        added_apart(sums, acc, tile.lanes, apart=apart and rows == 0),
        loop(n_steps) as place_in_part,
    ):
        ky, number = top + line, first + place_in_part
        start = number * tile.unit
        if steps > 1 and spec.run_length % tile.unit:
            start = minimum(start, spec.run_length - tile.unit)
        pixel = (row * spec.stride[0] + ky) * spec.width + column * spec.stride[1] + kx
        source = origin + pixel * spec.channels + group * (spec.channels // spec.groups) + start
        weights = block + (ky * columns + kx) * run_weights + number * tile.unit * tile.packed
        between = spec.stride[1] * spec.channels
        multiply(tile, (x, source), between, (weight, weights), sums)


def _begin(tile: Tile, sums: Buffer, place: int, values: list[Expr]) -> None:
    """Store what one vector of channels starts at, given for each pixel of an operation."""
    if tile.rows == 1:
        store(sums, place, tile.lanes, values[0])
        return
    for number, picked in enumerate(_BLOCKS):
        store(sums, place + number * tile.lanes, tile.lanes, shuffle(values, picked))


def _part_pixels(tile: Tile, sums: Buffer, acc: Buffer) -> None:
    """Store the accumulators of 2 × 2 blocks in the order (pixel, channel)."""
    for pixel in range(0, tile.pixels, 2):
        for at in range(0, tile.channels, 4):
            blocks = [load(sums, pixel * tile.channels + 2 * at + i, 4) for i in (0, 4)]
            for row, picked in enumerate(_BLOCKS):
                store(acc, (pixel + row) * tile.channels + at, 4, shuffle(blocks, picked))
