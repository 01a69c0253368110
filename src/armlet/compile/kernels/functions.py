"""exp, sigmoid and tanh of float32 vectors, in arithmetic alone, so that they vectorize and need no libm.

Source: the reduction and the polynomial of Cephes' expf (Moshier 1989). Largest errors over all floats, against the
exact values: exp 2 ulp within ±87 and saturating outside, sigmoid 1.2e-7 and tanh 2.4e-7 absolute. A product and a sum
may be contracted on cores with FMA, which changes the last bit.
"""

from __future__ import annotations

from armlet.compile.kernels.loops import Expr, cast, clamped, constant

_LOG2_E = 1.4426950408889634
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4
_POLYNOMIAL = (
    1.9875691500e-4,
    1.3981999507e-3,
    8.3334519073e-3,
    4.1665795894e-2,
    1.6666665459e-1,
    5.0000001201e-1,
)
_LIMIT = 87.3


def exp(x: Expr, lanes: int) -> Expr:
    """Return e^x, for x limited to ±87.3."""
    from tvm import tirx
    from tvm.script.ir_builder import tirx as t

    def number(value: float) -> Expr:
        return constant(value, "float32", lanes)

    x = clamped(x, -_LIMIT, _LIMIT, "float32", lanes)
    whole = tirx.nearbyint(x * number(_LOG2_E))
    rest = x - whole * number(_LN2_HIGH) - whole * number(_LN2_LOW)
    total = number(_POLYNOMIAL[0])
    for coefficient in _POLYNOMIAL[1:]:
        total = total * rest + number(coefficient)
    total = total * rest * rest + rest + number(1.0)
    integer, real = ("int32", "float32") if lanes == 1 else (f"int32x{lanes}", f"float32x{lanes}")
    exponent = t.shift_left(cast(whole, "int32", lanes), constant(23, "int32", lanes))
    return t.reinterpret(real, t.reinterpret(integer, total) + exponent)


def sigmoid(x: Expr, lanes: int) -> Expr:
    """Return 1 / (1 + e^-x)."""
    one = constant(1.0, "float32", lanes)
    return one / (one + exp(constant(0.0, "float32", lanes) - x, lanes))


def tanh(x: Expr, lanes: int) -> Expr:
    """Return 1 - 2 / (e^2x + 1)."""
    one, two = constant(1.0, "float32", lanes), constant(2.0, "float32", lanes)
    return one - two / (exp(x * two, lanes) + one)
