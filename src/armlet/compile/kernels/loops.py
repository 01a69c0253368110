"""The few words that all kernels are written in: vectors, tiles and loop nests of TVM's TIR.

Kernels are written as loops over flat buffers and not as TE compute with a schedule, because two things that keep them
small have no such form: a tile that does not fit is moved back so that it ends at the edge (the overlap is computed
twice, with equal results), and a convolution reads (kernel column, channel) as one contiguous run of memory. So no
kernel has a scalar tail or a bounds check, for any number of channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from armlet.compile.kernels.choices import Tiles, tiles_of
from armlet.spec.recipe import Precision
from armlet.spec.target import Target

if TYPE_CHECKING:
    import tvm

Expr: TypeAlias = Any
"""A TIR expression or a Python int: TVM's Python classes have no static types."""
Buffer: TypeAlias = Any
"""A TIR buffer of one dimension."""
LONGEST_SUM = 64
"""Products that are added up in float16 at most; such sums are added in float32.

A fused product and sum in float16 rounds to 11 bits. Where the products' mean is zero, what a sum of n is off by grows
with √n: 0.09 % of such sums' root mean square for 64, the roundings of their operands with it, and 0.65 % for 4,096.
"""
LARGEST = (-65504.0, 65504.0)
"""The least and the largest number of float16."""
Products = Literal["widening", "sadalp", "sdot", "smmla", "pmaddwd", "vpdpbusd"]
"""How a vector unit multiplies int8; see `Vector`."""
INDEPENDENT = "armlet.independent"
"""Attribute of a PrimFunc: of what stands beside its parallel loop nothing needs to be done before another."""
IN_PLACE = "armlet.in_place"
"""Attribute of a PrimFunc: numbers of the parameters whose memory the last one may take."""


@dataclass(frozen=True, slots=True)
class Vector:
    """The vector unit that kernels are written for.

    Attributes:
        n_bytes: width of one register.
        n_registers: how many there are.
        products: how it multiplies int8: "widening" to int16, "sadalp" of int16 products added to their neighbours in
            int32 (Armv8.0), "sdot" of four products into int32 (Armv8.2), "smmla" of eight products into each of 2 × 2
            int32 (Armv8.6) beside sdot, "pmaddwd" of two int16 products into int32 (x86), "vpdpbusd" of four products,
            of an unsigned with a signed number each, into int32 (AVX-512 VNNI).
        by_lane: whether it multiplies vectors of real numbers by one lane of another (NEON's fmla by element).
        high_product: LLVM's name of the instruction for the high half of a doubled int32 product (NEON's sqdmulh, which
            is vqdmulh in 32-bit code); None where there is none.
        real: the type of real numbers between kernels, and of what kernels of them multiply.
        tiles: how kernels are cut up where their formulas do not say it.
    """

    n_bytes: int
    n_registers: int
    products: Products
    high_product: str | None = None
    by_lane: bool = False
    real: Precision = "float32"
    tiles: Tiles = field(default_factory=Tiles, compare=False)

    @property
    def unit(self) -> str:
        """Its registers as they stand in the key of a kernel."""
        return f"{self.n_registers} registers of {8 * self.n_bytes} bits"

    def lanes(self, dtype: str) -> int:
        """Return how many elements one register holds."""
        return self.n_bytes // n_bytes(dtype)


def vector_of(target: Target, precision: Precision = "float32") -> Vector:
    """Return the vector unit that the target's features give, for real numbers of a type that it computes on.

    Raises:
        UsageError: the table of tiles that comes with armlet can't be read.
    """
    return replace(_unit_of(target, precision), tiles=tiles_of(target))


def _unit_of(target: Target, precision: Precision) -> Vector:
    features, n_bytes = target.resolved_features, target.vector_bytes
    if "neon" in features and target.is_arm32:
        return Vector(n_bytes, 16, "widening", "llvm.arm.neon.vqdmulh.v4i32")
    if "neon" in features:
        products: Products = "smmla" if "i8mm" in features else "sdot" if "dotprod" in features else "sadalp"
        return Vector(n_bytes, 32, products, "llvm.aarch64.neon.sqdmulh.v4i32", by_lane=True, real=precision)
    if "avx512vnni" in features:
        return Vector(n_bytes, 32, "vpdpbusd")
    if "avx2" in features or "sse4.2" in features:
        return Vector(n_bytes, 16, "pmaddwd")
    return Vector(n_bytes, 16, "widening")


def n_bytes(dtype: str) -> int:
    """Return the size of one element."""
    return {"int8": 1, "uint8": 1, "int16": 2, "float16": 2, "int32": 4, "float32": 4, "int64": 8}[dtype]


def lanes_for(extent: int, most: int) -> int:
    """Return the largest power of two that neither `extent` nor `most` falls short of."""
    lanes = 1
    while lanes * 2 <= min(extent, most):
        lanes *= 2
    return lanes


def ceil_div(a: int, b: int) -> int:
    """Return a / b rounded up."""
    return -(-a // b)


@dataclass(frozen=True, slots=True)
class Parameter:
    """A flat buffer that a kernel reads or writes."""

    name: str
    size: int
    dtype: str


def prim_func(
    parameters: Sequence[Parameter],
    body: Callable[..., None],
    in_place: Sequence[int] = (),
    *,
    independent: bool = False,
) -> tvm.tirx.PrimFunc:
    """Return the PrimFunc whose loops `body` writes, given one buffer for each parameter.

    Args:
        parameters: inputs, then the result.
        body: given their buffers.
        in_place: numbers of the inputs whose memory the result may take: `body` reads each element of them for the
            last time before it writes the one in its place.
        independent: whether of the loops that stand one after the other none needs to run before another.
    """
    from tvm.script.ir_builder import IRBuilder
    from tvm.script.ir_builder import tirx as t

    with IRBuilder() as builder, t.prim_func(s_tir=True):
        t.func_name("kernel")
        body(*(t.arg(p.name, t.buffer((p.size,), p.dtype)) for p in parameters))
        t.func_attr({"tirx.noalias": True, IN_PLACE: list(in_place)})
        if independent:
            t.func_attr({INDEPENDENT: True})
    return builder.get()


def registers(size: int, dtype: str) -> Buffer:
    """Return a small local buffer that is only indexed by constants, so that LLVM keeps it in registers."""
    from tvm.script.ir_builder import tirx as t

    return t.alloc_buffer((size,), dtype, scope="local")


def meets_once(extent: int, lanes: int) -> bool:
    """Whether `tiles` has each element in one tile only, so that one may be written where it was read."""
    return extent % lanes == 0


@contextmanager
def loop(extent: Expr, *, parallel: bool = False) -> Iterator[Expr]:
    """Loop from 0 to `extent`; no loop is written when that is known to be one turn.

    Threads may share the turns of a `parallel` one: none reads what another writes but working buffers, which it has
    written itself before. Two may write the same element, of the same bits.
    """
    from tvm.script.ir_builder import tirx as t

    if isinstance(extent, int) and extent == 1:
        yield 0
    else:
        with (t.parallel if parallel else t.serial)(0, extent) as index:
            yield index


@contextmanager
def tiles(extent: int, size: int, *, parallel: bool = False) -> Iterator[tuple[Expr, Expr]]:
    """Loop over tiles of `size` in `extent`, giving (number, start); the last one ends at the edge."""
    with loop(ceil_div(extent, size), parallel=parallel) as number:
        yield number, minimum(number * size, extent - size) if extent % size else number * size


@contextmanager
def parts(extent: int, size: int) -> Iterator[tuple[Expr, Expr]]:
    """Loop over parts of `extent`, of `size` each but for the last, giving (start, size)."""
    from tvm import tirx

    with loop(ceil_div(extent, size)) as number:
        if extent <= size:
            yield 0, extent
        elif extent % size == 0:
            yield number * size, size
        else:
            yield number * size, tirx.min(tirx.const(size, "int32"), extent - number * size)


@contextmanager
def added_apart(sums: Buffer, total: Buffer, lanes: int, *, apart: bool) -> Iterator[None]:
    """Begin sums in float16 at zero, and add them to totals in float32 behind; do neither unless `apart`."""
    size = int(sums.shape[0])
    if apart:
        for at in range(0, size, lanes):
            store(sums, at, lanes, constant(0, "float16", lanes))
    yield
    if apart:
        for at in range(0, size, lanes):
            store(total, at, lanes, load(total, at, lanes) + load(sums, at, lanes, "float32"))


def sum_type(n_products: int, vector: Vector) -> str:
    """Return the type that sums of so many products of real numbers end in."""
    return "float32" if n_products > LONGEST_SUM else vector.real


def total(result: Buffer, extent: int, lanes: int, dtype: str, value: Callable[[Expr, int], Expr]) -> None:
    """Write to result[0] the sum of value(at, lanes) over `extent`; no tile is moved back: each element counts once."""
    whole = extent // lanes * lanes
    sums = registers(lanes, dtype)
    store(sums, 0, lanes, constant(0, dtype, lanes))
    with loop(whole // lanes) as number:
        store(sums, 0, lanes, load(sums, 0, lanes) + value(number * lanes, lanes))
    store(result, 0, 1, sums[0])
    for lane in range(1, lanes):
        store(result, 0, 1, result[0] + sums[lane])
    for at in range(whole, extent):
        store(result, 0, 1, result[0] + value(at, 1))


def minimum(a: Expr, b: Expr) -> Expr:
    """Return the smaller of two scalars."""
    from tvm import tirx

    return min(a, b) if isinstance(a, int) and isinstance(b, int) else tirx.min(a, b)


def span(start: Expr, lanes: int) -> Expr:
    """Return the index of `lanes` consecutive elements."""
    from tvm.script.ir_builder import tirx as t

    return start if lanes == 1 else t.ramp(start, 1, lanes)


def load(buffer: Buffer, start: Expr, lanes: int, dtype: str | None = None) -> Expr:
    """Load `lanes` consecutive elements, converted to `dtype` if given."""
    value = buffer[span(start, lanes)]
    return value if dtype is None else cast(value, dtype, lanes)


def store(buffer: Buffer, start: Expr, lanes: int, value: Expr) -> None:
    """Store `lanes` consecutive elements."""
    from tvm.script.ir_builder import tirx as t

    t.buffer_store(buffer, value, [span(start, lanes)])


def cast(value: Expr, dtype: str, lanes: int) -> Expr:
    """Convert a vector's elements."""
    from tvm import tirx

    return tirx.Cast(dtype if lanes == 1 else f"{dtype}x{lanes}", value)


def splat(value: Expr, lanes: int) -> Expr:
    """Return a vector of one scalar repeated."""
    from tvm.script.ir_builder import tirx as t

    return value if lanes == 1 else t.broadcast(value, lanes)


def combine(parts: Sequence[Expr], dtype: str, lanes: int) -> Expr:
    """Return one vector of several of `lanes` elements each; their number is a power of two."""
    from tvm.script.ir_builder import tirx as t

    if len(parts) == 1:
        return parts[0]
    half = len(parts) // 2
    halves = [combine(some, dtype, lanes) for some in (parts[:half], parts[half:])]
    return t.vectorcombine(f"{dtype}x{lanes * len(parts)}", *halves)


def shuffle(vectors: Sequence[Expr], picked: Sequence[int]) -> Expr:
    """Return a vector of the picked elements of vectors, numbered from the first one's first on."""
    from tvm import tirx

    return tirx.Shuffle(list(vectors), [tirx.const(place, "int32") for place in picked])


def constant(value: float, dtype: str, lanes: int) -> Expr:
    """Return a vector of one constant repeated."""
    from tvm import tirx

    return splat(tirx.const(value, dtype), lanes)


def clamped(value: Expr, low: float | None, high: float | None, dtype: str, lanes: int) -> Expr:
    """Limit a vector's elements; where the value is NaN the lower limit comes out.

    Limits beyond float16 become its largest numbers: ±∞, which may stand for what is beyond, becomes one of them.
    """
    from tvm import tirx

    if dtype == "float16":
        low, high = (
            None if limit is None else min(max(limit, LARGEST[0]), LARGEST[1]) for limit in (low, high)
        )
    if low is not None:
        value = tirx.max(value, constant(low, dtype, lanes))
    return value if high is None else tirx.min(value, constant(high, dtype, lanes))


def smallest(dtype: str) -> float:
    """Return the value that never wins a maximum."""
    return -128 if dtype == "int8" else float("-inf")
