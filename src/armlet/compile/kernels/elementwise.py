"""Kernels that work element by element on flat tensors: conversions, sums, products, and changes of scale."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from armlet.compile.kernels.epilogue import FloatClamp, Requantize, finished, in_steps, to_int8, unsigned
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
    loop,
    meets_once,
    n_bytes,
    prim_func,
    registers,
    splat,
    store,
    tiles,
)

if TYPE_CHECKING:
    import tvm


@dataclass(frozen=True, slots=True)
class Quantize:
    """float32 to int8: clamp(round(x / scale) + zero), round half to even, NaN to -128."""

    size: int
    scale: float
    zero: int


@dataclass(frozen=True, slots=True)
class Dequantize:
    """int8 to float32: (q - zero) × scale."""

    size: int
    scale: float
    zero: int


@dataclass(frozen=True, slots=True)
class Sum:
    """int8 operands to int8: clamp(zero + floor((Σ multiplier × operand + offset) / 2^shift)).

    One operand changes the scale, two add.

    Attributes:
        offset: 2^(shift - 1) less the multipliers times the operands' zero points, which are 128 more of uint8.
        operands: their types, int8 or uint8, 128 more; int8 where none are given.
        unsigned: whether the result is uint8, 128 more than its int8.
    """

    size: int
    multipliers: tuple[int, ...]
    offset: int
    shift: int
    zero: int
    low: int
    high: int
    operands: tuple[str, ...] = ()
    unsigned: bool = False


@dataclass(frozen=True, slots=True)
class SumConstant:
    """int8 to int8: clamp(zero + floor((multiplier × x + constant + offset) / 2^shift)).

    Attributes:
        offset: 2^(shift - 1) less the multiplier times the operand's zero point.
    """

    size: int
    multiplier: int
    offset: int
    shift: int
    zero: int


@dataclass(frozen=True, slots=True)
class Product:
    """int8 operands to int8: requantize((a - zero) × (b - zero)).

    Attributes:
        repeats: how often b is repeated, one after the other, to have as many elements as a: `size` / those of b.
        zeros: zero points of the operands.
        multiplier: of the epilogue.
    """

    size: int
    repeats: int
    zeros: tuple[int, int]
    epilogue: Requantize
    multiplier: int


@dataclass(frozen=True, slots=True)
class PRelu:
    """int8 to int8: clamp(zero + floor(((x - origin) × multiplier + 2^(shift - 1)) / 2^shift)).

    Attributes:
        outer, channels, inner: the dimensions of the value; each channel has its own multiplier of what is below zero.
        origin, zero: zero points of the operand and of the result.
        positive: multiplier of what is above zero.
    """

    outer: int
    channels: int
    inner: int
    origin: int
    zero: int
    positive: int
    shift: int


@dataclass(frozen=True, slots=True)
class FloatSum:
    """Operands that are real numbers: clamp(Σ operand); one operand only clamps."""

    size: int
    operands: int
    clamp: FloatClamp


@dataclass(frozen=True, slots=True)
class Table:
    """int8 to int8 through a table of 256."""

    size: int


@dataclass(frozen=True, slots=True)
class Convert:
    """The same numbers in another type, rounded to the nearest, halves to even."""

    size: int
    origin: str
    to: str


@dataclass(frozen=True, slots=True)
class Recenter:
    """uint8 to int8, 128 less, or int8 to uint8, 128 more.

    Attributes:
        to: the type of the result.
    """

    size: int
    to: str


def build_table(spec: Table, vector: Vector) -> tvm.tirx.PrimFunc:
    """Return the kernel (x, table, y). One by one: no vector unit that armlet knows loads from 256 places at once."""
    del vector

    def body(x: Buffer, table: Buffer, y: Buffer) -> None:
        with loop(spec.size, parallel=True) as at:
            store(y, at, 1, table[cast(x[at], "int32", 1) + 128])

    parameters = [Parameter("x", spec.size, "int8"), Parameter("table", 256, "int8")]
    return prim_func([*parameters, Parameter("y", spec.size, "int8")], body, in_place=[0])


def build_convert(spec: Convert, vector: Vector) -> tvm.tirx.PrimFunc:
    """Return the kernel (x, y)."""
    width = max(vector.lanes(spec.origin), vector.lanes(spec.to))
    return _flat(spec.size, (spec.origin,), spec.to, width, lambda lanes, x: cast(x, spec.to, lanes))


def build_recenter(spec: Recenter, vector: Vector) -> tvm.tirx.PrimFunc:
    """Return the kernel (x, y)."""
    origin, more = ("int8", 128) if spec.to == "uint8" else ("uint8", -128)

    def value(lanes: int, x: Expr) -> Expr:
        return cast(cast(x, "int16", lanes) + constant(more, "int16", lanes), spec.to, lanes)

    return _flat(spec.size, (origin,), spec.to, vector.lanes("int16"), value)


def build_quantize(spec: Quantize, vector: Vector) -> tvm.tirx.PrimFunc:
    """Return the kernel (x, q). The division is IEEE float32 division, not a product with 1 / scale."""

    def value(lanes: int, x: Expr) -> Expr:
        steps = in_steps(x, spec.scale, (-128 - spec.zero, 127 - spec.zero), lanes)
        return cast(steps + constant(spec.zero, "int32", lanes), "int8", lanes)

    return _flat(spec.size, ("float32",), "int8", 2 * vector.lanes("float32"), value)


def build_dequantize(spec: Dequantize, vector: Vector) -> tvm.tirx.PrimFunc:
    """Return the kernel (q, x)."""

    def value(lanes: int, q: Expr) -> Expr:
        shifted = cast(q, "int32", lanes) - constant(spec.zero, "int32", lanes)
        return cast(shifted, "float32", lanes) * constant(spec.scale, "float32", lanes)

    return _flat(spec.size, ("int8",), "float32", 2 * vector.lanes("float32"), value)


def build_sum(spec: Sum, vector: Vector) -> tvm.tirx.PrimFunc:
    """Return the kernel (operand, ..., y). Everything fits in int32 (`quantized.arithmetic.addition`)."""

    def value(lanes: int, *operands: Expr) -> Expr:
        total = constant(spec.offset, "int32", lanes)
        for operand, multiplier in zip(operands, spec.multipliers, strict=True):
            total = total + cast(operand, "int32", lanes) * constant(multiplier, "int32", lanes)
        scaled = total >> constant(spec.shift, "int32", lanes)
        result = to_int8(scaled, spec.zero, (spec.low, spec.high), lanes)
        return unsigned(result, lanes) if spec.unsigned else result

    operands = spec.operands or ("int8",) * len(spec.multipliers)
    return _flat(spec.size, operands, "uint8" if spec.unsigned else "int8", vector.lanes("int16"), value)


def build_sum_constant(spec: SumConstant, vector: Vector) -> tvm.tirx.PrimFunc:
    """Return the kernel (x, constants, y). Everything fits in int32 (`quantized.arithmetic.constant_addition`)."""

    def value(lanes: int, x: Expr, constants: Expr) -> Expr:
        scaled = cast(x, "int32", lanes) * constant(spec.multiplier, "int32", lanes)
        total = scaled + constants + constant(spec.offset, "int32", lanes)
        shifted = total >> constant(spec.shift, "int32", lanes)
        return to_int8(shifted, spec.zero, (-128, 127), lanes)

    return _flat(spec.size, ("int8", "int32"), "int8", vector.lanes("int16"), value)


def build_prelu(spec: PRelu, vector: Vector) -> tvm.tirx.PrimFunc:
    """Return the kernel (x, multipliers, y). Everything fits in int32 (`quantized.arithmetic.slopes`)."""
    from tvm import tirx

    by_channel = spec.inner == 1  # neighbours are of different channels
    extent = spec.channels if by_channel else spec.inner
    lanes = lanes_for(extent, vector.lanes("int16"))

    def body(x: Buffer, multipliers: Buffer, y: Buffer) -> None:
        zero, half = (constant(n, "int32", lanes) for n in (0, 1 << (spec.shift - 1)))

        def apply(at: Expr, negative: Expr) -> None:
            steps = load(x, at, lanes, "int32") - constant(spec.origin, "int32", lanes)
            above = tirx.max(steps, zero) * constant(spec.positive, "int32", lanes)
            total = above + tirx.min(steps, zero) * negative + half
            shifted = total >> constant(spec.shift, "int32", lanes)
            store(y, at, lanes, to_int8(shifted, spec.zero, (-128, 127), lanes))

        with loop(spec.outer, parallel=True) as row:
            if by_channel:
                with tiles(spec.channels, lanes) as (_, channel):
                    apply(row * spec.channels + channel, load(multipliers, channel, lanes))
            else:
                with loop(spec.channels) as channel, tiles(spec.inner, lanes) as (_, place):
                    at = (row * spec.channels + channel) * spec.inner + place
                    apply(at, splat(multipliers[channel], lanes))

    size = spec.outer * spec.channels * spec.inner
    parameters = [Parameter("x", size, "int8"), Parameter("multipliers", spec.channels, "int32")]
    in_place = [0] if meets_once(extent, lanes) else []
    return prim_func([*parameters, Parameter("y", size, "int8")], body, in_place)


def build_product(spec: Product, vector: Vector) -> tvm.tirx.PrimFunc:
    """Return the kernel (a, b, y)."""
    each = spec.size // spec.repeats
    lanes = lanes_for(each, vector.lanes("int16"))

    def body(a: Buffer, b: Buffer, y: Buffer) -> None:
        products = registers(lanes, "int32")

        def shifted(buffer: Buffer, at: Expr, zero: int) -> Expr:
            return load(buffer, at, lanes, "int32") - constant(zero, "int32", lanes)

        with (
            loop(spec.repeats, parallel=True) as number,
            tiles(each, lanes, parallel=True) as (_, at),
        ):
            place = number * each + at
            product = shifted(a, place, spec.zeros[0]) * shifted(b, at, spec.zeros[1])
            store(products, 0, lanes, product)
            multipliers = lambda _, n: constant(spec.multiplier, "int32", n)  # noqa: E731
            store(y, place, lanes, finished(spec.epilogue, (products, 0), lanes, multipliers, vector))

    parameters = [Parameter("a", spec.size, "int8"), Parameter("b", each, "int8")]
    once = [0, 1] if spec.repeats == 1 else [0]
    in_place = once if meets_once(each, lanes) else []
    return prim_func([*parameters, Parameter("y", spec.size, "int8")], body, in_place)


def build_float_sum(spec: FloatSum, vector: Vector) -> tvm.tirx.PrimFunc:
    """Return the kernel (operand, ..., y)."""

    def value(lanes: int, *operands: Expr) -> Expr:
        total = operands[0]
        for operand in operands[1:]:
            total = total + operand
        return clamped(total, spec.clamp.low, spec.clamp.high, vector.real, lanes)

    real = vector.real
    return _flat(spec.size, (real,) * spec.operands, real, 2 * vector.lanes(real), value)


def _flat(
    size: int, operands: tuple[str, ...], result: str, width: int, value: Callable[..., Expr]
) -> tvm.tirx.PrimFunc:
    lanes = lanes_for(size, width)

    def body(*buffers: Buffer) -> None:
        with tiles(size, lanes, parallel=True) as (_, at):
            store(buffers[-1], at, lanes, value(lanes, *(load(b, at, lanes) for b in buffers[:-1])))

    inputs = [Parameter(f"x{i}", size, dtype) for i, dtype in enumerate(operands)]
    as_wide = [i for i, dtype in enumerate(operands) if n_bytes(dtype) == n_bytes(result)]
    in_place = as_wide if meets_once(size, lanes) else []
    return prim_func([*inputs, Parameter("y", size, result)], body, in_place)
