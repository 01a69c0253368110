"""Kernels that only move elements: padding, transposition and concatenation of flat tensors of any element type.

Copies and fills are plain loops: LLVM turns them into vector moves, or into memcpy and memset where they are long.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from armlet.compile.kernels.border import Border
from armlet.compile.kernels.epilogue import unsigned
from armlet.compile.kernels.loops import (
    Buffer,
    Expr,
    Parameter,
    Vector,
    cast,
    constant,
    lanes_for,
    load,
    loop,
    prim_func,
    splat,
    store,
    tiles,
)

if TYPE_CHECKING:
    import tvm


@dataclass(frozen=True, slots=True)
class Pad:
    """A channels-last tensor with a border.

    Attributes:
        height, width, channels: of the input.
        padding: top, left, bottom, right.
        value: of the border, in the input's type.
        slack: elements after the last one, of any value.
        unsigned: whether the output is uint8, 128 more than the int8 of the input.
    """

    height: int
    width: int
    channels: int
    padding: tuple[int, int, int, int]
    value: float
    dtype: str
    slack: int = 0
    unsigned: bool = False

    @property
    def border(self) -> Border:
        """The border as it is stored."""
        return Border(self.height, self.width, self.padding, self.value + 128 * self.unsigned)

    @property
    def out_size(self) -> int:
        """Elements of the output."""
        return self.border.n_pixels * self.channels + self.slack

    @property
    def result(self) -> str:
        """The type of the output."""
        return "uint8" if self.unsigned else self.dtype


@dataclass(frozen=True, slots=True)
class Transpose:
    """Dimensions of a row-major tensor in another order: output dimension i is input dimension order[i]."""

    shape: tuple[int, ...]
    order: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class Concat:
    """For each of `rows`, the operands' runs of `lengths` elements one after the other."""

    rows: int
    lengths: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class Part:
    """`size` elements of a flat tensor of `whole`, from `start` on."""

    whole: int
    start: int
    size: int
    dtype: str


@dataclass(frozen=True, slots=True)
class Spread:
    """A channels-last tensor with its pixels `stride` apart, `value` between them and in a border.

    Attributes:
        padding: top, left, bottom, right.
    """

    height: int
    width: int
    channels: int
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    value: float
    dtype: str

    @property
    def out_width(self) -> int:
        """Columns of the output."""
        return (self.width - 1) * self.stride[1] + 1 + self.padding[1] + self.padding[3]

    @property
    def out_size(self) -> int:
        """Elements of the output."""
        rows = (self.height - 1) * self.stride[0] + 1 + self.padding[0] + self.padding[2]
        return rows * self.out_width * self.channels


def build_spread(spec: Spread, vector: Vector) -> tvm.tirx.PrimFunc:
    """Return the kernel (x, y)."""
    del vector
    n = spec.channels

    def body(x: Buffer, y: Buffer) -> None:
        with loop(spec.out_size) as at:
            store(y, at, 1, constant(spec.value, spec.dtype, 1))
        with loop(spec.height) as row, loop(spec.width) as column:
            line = (row * spec.stride[0] + spec.padding[0]) * spec.out_width
            place = line + column * spec.stride[1] + spec.padding[1]
            _copy(y, place * n, x, (row * spec.width + column) * n, n)

    size = spec.height * spec.width * n
    return prim_func([Parameter("x", size, spec.dtype), Parameter("y", spec.out_size, spec.dtype)], body)


@dataclass(frozen=True, slots=True)
class Enlarge:
    """A channels-last tensor with each pixel repeated in height and in width."""

    height: int
    width: int
    channels: int
    factor: tuple[int, int]
    dtype: str


def build_enlarge(spec: Enlarge, vector: Vector) -> tvm.tirx.PrimFunc:
    """Return the kernel (x, y)."""
    del vector
    n, (down, across) = spec.channels, spec.factor

    def body(x: Buffer, y: Buffer) -> None:
        with (
            loop(spec.height, parallel=True) as row,
            loop(down) as i,
            loop(spec.width) as column,
            loop(across) as j,
        ):
            place = (row * down + i) * spec.width * across + column * across + j
            _copy(y, place * n, x, (row * spec.width + column) * n, n)

    size = spec.height * spec.width * n
    return prim_func(
        [Parameter("x", size, spec.dtype), Parameter("y", size * down * across, spec.dtype)], body
    )


@dataclass(frozen=True, slots=True)
class Lookup:
    """Rows of `width` of a table of `rows`, one for each of `size` integers; out of range is row 0.

    Attributes:
        dtype: of the table.
        scaled: whether int8 rows become float32, each times its scale.
    """

    rows: int
    width: int
    size: int
    dtype: str = "float32"
    scaled: bool = False


def build_lookup(spec: Lookup, vector: Vector) -> tvm.tirx.PrimFunc:
    """Return the kernel (index, table, [scales], y)."""
    from tvm import tirx

    lanes = lanes_for(spec.width, vector.lanes("float32" if spec.scaled else spec.dtype))

    def body(index: Buffer, table: Buffer, *rest: Buffer) -> None:
        with loop(spec.size, parallel=True) as number:
            known = tirx.all(index[number] >= 0, index[number] < spec.rows)
            row = tirx.Select(known, index[number], tirx.const(0, "int32"))
            with tiles(spec.width, lanes) as (_, at):
                value = load(table, row * spec.width + at, lanes)
                if spec.scaled:
                    value = cast(value, "float32", lanes) * splat(rest[0][row], lanes)
                store(rest[-1], number * spec.width + at, lanes, value)

    result = "float32" if spec.scaled else spec.dtype
    return prim_func(
        [
            Parameter("index", spec.size, "int32"),
            Parameter("table", spec.rows * spec.width, spec.dtype),
            *([Parameter("scales", spec.rows, "float32")] if spec.scaled else []),
            Parameter("y", spec.size * spec.width, result),
        ],
        body,
    )


def build_part(spec: Part, vector: Vector) -> tvm.tirx.PrimFunc:
    """Return the kernel (x, y)."""
    del vector
    parameters = [Parameter("x", spec.whole, spec.dtype), Parameter("y", spec.size, spec.dtype)]
    return prim_func(parameters, lambda x, y: _copy(y, 0, x, spec.start, spec.size))


def build_pad(spec: Pad, vector: Vector) -> tvm.tirx.PrimFunc:
    """Return the kernel (x, y)."""
    run = spec.width * spec.channels

    def body(x: Buffer, y: Buffer) -> None:
        spec.border.fill(y, spec.channels, vector)
        with loop(spec.height, parallel=True) as row:
            start = spec.border.pixel(row, 0) * spec.channels
            with loop(run) as at:
                value = load(x, row * run + at, 1)
                store(y, start + at, 1, unsigned(value, 1) if spec.unsigned else value)

    parameters = [Parameter("x", spec.height * run, spec.dtype), Parameter("y", spec.out_size, spec.result)]
    return prim_func(parameters, body, independent=True)


def build_transpose(spec: Transpose, vector: Vector) -> tvm.tirx.PrimFunc:
    """Return the kernel (x, y); it writes in order and reads with strides, one element at a time."""
    del vector
    strides = [prod(spec.shape[i + 1 :]) for i in range(len(spec.shape))]
    extents = [spec.shape[i] for i in spec.order]

    def nest(x: Buffer, y: Buffer, depth: int, source: Expr, target: Expr) -> None:
        if depth == len(extents):
            store(y, target, 1, load(x, source, 1))
            return
        with loop(extents[depth], parallel=True) as index:
            stride = strides[spec.order[depth]]
            nest(x, y, depth + 1, source + index * stride, target * extents[depth] + index)

    size = prod(spec.shape)
    parameters = [Parameter("x", size, spec.dtype), Parameter("y", size, spec.dtype)]
    return prim_func(parameters, lambda x, y: nest(x, y, 0, 0, 0))


def build_concat(spec: Concat, vector: Vector) -> tvm.tirx.PrimFunc:
    """Return the kernel (operand, ..., y)."""
    del vector
    total = sum(spec.lengths)

    def body(*buffers: Buffer) -> None:
        with loop(spec.rows, parallel=True) as row:
            start = row * total
            for x, length in zip(buffers[:-1], spec.lengths, strict=True):
                _copy(buffers[-1], start, x, row * length, length)
                start = start + length

    operands = [Parameter(f"x{i}", spec.rows * n, spec.dtype) for i, n in enumerate(spec.lengths)]
    return prim_func([*operands, Parameter("y", spec.rows * total, spec.dtype)], body)


def _copy(y: Buffer, target: Expr, x: Buffer, source: Expr, size: int) -> None:
    with loop(size) as at:
        store(y, target + at, 1, load(x, source + at, 1))
