"""exp, sigmoid, tanh and erf of float32 vectors, in arithmetic alone, so that they vectorize and need no libm.

Source: the reduction and the polynomial of Cephes' expf (Moshier 1989). Largest errors over all floats, against the
exact values: exp 2 ulp within ±87 and saturating outside, sigmoid 1.2e-7 and tanh 2.4e-7 absolute, erf 8 ulp. A product
and a sum may be contracted on cores with FMA, which changes the last bit.

erf is x P(x²) / Q(x²) on ±3.832, where it is 1 but for 6e-8; the coefficients have the least largest relative error,
1.4e-8, found by Lawson's iteration (Lawson 1961).
"""

from __future__ import annotations

from collections.abc import Sequence

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
_ERF_LIMIT = 3.832
_ERF_OVER = (
    2.1237677101707782e-06,
    2.859421681561718e-04,
    3.651472048287726e-03,
    5.241471188842447e-02,
    1.8727483103557177e-01,
    1.1283791522890207,
)
_ERF_UNDER = (
    3.8904771068675515e-05,
    1.1414470229322727e-03,
    1.4739923726159482e-02,
    1.1288720709900611e-01,
    4.9930090504852437e-01,
    1.0,
)


def exp(x: Expr, lanes: int) -> Expr:
    """Return e^x, for x limited to ±87.3."""
    from tvm import tirx
    from tvm.script.ir_builder import tirx as t

    def number(value: float) -> Expr:
        return constant(value, "float32", lanes)

    x = clamped(x, -_LIMIT, _LIMIT, "float32", lanes)
    whole = tirx.nearbyint(x * number(_LOG2_E))
    rest = x - whole * number(_LN2_HIGH) - whole * number(_LN2_LOW)
    total = _polynomial(_POLYNOMIAL, rest, lanes)
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


def erf(x: Expr, lanes: int) -> Expr:
    """Return the error function, 2/√π ∫₀ˣ e^-t² dt."""
    x = clamped(x, -_ERF_LIMIT, _ERF_LIMIT, "float32", lanes)
    square = x * x
    return x * _polynomial(_ERF_OVER, square, lanes) / _polynomial(_ERF_UNDER, square, lanes)


def _polynomial(coefficients: Sequence[float], x: Expr, lanes: int) -> Expr:
    """Return the value of a polynomial, the coefficient of its highest power given first (Horner)."""
    total = constant(coefficients[0], "float32", lanes)
    for coefficient in coefficients[1:]:
        total = total * x + constant(coefficient, "float32", lanes)
    return total
