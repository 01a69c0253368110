"""Kernels on matrices and their rows: products, softmax, normalisation, means, look-ups, moves, sums, conversions."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from armlet.compile.kernels import elementwise, layer_norm, move, softmax
from armlet.compile.kernels.loops import (
    LARGEST,
    Buffer,
    Expr,
    Parameter,
    Vector,
    cast,
    clamped,
    loop,
    registers,
    store,
)
from armlet.compile.opencl.items import choose, number, per_item, places, put, real

if TYPE_CHECKING:
    import tvm


@dataclass(frozen=True, slots=True)
class Dense:
    """Rows [rows, inputs] times a constant [inputs, outputs], with a bias and limits of the result."""

    rows: int
    inputs: int
    outputs: int
    low: float | None
    high: float | None

    @property
    def macs(self) -> int:
        """Multiply-accumulates."""
        return self.rows * self.inputs * self.outputs


@dataclass(frozen=True, slots=True)
class MatMul:
    """[batches, rows, inner] × [batches, inner, columns], times a factor."""

    batches: int
    rows: int
    inner: int
    columns: int
    factor: float

    @property
    def macs(self) -> int:
        """Multiply-accumulates."""
        return self.batches * self.rows * self.inner * self.columns


@dataclass(frozen=True, slots=True)
class LogSoftmax:
    """x - log Σ exp(x) of each row."""

    rows: int
    columns: int


@dataclass(frozen=True, slots=True)
class ColumnMean:
    """The mean of each column of a matrix [rows, columns]."""

    rows: int
    columns: int


def build_dense(spec: Dense, vector: Vector) -> tvm.tirx.PrimFunc:
    """Return the kernel (x, weights, bias, y); weights lie as [inputs, outputs], so that neighbours read neighbours."""

    def body(at: Expr, x: Buffer, weights: Buffer, bias: Buffer, y: Buffer) -> None:
        row, column = places(at, (spec.rows, spec.outputs))
        total = registers(1, "float32")
        store(total, 0, 1, real(bias[column]))
        with loop(spec.inputs) as k:
            product = real(x[row * spec.inputs + k]) * real(weights[k * spec.outputs + column])
            store(total, 0, 1, total[0] + product)
        put(y, at, clamped(total[0], spec.low, spec.high, "float32", 1))

    n = spec.rows * spec.outputs
    sizes = {
        "x": spec.rows * spec.inputs,
        "weights": spec.inputs * spec.outputs,
        "bias": spec.outputs,
        "y": n,
    }
    return per_item([Parameter(name, size, vector.real) for name, size in sizes.items()], n, body)


def build_matmul(spec: MatMul, vector: Vector) -> tvm.tirx.PrimFunc:
    """Return the kernel (a, b, y)."""

    def body(at: Expr, a: Buffer, b: Buffer, y: Buffer) -> None:
        batch, row, column = places(at, (spec.batches, spec.rows, spec.columns))
        total = registers(1, "float32")
        store(total, 0, 1, number(0.0))
        with loop(spec.inner) as k:
            left = a[(batch * spec.rows + row) * spec.inner + k]
            right = b[(batch * spec.inner + k) * spec.columns + column]
            store(total, 0, 1, total[0] + real(left) * real(right))
        put(y, at, total[0] * number(spec.factor) if spec.factor != 1 else total[0])

    n = spec.batches * spec.rows * spec.columns
    sizes = {
        "a": spec.batches * spec.rows * spec.inner,
        "b": spec.batches * spec.inner * spec.columns,
        "y": n,
    }
    return per_item([Parameter(name, size, vector.real) for name, size in sizes.items()], n, body)


def build_softmax(spec: softmax.Softmax | LogSoftmax, vector: Vector) -> tvm.tirx.PrimFunc:
    """Return the kernel (x, [mask], y), with an item for each row."""
    from tvm import tirx

    mask_rows = spec.mask_rows if isinstance(spec, softmax.Softmax) else 0
    columns = spec.columns

    def body(row: Expr, x: Buffer, *rest: Buffer) -> None:
        most, total = registers(1, "float32"), registers(1, "float32")

        def score(at: Expr) -> Expr:
            value = real(x[row * columns + at])
            if not mask_rows:
                return value
            value = value + real(rest[0][row % mask_rows * columns + at])
            # What a mask is in float16 may be -∞, and a row of such has no shares.
            return tirx.max(value, number(LARGEST[0])) if vector.real == "float16" else value

        store(most, 0, 1, score(0))
        with loop(columns) as at:
            store(most, 0, 1, tirx.max(most[0], score(at)))
        store(total, 0, 1, number(0.0))
        with loop(columns) as at:
            store(total, 0, 1, total[0] + tirx.exp(score(at) - most[0]))
        with loop(columns) as at:
            below = score(at) - most[0]
            logarithm = isinstance(spec, LogSoftmax)
            result = below - tirx.log(total[0]) if logarithm else tirx.exp(below) / total[0]
            put(rest[-1], row * columns + at, result)

    size, dtype = spec.rows * columns, vector.real
    mask = [Parameter("mask", mask_rows * columns, dtype)] if mask_rows else []
    return per_item([Parameter("x", size, dtype), *mask, Parameter("y", size, dtype)], spec.rows, body)


def build_layer_norm(spec: layer_norm.LayerNorm, vector: Vector) -> tvm.tirx.PrimFunc:
    """Return the kernel (x, gain, bias, y), with an item for each row."""
    from tvm import tirx

    n = spec.columns

    def body(row: Expr, x: Buffer, gain: Buffer, bias: Buffer, y: Buffer) -> None:
        mean, spread = registers(1, "float32"), registers(1, "float32")
        store(mean, 0, 1, number(0.0))
        with loop(n) as at:
            store(mean, 0, 1, mean[0] + real(x[row * n + at]))
        store(mean, 0, 1, mean[0] / number(n))
        store(spread, 0, 1, number(0.0))
        with loop(n) as at:
            difference = real(x[row * n + at]) - mean[0]
            store(spread, 0, 1, spread[0] + difference * difference)
        store(spread, 0, 1, number(1.0) / tirx.sqrt(spread[0] / number(n) + number(spec.epsilon)))
        with loop(n) as at:
            of_column = 0 if spec.one_gain else at
            scaled = (real(x[row * n + at]) - mean[0]) * spread[0] * real(gain[of_column])
            put(y, row * n + at, scaled + real(bias[of_column]))

    of_columns = 1 if spec.one_gain else n
    sizes = {"x": spec.rows * n, "gain": of_columns, "bias": of_columns, "y": spec.rows * n}
    return per_item([Parameter(name, size, vector.real) for name, size in sizes.items()], spec.rows, body)


def build_column_mean(spec: ColumnMean, vector: Vector) -> tvm.tirx.PrimFunc:
    """Return the kernel (x, y)."""

    def body(at: Expr, x: Buffer, y: Buffer) -> None:
        total = registers(1, "float32")
        store(total, 0, 1, number(0.0))
        with loop(spec.rows) as row:
            store(total, 0, 1, total[0] + real(x[row * spec.columns + at]))
        put(y, at, total[0] / number(spec.rows))

    parameters = [
        Parameter("x", spec.rows * spec.columns, vector.real),
        Parameter("y", spec.columns, vector.real),
    ]
    return per_item(parameters, spec.columns, body)


def build_sum(spec: elementwise.FloatSum, vector: Vector) -> tvm.tirx.PrimFunc:
    """Return the kernel (operand, ..., y)."""

    def body(at: Expr, *buffers: Buffer) -> None:
        total = real(buffers[0][at])
        for operand in buffers[1:-1]:
            total = total + real(operand[at])
        put(buffers[-1], at, clamped(total, spec.clamp.low, spec.clamp.high, "float32", 1))

    operands = [Parameter(f"x{i}", spec.size, vector.real) for i in range(spec.operands)]
    return per_item([*operands, Parameter("y", spec.size, vector.real)], spec.size, body)


def build_convert(spec: elementwise.Convert, vector: Vector) -> tvm.tirx.PrimFunc:
    """Return the kernel (x, y)."""
    del vector
    parameters = [Parameter("x", spec.size, spec.origin), Parameter("y", spec.size, spec.to)]
    return per_item(parameters, spec.size, lambda at, x, y: store(y, at, 1, cast(x[at], spec.to, 1)))


def build_lookup(spec: move.Lookup, vector: Vector) -> tvm.tirx.PrimFunc:
    """Return the kernel (index, table, y)."""
    from tvm import tirx

    def body(at: Expr, index: Buffer, table: Buffer, y: Buffer) -> None:
        row, column = places(at, (spec.size, spec.width))
        known = tirx.all(index[row] >= 0, index[row] < spec.rows)
        chosen = choose(known, index[row], tirx.const(0, "int32"))
        store(y, at, 1, table[chosen * spec.width + column])

    n = spec.size * spec.width
    parameters = [
        Parameter("index", spec.size, "int32"),
        Parameter("table", spec.rows * spec.width, vector.real),
        Parameter("y", n, vector.real),
    ]
    return per_item(parameters, n, body)


def build_transpose(spec: move.Transpose, vector: Vector) -> tvm.tirx.PrimFunc:
    """Return the kernel (x, y); items write in order."""
    del vector
    strides = [prod(spec.shape[i + 1 :]) for i in range(len(spec.shape))]

    def body(at: Expr, x: Buffer, y: Buffer) -> None:
        found = places(at, [spec.shape[i] for i in spec.order])
        store(y, at, 1, x[sum(p * strides[i] for p, i in zip(found, spec.order, strict=True))])

    n = prod(spec.shape)
    return per_item([Parameter("x", n, spec.dtype), Parameter("y", n, spec.dtype)], n, body)


def build_concat(spec: move.Concat, vector: Vector) -> tvm.tirx.PrimFunc:
    """Return the kernel (operand, ..., y)."""
    del vector
    total = sum(spec.lengths)

    def body(at: Expr, *buffers: Buffer) -> None:
        row, column = places(at, (spec.rows, total))
        start = total
        value: Expr = None
        for x, length in reversed(list(zip(buffers[:-1], spec.lengths, strict=True))):
            start -= length
            own = x[row * length + (column - start)]
            value = own if value is None else choose(column < start + length, own, value)
        store(buffers[-1], at, 1, value)

    operands = [Parameter(f"x{i}", spec.rows * n, spec.dtype) for i, n in enumerate(spec.lengths)]
    n = spec.rows * total
    return per_item([*operands, Parameter("y", n, spec.dtype)], n, body)


def build_part(spec: move.Part, vector: Vector) -> tvm.tirx.PrimFunc:
    """Return the kernel (x, y)."""
    del vector
    parameters = [Parameter("x", spec.whole, spec.dtype), Parameter("y", spec.size, spec.dtype)]
    return per_item(parameters, spec.size, lambda at, x, y: store(y, at, 1, x[spec.start + at]))
