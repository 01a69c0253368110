"""Kernels that quantise a tensor while the program runs, and the products of what they give with weights.

Scale and zero point lie in a buffer of two float32 numbers. The arithmetic is that of `quantized.dynamic`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from armlet.compile.kernels import conv2d
from armlet.compile.kernels.epilogue import FloatClamp
from armlet.compile.kernels.loops import (
    Buffer,
    Expr,
    Parameter,
    Vector,
    cast,
    clamped,
    constant,
    lanes_for,
    load,
    prim_func,
    registers,
    splat,
    store,
    tiles,
)
from armlet.compile.quantized.dynamic import LARGEST, LEAST, LOWEST

if TYPE_CHECKING:
    import tvm


@dataclass(frozen=True, slots=True)
class Range:
    """float32 to the scale and the zero point of its range."""

    size: int


@dataclass(frozen=True, slots=True)
class QuantizeBy:
    """float32 to int8: clamp(round(x / scale) + zero), round half to even, NaN to -128."""

    size: int


@dataclass(frozen=True, slots=True)
class Product:
    """int8 to float32: clamp(Σ (x - zero) × weight × (scale × weight scale) + bias).

    Attributes:
        integers: the sums of products, which have no epilogue but this kernel's.
    """

    integers: conv2d.Conv2d
    clamp: FloatClamp


def build_range(spec: Range, vector: Vector) -> tvm.tirx.PrimFunc:
    """Return the kernel (x, range). A comparison with NaN is false, which leaves it out."""
    from tvm import tirx

    lanes = lanes_for(
        spec.size, 2 * vector.lanes("float32")
    )  # two chains, neither of which waits for the other

    def body(x: Buffer, found: Buffer) -> None:
        low, high, ends = registers(lanes, "float32"), registers(lanes, "float32"), registers(2, "float32")
        store(low, 0, lanes, constant(0.0, "float32", lanes))
        store(high, 0, lanes, constant(0.0, "float32", lanes))
        with tiles(spec.size, lanes) as (_, at):
            value = load(x, at, lanes)
            store(low, 0, lanes, tirx.min(value, load(low, 0, lanes)))
            store(high, 0, lanes, tirx.max(value, load(high, 0, lanes)))
        store(ends, 0, 1, tirx.const(-LARGEST, "float32"))
        store(ends, 1, 1, tirx.const(LARGEST, "float32"))
        least, most = low[0], high[0]
        for lane in range(1, lanes):
            least, most = tirx.min(least, low[lane]), tirx.max(most, high[lane])
        store(ends, 0, 1, tirx.max(least, ends[0]))
        store(ends, 1, 1, tirx.min(most, ends[1]))
        spread = ends[1] - ends[0]
        none = spread < tirx.const(LEAST, "float32")
        store(
            found, 0, 1, tirx.Select(none, tirx.const(1.0, "float32"), spread / tirx.const(255.0, "float32"))
        )
        zero = tirx.nearbyint((tirx.const(0.0, "float32") - ends[0]) / found[0])
        store(found, 1, 1, tirx.min(zero, tirx.const(255.0, "float32")) - tirx.const(128.0, "float32"))

    return prim_func([Parameter("x", spec.size, "float32"), Parameter("range", 2, "float32")], body)


def build_quantize_by(spec: QuantizeBy, vector: Vector) -> tvm.tirx.PrimFunc:
    """Return the kernel (x, range, q). The division is IEEE float32 division, not a product with 1 / scale."""
    from tvm import tirx

    lanes = lanes_for(spec.size, 2 * vector.lanes("float32"))

    def body(x: Buffer, found: Buffer, q: Buffer) -> None:
        def all_lanes(value: Expr) -> Expr:
            return splat(value, lanes)

        zero = found[1]
        with tiles(spec.size, lanes, parallel=True) as (_, at):
            scaled = tirx.nearbyint(load(x, at, lanes) / all_lanes(found[0]))
            limited = tirx.max(scaled, all_lanes(tirx.const(-128.0, "float32") - zero))
            limited = tirx.min(limited, all_lanes(tirx.const(127.0, "float32") - zero))
            integer = cast(limited, "int32", lanes) + all_lanes(cast(zero, "int32", 1))
            store(q, at, lanes, cast(integer, "int8", lanes))

    parameters = [Parameter("x", spec.size, "float32"), Parameter("range", 2, "float32")]
    return prim_func([*parameters, Parameter("q", spec.size, "int8")], body)


def build_product(spec: Product, vector: Vector) -> tvm.tirx.PrimFunc:
    """Return the kernel (q, range, weight, minus, scales, bias, [sums, shifts], y); minus is -Σ of the weights."""
    from tvm import tirx

    sums = spec.integers
    tile = conv2d.tile_of(sums, vector)
    lanes = tile.lanes

    def body(q: Buffer, found: Buffer, weight: Buffer, minus: Buffer, *rest: Buffer) -> None:
        scales, bias, y = rest[0], rest[1], rest[-1]
        acc = registers(tile.pixels * tile.channels, "int32")

        def finished(place: int, channel: Expr) -> Expr:
            scale = splat(found[0], lanes) * load(scales, channel, lanes)
            product = load(acc, place, lanes, "float32") * scale
            # Between product and sum stands a limit: no compiler can make one fused instruction of the two.
            product = tirx.max(product, constant(LOWEST, "float32", lanes))
            total = product + load(bias, channel, lanes)
            return clamped(total, spec.clamp.low, spec.clamp.high, "float32", lanes)

        def begin(channel: Expr, window: Expr) -> Expr:
            zero = cast(found[1], "int32", 1)
            start = load(minus, channel, lanes) * splat(zero + tile.offset, lanes)
            if not sums.sums:
                return start
            distance = rest[2][window * sums.sums] - zero * (sums.runs * sums.run_length)
            return start + load(rest[3], channel, lanes) * splat(distance, lanes)

        conv2d.compute(sums, tile, (q, weight, acc, y), begin, finished)

    size = sums.height * sums.width * sums.channels
    parameters = [Parameter("q", size, "int8"), Parameter("range", 2, "float32")]
    parameters += [Parameter("weight", conv2d.n_packed(sums, tile), "int8")]
    parameters += [Parameter("minus", sums.outputs, "int32")]
    parameters += [Parameter(name, sums.outputs, "float32") for name in ("scales", "bias")]
    parameters += conv2d.shift_parameters(sums)
    result = sums.out_height * sums.out_width * sums.outputs
    return prim_func([*parameters, Parameter("y", result, "float32")], body)
