"""What a kernel does with an accumulator before it stores it: requantize to int8, or scale and limit a real number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from armlet.compile.kernels.loops import (
    Buffer,
    Expr,
    Vector,
    cast,
    clamped,
    combine,
    constant,
    load,
    shuffle,
    sum_type,
)

LARGEST_SHIFT_WITH_ZERO = 50
"""Up to this shift a zero point, shifted, and the high half of a product add up in int32."""
Multipliers: TypeAlias = Callable[[int, int], Expr]
"""Gives the factors of (first channel of the vector, lanes): int32 multipliers, or float32 scales of weights."""


@dataclass(frozen=True, slots=True)
class Requantize:
    """int32 accumulator to int8: clamp(zero + floor(acc × multiplier / 2^shift + 1/2)), the multiplier by channel.

    Attributes:
        result: "int8", "uint8" for 128 more, as some instructions multiply, or "int16" for what is no layer's output.
    """

    shift: int
    zero: int
    low: int
    high: int
    result: Literal["int8", "uint8", "int16"] = "int8"


@dataclass(frozen=True, slots=True)
class FloatClamp:
    """Limits of a result in the vector unit's type of real numbers; None where there is none."""

    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class WeightScale:
    """float32 sum of products with int8 weights: clamp(acc × scale), the scale by channel.

    The sum begins at bias / scale.
    """

    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Accumulators:
    """int32 accumulators as they are."""


Epilogue = Requantize | FloatClamp | WeightScale | Accumulators


def multiplies_integers(epilogue: Epilogue) -> bool:
    """Whether both operands of a kernel with this epilogue are integers."""
    return isinstance(epilogue, Requantize | Accumulators)


def accumulator(epilogue: Epilogue, vector: Vector, n_products: int) -> str:
    """Return the type that the sums of so many products end in, in a kernel with this epilogue."""
    return "int32" if multiplies_integers(epilogue) else sum_type(n_products, vector)


def bias_element(epilogue: Epilogue, vector: Vector) -> str:
    """Return the type of what the accumulators of a kernel with this epilogue begin at."""
    return "int32" if multiplies_integers(epilogue) else vector.real


def element(epilogue: Epilogue, vector: Vector) -> str:
    """Return the type of the input of a kernel with this epilogue."""
    return "int8" if multiplies_integers(epilogue) else vector.real


def result(epilogue: Epilogue, vector: Vector) -> str:
    """Return the type of the output of a kernel with this epilogue."""
    if isinstance(epilogue, Requantize):
        return epilogue.result
    return bias_element(epilogue, vector)


def weight_element(epilogue: Epilogue, vector: Vector) -> str:
    """Return the type of the weights."""
    return vector.real if isinstance(epilogue, FloatClamp) else "int8"


def factor_element(epilogue: Epilogue) -> str | None:
    """Return the type of the factors by channel, None where there are none."""
    match epilogue:
        case Requantize():
            return "int32"
        case WeightScale():
            return "float32"
    return None


def width(epilogue: Epilogue, vector: Vector) -> int:
    """Return how many channels one step of the inner loop works on.

    For int8, one register of int16 products: they are added in pairs before they widen to int32.
    """
    return vector.lanes("int16" if multiplies_integers(epilogue) else vector.real)


def finished(
    epilogue: Epilogue, acc: tuple[Buffer, int], lanes: int, multipliers: Multipliers, vector: Vector
) -> Expr:
    """Return what is stored for `lanes` accumulators, given as a buffer and where in it."""
    buffer, start = acc
    if isinstance(epilogue, Accumulators):
        return load(buffer, start, lanes)
    if isinstance(epilogue, FloatClamp):
        dtype = str(buffer.dtype)
        limited = clamped(load(buffer, start, lanes), epilogue.low, epilogue.high, dtype, lanes)
        return limited if dtype == vector.real else cast(limited, vector.real, lanes)
    if isinstance(epilogue, WeightScale):
        scaled = load(buffer, start, lanes) * multipliers(0, lanes)
        return clamped(scaled, epilogue.low, epilogue.high, "float32", lanes)
    value = rescaled(epilogue, acc, lanes, multipliers, vector)
    if epilogue.result == "int16":
        return cast(clamped(value, epilogue.low, epilogue.high, "int32", lanes), "int16", lanes)
    limits = epilogue.low, epilogue.high
    return stored(epilogue, to_int8(value, 0, limits, lanes, by_way_of_int16=vector.n_bytes < 64), lanes)


def stored(epilogue: Requantize, value: Expr, lanes: int) -> Expr:
    """Return int8 values in the type that the result has."""
    return unsigned(value, lanes) if epilogue.result == "uint8" else value


def unsigned(value: Expr, lanes: int) -> Expr:
    """Return int8 values as uint8, 128 more."""
    from tvm.script.ir_builder import tirx as t

    turned = t.bitwise_xor(value, constant(-128, "int8", lanes))
    return t.reinterpret("uint8" if lanes == 1 else f"uint8x{lanes}", turned)


def within(value: Expr, limits: tuple[int, int], lanes: int) -> Expr:
    """Return int8 values within limits, of which those that every int8 keeps cost nothing."""
    low, high = limits
    return clamped(value, low if low > -128 else None, high if high < 127 else None, "int8", lanes)


def rescaled(
    epilogue: Requantize, acc: tuple[Buffer, int], lanes: int, multipliers: Multipliers, vector: Vector
) -> Expr:
    """Return zero + floor(acc × multiplier / 2^shift + 1/2) of `lanes` accumulators, int32.

    The zero point goes with the rounding term where there is room for it in int32.
    """
    buffer, start = acc
    shift = epilogue.shift
    zero = 0 if epilogue.result == "int16" else epilogue.zero
    later = zero if shift > LARGEST_SHIFT_WITH_ZERO else 0
    parts = []
    if shift < 32 or lanes % 2:
        wide = load(buffer, start, lanes, "int64") * cast(multipliers(0, lanes), "int64", lanes)
        wide = wide + constant((1 << (shift - 1)) + ((zero - later) << shift), "int64", lanes)
        parts = [cast(wide >> constant(shift, "int64", lanes), "int32", lanes)]
    elif vector.high_product is None or lanes % 4:
        parts = [_by_halves(load(buffer, start, lanes), multipliers(0, lanes), shift, zero - later, lanes)]
    else:
        for i in range(0, lanes, 4):
            product = load(buffer, start + i, 4), multipliers(i, 4)
            parts.append(_rounded_product(*product, shift, zero - later, vector.high_product))
    value = combine(parts, "int32", lanes // len(parts))
    return value + constant(later, "int32", lanes) if later else value


def _by_halves(acc: Expr, multiplier: Expr, shift: int, zero: int, lanes: int) -> Expr:
    """Return zero + floor((acc × multiplier + 2^(shift - 1)) / 2^shift), even and odd lanes each as int64 in place.

    So nothing is moved to widen it, and the high halves of the products, which are in odd places, are rounded as int32.
    """
    from tvm.script.ir_builder import tirx as t

    half = lanes // 2
    up = constant(32, "int64", half)

    def products(a: Expr, b: Expr) -> Expr:
        product = a * b + constant(1 << 31, "int64", half) if shift == 32 else a * b
        return t.reinterpret(f"int32x{lanes}", product)

    a, b = (t.reinterpret("int64" if half == 1 else f"int64x{half}", value) for value in (acc, multiplier))
    even, odd = products((a << up) >> up, (b << up) >> up), products(a >> up, b >> up)
    picked = [place + 1 if place % 2 == 0 else lanes + place for place in range(lanes)]
    rounding = (1 << (shift - 33) if shift > 32 else 0) + (zero << (shift - 32))
    return (shuffle([even, odd], picked) + constant(rounding, "int32", lanes)) >> constant(
        shift - 32, "int32", lanes
    )


def shifted_product(a: Expr, b: Expr, shift: int, lanes: int, vector: Vector) -> Expr:
    """Return floor(a × b / 2^shift) of at most four int32 lanes, which must fit in int32; not both are -2^31."""
    if vector.high_product is not None and lanes == 4 and shift >= 31:
        return _high_half(a, b, vector.high_product) >> constant(min(shift - 31, 31), "int32", lanes)
    wide = cast(a, "int64", lanes) * cast(b, "int64", lanes)
    return cast(wide >> constant(shift, "int64", lanes), "int32", lanes)


def _rounded_product(acc: Expr, multiplier: Expr, shift: int, zero: int, high_product: str) -> Expr:
    """Return zero + floor((acc × multiplier + 2^(shift - 1)) / 2^shift) of four lanes without int64.

    What the high half h drops is less than one unit of it, and the rounding term is a whole number of them for
    shift ≥ 32, so that zero + floor((h + 2^(shift - 32)) / 2^(shift - 31)) is the same number.
    """
    rounding = constant((1 << (shift - 32)) + (zero << (shift - 31)), "int32", 4)
    return (_high_half(acc, multiplier, high_product) + rounding) >> constant(shift - 31, "int32", 4)


def _high_half(a: Expr, b: Expr, high_product: str) -> Expr:
    """Return floor(a × b / 2^31) of four int32 lanes, by the instruction of that name."""
    from tvm.script.ir_builder import tirx as t

    return t.call_llvm_pure_intrin("int32x4", high_product, a, b)


def in_steps(x: Expr, scale: float, limits: tuple[float, float], lanes: int) -> Expr:
    """Return float32 x in whole steps of a scale, within limits, as int32: an IEEE division, halves to even."""
    from tvm import tirx

    whole = tirx.nearbyint(x / constant(scale, "float32", lanes))
    return cast(clamped(whole, *limits, "float32", lanes), "int32", lanes)


def to_int8(
    scaled: Expr, zero: int, limits: tuple[int, int], lanes: int, *, by_way_of_int16: bool = True
) -> Expr:
    """Return clamp(scaled + zero) of int32 as int8; by way of int16, which takes half the registers, if asked for."""
    if zero:
        value = cast(clamped(scaled, -(2**15), 2**15 - 1, "int32", lanes), "int16", lanes)
        value = clamped(value, limits[0] - zero, limits[1] - zero, "int16", lanes)
        return cast(value + constant(zero, "int16", lanes), "int8", lanes)
    # Each narrowing saturates, which vector units do at once.
    if by_way_of_int16:
        value = cast(clamped(scaled, -(2**15), 2**15 - 1, "int32", lanes), "int16", lanes)
        value = clamped(value, -128, 127, "int16", lanes)
    else:
        value = clamped(scaled, -128, 127, "int32", lanes)
    return within(cast(value, "int8", lanes), limits, lanes)
