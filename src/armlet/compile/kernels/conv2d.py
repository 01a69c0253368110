"""Convolution over channels-last tensors, normal and grouped, on int8 or real numbers; a dense layer is its 1 × 1 case.

In float32 the weights may be int8, with a scale for each channel that the sum is multiplied by.

A tile of pixels × output channels stays in registers while the reduction runs. Weights are packed in the order in
which they are read; `reduction` has the ways to multiply.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from armlet.compile.kernels import epilogue as ep
from armlet.compile.kernels.border import Border, pixel_of
from armlet.compile.kernels.choices import Tunable, shape_of
from armlet.compile.kernels.loops import (
    LONGEST_SUM,
    Buffer,
    Expr,
    Parameter,
    Vector,
    added_apart,
    lanes_for,
    load,
    loop,
    minimum,
    parts,
    prim_func,
    registers,
    splat,
    store,
    tiles,
)
from armlet.compile.kernels.reduction import (
    HORIZONTAL,
    UNITS,
    Place,
    Tile,
    begin_sums,
    multiply,
    part_pixels,
)
from armlet.compile.kernels.tiling import (
    MOST_CANDIDATES,
    fit_twice,
    loaded_of,
    step_of,
    tiles_of_loads,
    tiles_of_steps,
)

if TYPE_CHECKING:
    import tvm


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
    """Choose the tile: what the vector unit's table has for the kernel, else what a formula gives."""
    outputs = spec.outputs // spec.groups
    step = step_of(spec, vector)
    native = vector.lanes("int32") if step in (*HORIZONTAL, "sadalp") else ep.width(spec.epilogue, vector)
    lanes = lanes_for(outputs, native)
    loaded = loaded_of(spec, step, lanes, vector)
    key = (
        f"conv2d {ep.weight_element(spec.epilogue, vector)} {type(spec.epilogue).__name__} {step}"
        f"{f' of {loaded}' if loaded > 1 else ''},"
        f" {vector.unit}: {shape_of(spec.height, spec.width, spec.channels)} to {spec.outputs},"
        f" kernel {shape_of(*spec.kernel)}, stride {shape_of(*spec.stride)}, {spec.groups} groups"
    )
    candidates = (
        tiles_of_steps(spec, step, lanes, vector)
        if loaded == 1
        else tiles_of_loads(spec, lanes, (loaded, UNITS[step]), vector)
    )
    tunable = Tunable(key, spec, vector, build, candidates[0], candidates[:MOST_CANDIDATES])
    pixels, channels = vector.tiles.choose(tunable)
    packed = outputs if outputs % channels else channels
    even = spec.run_length // (loaded * UNITS[step]) % 2 == 0
    twice = loaded > 1 and even and fit_twice(channels // lanes, pixels, vector)
    return Tile(channels, packed, pixels, lanes, step, UNITS[step], loaded, 2 if twice else 1)


def reads_unsigned(spec: Conv2d, vector: Vector) -> bool:
    """Return whether a kernel multiplies inputs as uint8, 128 more than their int8, and may be given them so."""
    return step_of(spec, vector) == "vpdpbusd"


def slack_for(run_length: int, vector: Vector) -> int:
    """Return how far past the end of an int8 input is read to multiply a run of two or three elements as one of four.

    Before the end, what is read too much belongs to the next pixels; its weights are zero.
    """
    fits = vector.products in ("sdot", "smmla", "vpdpbusd") and run_length in (2, 3)
    return 4 - run_length if fits else 0


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
        independent=True,
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
    origins: tuple[Expr, Expr, Expr] = (0, 0, 0),
) -> None:
    """Write the loops over all tiles.

    Args:
        spec: of the convolution.
        tile: how it is cut up.
        buffers: x, the packed weight, the accumulators of one tile in the order (pixel, channel), y. Where x is float16
            and the accumulators are float32, sums of `LONGEST_SUM` products at most are added to them.
        begin: what the accumulators from an output channel on start at, whose inputs are a window: a pixel and group.
        finished: the results of the accumulators at a place, which are those from an output channel on.
        origins: where in x the input begins, in the packed weight that of this convolution, and in y the output.
    """
    x, weight, acc, y = buffers
    outputs = spec.outputs // spec.groups
    with (
        loop(spec.groups, parallel=True) as group,
        tiles(outputs, tile.channels, parallel=True) as (_, channel),
        loop(spec.out_height, parallel=True) as row,
        tiles(spec.out_width, tile.pixels, parallel=True) as (_, column),
    ):
        first = group * outputs + channel
        sums = acc if tile.rows == 1 else registers(tile.pixels * tile.channels, str(acc.dtype))
        position = row * spec.out_width + column
        for pixel in range(0, tile.pixels, tile.rows):
            windows = [(position + pixel + i) * spec.groups + group for i in range(tile.rows)]
            for at in range(0, tile.channels, tile.lanes):
                values = [begin(first + at, window) for window in windows]
                begin_sums(tile, sums, pixel * tile.channels + at * tile.rows, values)
        reduce(spec, tile, (x, weight, sums), (group, channel, row, column), origins[:2])
        if tile.rows > 1:
            part_pixels(tile, sums, acc)
        places = [pixel_of(spec.border, row, column + p, spec.out_width) for p in range(tile.pixels)]
        for at in range(0, tile.channels, tile.lanes):
            for pixel, place in enumerate(places):
                value = finished(pixel * tile.channels + at, first + at)
                store(y, origins[2] + place * spec.outputs + first + at, tile.lanes, value)


def reduce(
    spec: Conv2d,
    tile: Tile,
    buffers: tuple[Buffer, Buffer, Buffer],
    place: tuple[Expr, Expr, Expr, Expr],
    origins: tuple[Expr, Expr] = (0, 0),
) -> None:
    """Write the reduction loops of one tile.

    Its accumulators are in the order (pixel, channel), or (pixels of one operation, channels of one operation, pixel,
    channel) where an operation has several pixels. `origins` are where in x and in the packed weight its own begin.
    """
    x, weight, acc = buffers
    group, channel, row, column = place
    steps = tile.steps(spec)
    columns = spec.kernel[1] if spec.groups > 1 else 1
    run_weights = steps * tile.unit * tile.packed
    if tile.packed == tile.channels:
        block = origins[1] + (group * (spec.outputs // spec.groups) + channel) * spec.runs * steps * tile.unit
    else:
        block = origins[1] + group * spec.runs * run_weights + channel * tile.adjacent
    apart = str(x.dtype) == "float16" and str(acc.dtype) == "float32"
    sums = registers(int(acc.shape[0]), "float16") if apart else acc
    between = spec.stride[1] * spec.channels
    # Steps are taken as many at a time as are loaded together, and behind these one by one.
    size = tile.loaded * tile.unit
    whole = steps if tile.loaded == 1 else spec.run_length // size
    # Of whole rows of the kernel, or of steps of a run where one row is too long for a sum.
    rows = LONGEST_SUM // (columns * spec.run_length) if apart else spec.kernel[0]
    whole //= tile.times
    most = whole if rows else max(LONGEST_SUM // (tile.times * size), 1)
    with (
        parts(spec.kernel[0], rows or 1) as (top, n_rows),
        added_apart(sums, acc, tile.lanes, apart=apart and rows > 0),
        loop(n_rows) as line,
        loop(columns) as kx,
    ):
        ky = top + line
        pixel = (row * spec.stride[0] + ky) * spec.width + column * spec.stride[1] + kx
        source = origins[0] + pixel * spec.channels + group * (spec.channels // spec.groups)
        weights = block + (ky * columns + kx) * run_weights
        with (
            parts(whole, most) as (first, n_steps),
            added_apart(sums, acc, tile.lanes, apart=apart and rows == 0),
            loop(n_steps) as place_in_part,
        ):
            for time in range(tile.times):
                start = ((first + place_in_part) * tile.times + time) * size
                where = weight, weights + start * tile.packed
                if tile.loaded == 1 and steps > 1 and spec.run_length % size:
                    start = minimum(start, spec.run_length - size)
                multiply(tile, (x, source + start), between, where, sums, range(tile.loaded))
        if whole * tile.times * tile.loaded < steps:
            with added_apart(sums, acc, tile.lanes, apart=apart and rows == 0):
                _rest(spec, tile, (x, source), (weight, weights), sums)


def _rest(spec: Conv2d, tile: Tile, x: Place, weight: Place, sums: Buffer) -> None:
    """Write the steps of a run behind the last whole vector of inputs, by lanes of the vector that ends at its end."""
    size, between = tile.loaded * tile.unit, spec.stride[1] * spec.channels
    first = spec.run_length // size * tile.loaded
    weights = weight[1] + first * tile.unit * tile.packed
    if spec.run_length % tile.unit == 0:
        end, lanes = spec.run_length - size, range(first - tile.steps(spec) + tile.loaded, tile.loaded)
        multiply(tile, (x[0], x[1] + end), between, (weight[0], weights), sums, lanes)
        return
    for step in range(first, tile.steps(spec)):
        start = min(step * tile.unit, spec.run_length - tile.unit)
        place = weights + (step - first) * tile.unit * tile.packed
        multiply(replace(tile, loaded=1), (x[0], x[1] + start), between, (weight[0], place), sums, range(1))
