"""Kernels that slide windows over pictures [C, H, W]: convolution, pooling, and what transposed convolutions spread."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from armlet.compile.kernels.loops import Buffer, Expr, Parameter, Vector, clamped, loop, registers, store
from armlet.compile.opencl.items import choose, number, per_item, places, put, real
from armlet.spec.target import GPU_CHANNELS

if TYPE_CHECKING:
    import tvm

TILES = (GPU_CHANNELS, 2, 1)
"""Output channels that one item computes, where they divide those of a group: each input is read once for all."""


@dataclass(frozen=True, slots=True)
class Window:
    """A picture and the windows over it.

    Attributes:
        channels, height, width: of the picture.
        padding: top, left, bottom, right.
    """

    channels: int
    height: int
    width: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]

    @property
    def out_height(self) -> int:
        """Windows from top to bottom."""
        return (self.height + self.padding[0] + self.padding[2] - self.kernel[0]) // self.stride[0] + 1

    @property
    def out_width(self) -> int:
        """Windows from left to right."""
        return (self.width + self.padding[1] + self.padding[3] - self.kernel[1]) // self.stride[1] + 1

    def read(
        self, x: Buffer, channel: Expr, place: tuple[Expr, Expr], within: tuple[Expr, Expr], border: Expr
    ) -> Expr:
        """Return an element of the window at `place`, in float32; `border` beyond the picture."""
        from tvm import tirx

        row, column = (
            p * s - pad + k for p, s, pad, k in zip(place, self.stride, self.padding, within, strict=False)
        )
        value = real(x[(channel * self.height + row) * self.width + column])
        conditions = []
        if self.padding[0] or self.padding[2]:
            conditions += [row >= 0, row < self.height]
        if self.padding[1] or self.padding[3]:
            conditions += [column >= 0, column < self.width]
        return choose(tirx.all(*conditions), value, border) if conditions else value


@dataclass(frozen=True, slots=True)
class Conv2d:
    """Convolution with a bias and limits of the result.

    Attributes:
        low, high: None where there is no limit.
    """

    window: Window
    outputs: int
    groups: int
    low: float | None
    high: float | None

    @property
    def tile(self) -> int:
        """Output channels of one item."""
        return next(n for n in TILES if self.outputs // self.groups % n == 0)

    @property
    def macs(self) -> int:
        """Multiply-accumulates."""
        w = self.window
        each = w.channels // self.groups * w.kernel[0] * w.kernel[1]
        return self.outputs * w.out_height * w.out_width * each


@dataclass(frozen=True, slots=True)
class Pool:
    """Maximum or mean of each window; the mean counts the border, which is zero."""

    window: Window
    kind: Literal["max", "mean"]


@dataclass(frozen=True, slots=True)
class Spread:
    """A picture with its pixels `stride` apart, zeros between them and in a border.

    Attributes:
        padding: top, left, bottom, right.
        out_height, out_width: of the result.
    """

    channels: int
    height: int
    width: int
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    out_height: int
    out_width: int


@dataclass(frozen=True, slots=True)
class Enlarge:
    """A picture with each pixel repeated in height and in width."""

    channels: int
    height: int
    width: int
    factor: tuple[int, int]


def build_conv2d(spec: Conv2d, vector: Vector) -> tvm.tirx.PrimFunc:
    """Return the kernel (x, weights, bias, y); weights lie as [outputs / tile, inputs, height, width, tile]."""
    w, tile, dtype = spec.window, spec.tile, vector.real
    inputs, of_group = w.channels // spec.groups, spec.outputs // spec.groups
    extents = (spec.outputs // tile, w.out_height, w.out_width)

    def body(at: Expr, x: Buffer, weights: Buffer, bias: Buffer, y: Buffer) -> None:
        block, row, column = places(at, extents)
        sums, value = registers(tile, "float32"), registers(1, "float32")
        for i in range(tile):
            store(sums, i, 1, real(bias[block * tile + i]))
        first = block * tile // of_group * inputs if spec.groups > 1 else 0
        with loop(inputs) as channel, loop(w.kernel[0]) as i, loop(w.kernel[1]) as j:
            store(value, 0, 1, w.read(x, first + channel, (row, column), (i, j), number(0.0)))
            tap = (((block * inputs + channel) * w.kernel[0] + i) * w.kernel[1] + j) * tile
            for n in range(tile):
                store(sums, n, 1, sums[n] + value[0] * real(weights[tap + n]))
        for n in range(tile):
            place = ((block * tile + n) * w.out_height + row) * w.out_width + column
            put(y, place, clamped(sums[n], spec.low, spec.high, "float32", 1))

    parameters = [
        Parameter("x", w.channels * w.height * w.width, dtype),
        Parameter("weights", spec.outputs * inputs * w.kernel[0] * w.kernel[1], dtype),
        Parameter("bias", spec.outputs, dtype),
        Parameter("y", spec.outputs * w.out_height * w.out_width, dtype),
    ]
    return per_item(parameters, extents[0] * extents[1] * extents[2], body)


def build_pool(spec: Pool, vector: Vector) -> tvm.tirx.PrimFunc:
    """Return the kernel (x, y)."""
    from tvm import tirx

    w = spec.window
    extents = (w.channels, w.out_height, w.out_width)
    border = number(0.0) if spec.kind == "mean" else tirx.min_value("float32")

    def body(at: Expr, x: Buffer, y: Buffer) -> None:
        channel, row, column = places(at, extents)
        found = registers(1, "float32")
        store(found, 0, 1, border)
        with loop(w.kernel[0]) as i, loop(w.kernel[1]) as j:
            value = w.read(x, channel, (row, column), (i, j), border)
            store(found, 0, 1, found[0] + value if spec.kind == "mean" else tirx.max(found[0], value))
        size = w.kernel[0] * w.kernel[1]
        put(y, at, found[0] if spec.kind == "max" else found[0] / number(size))

    n = extents[0] * extents[1] * extents[2]
    size = w.channels * w.height * w.width
    return per_item([Parameter("x", size, vector.real), Parameter("y", n, vector.real)], n, body)


def build_spread(spec: Spread, vector: Vector) -> tvm.tirx.PrimFunc:
    """Return the kernel (x, y)."""
    from tvm import tirx

    extents = (spec.channels, spec.out_height, spec.out_width)

    def body(at: Expr, x: Buffer, y: Buffer) -> None:
        channel, *place = places(at, extents)
        row, column = (p - pad for p, pad in zip(place, spec.padding, strict=False))
        # Conditions on numbers that may be below zero come first: what follows them is read only where they hold.
        (down, across), (height, width) = spec.stride, (spec.height, spec.width)
        on_pixel = tirx.all(
            row >= 0, column >= 0, row < (height - 1) * down + 1, column < (width - 1) * across + 1,
            tirx.truncmod(row, down) == 0, tirx.truncmod(column, across) == 0,
        )  # fmt: skip
        source = (channel * height + tirx.truncdiv(row, down)) * width + tirx.truncdiv(column, across)
        put(y, at, choose(on_pixel, real(x[source]), number(0.0)))

    n = extents[0] * extents[1] * extents[2]
    size = spec.channels * spec.height * spec.width
    return per_item([Parameter("x", size, vector.real), Parameter("y", n, vector.real)], n, body)


def build_enlarge(spec: Enlarge, vector: Vector) -> tvm.tirx.PrimFunc:
    """Return the kernel (x, y)."""
    down, across = spec.factor
    extents = (spec.channels, spec.height * down, spec.width * across)

    def body(at: Expr, x: Buffer, y: Buffer) -> None:
        channel, row, column = places(at, extents)
        put(y, at, real(x[(channel * spec.height + row // down) * spec.width + column // across]))

    n = extents[0] * extents[1] * extents[2]
    size = spec.channels * spec.height * spec.width
    return per_item([Parameter("x", size, vector.real), Parameter("y", n, vector.real)], n, body)
