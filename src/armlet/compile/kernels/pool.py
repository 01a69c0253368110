"""Maximum and mean over windows of channels-last tensors, of int8 or real numbers; the latter are summed in float32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from armlet.compile.kernels import epilogue as ep
from armlet.compile.kernels.border import Border, pixel_of
from armlet.compile.kernels.loops import (
    Buffer,
    Parameter,
    Vector,
    constant,
    lanes_for,
    load,
    loop,
    prim_func,
    registers,
    smallest,
    store,
    tiles,
)

if TYPE_CHECKING:
    import tvm


@dataclass(frozen=True, slots=True)
class MaxPool:
    """Maximum over windows.

    Attributes:
        height, width, channels: of the padded input.
        dtype: of the input.
        unsigned: whether the output is uint8, 128 more than the int8 that it is of.
        border: around the output; None where there is none.
    """

    height: int
    width: int
    channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dtype: str
    unsigned: bool = False
    border: Border | None = None

    @property
    def out_size(self) -> int:
        """Elements of the output and its border."""
        return _out_size(self)


@dataclass(frozen=True, slots=True)
class Mean:
    """Mean over windows; int8 takes the multiplier 1 / n and the input's zero point from its epilogue and bias.

    Attributes:
        height, width, channels: of the padded input.
        bias: what the accumulator starts from: minus n times the input's zero point.
        multiplier: of the requantization; 0 for real numbers, whose sum is divided by n.
        border: around the output; None where there is none.
    """

    height: int
    width: int
    channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    epilogue: ep.Epilogue
    bias: int = 0
    multiplier: int = 0
    border: Border | None = None

    @property
    def out_size(self) -> int:
        """Elements of the output and its border."""
        return _out_size(self)


def _out_extent(spec: MaxPool | Mean) -> tuple[int, int]:
    return (
        (spec.height - spec.kernel[0]) // spec.stride[0] + 1,
        (spec.width - spec.kernel[1]) // spec.stride[1] + 1,
    )


def _out_size(spec: MaxPool | Mean) -> int:
    rows, columns = _out_extent(spec)
    return (rows * columns if spec.border is None else spec.border.n_pixels) * spec.channels


def build_max(spec: MaxPool, vector: Vector) -> tvm.tirx.PrimFunc:
    """Return the kernel (x, y)."""
    from tvm import tirx

    lanes = lanes_for(spec.channels, vector.lanes(spec.dtype))
    rows, columns = _out_extent(spec)

    def body(x: Buffer, y: Buffer) -> None:
        if spec.border is not None:
            spec.border.fill(y, spec.channels, vector)
        best = registers(lanes, spec.dtype)
        with (
            loop(rows, parallel=True) as row,
            loop(columns, parallel=True) as column,
            tiles(spec.channels, lanes, parallel=True) as (_, channel),
        ):
            store(best, 0, lanes, constant(smallest(spec.dtype), spec.dtype, lanes))
            with loop(spec.kernel[0]) as ky, loop(spec.kernel[1]) as kx:
                pixel = (row * spec.stride[0] + ky) * spec.width + column * spec.stride[1] + kx
                value = tirx.max(load(best, 0, lanes), load(x, pixel * spec.channels + channel, lanes))
                store(best, 0, lanes, value)
            value = load(best, 0, lanes)
            place = pixel_of(spec.border, row, column, columns) * spec.channels + channel
            store(y, place, lanes, ep.unsigned(value, lanes) if spec.unsigned else value)

    size = spec.height * spec.width * spec.channels
    result = "uint8" if spec.unsigned else spec.dtype
    parameters = [Parameter("x", size, spec.dtype), Parameter("y", spec.out_size, result)]
    return prim_func(parameters, body, independent=True)


def build_mean(spec: Mean, vector: Vector) -> tvm.tirx.PrimFunc:
    """Return the kernel (x, y)."""
    element = ep.element(spec.epilogue, vector)
    acc_type = "int32" if ep.multiplies_integers(spec.epilogue) else "float32"
    lanes = lanes_for(spec.channels, ep.width(spec.epilogue, vector))
    rows, columns = _out_extent(spec)

    def body(x: Buffer, y: Buffer) -> None:
        if spec.border is not None:
            spec.border.fill(y, spec.channels, vector)
        total = registers(lanes, acc_type)
        with (
            loop(rows, parallel=True) as row,
            loop(columns, parallel=True) as column,
            tiles(spec.channels, lanes, parallel=True) as (_, channel),
        ):
            store(total, 0, lanes, constant(spec.bias, acc_type, lanes))
            with loop(spec.kernel[0]) as ky, loop(spec.kernel[1]) as kx:
                pixel = (row * spec.stride[0] + ky) * spec.width + column * spec.stride[1] + kx
                value = load(x, pixel * spec.channels + channel, lanes, acc_type)
                store(total, 0, lanes, load(total, 0, lanes) + value)
            if isinstance(spec.epilogue, ep.FloatClamp):
                count = constant(float(spec.kernel[0] * spec.kernel[1]), "float32", lanes)
                store(total, 0, lanes, load(total, 0, lanes) / count)
            value = ep.finished(
                spec.epilogue, (total, 0), lanes, lambda _, n: constant(spec.multiplier, "int32", n), vector
            )
            place = pixel_of(spec.border, row, column, columns) * spec.channels + channel
            store(y, place, lanes, value)

    size = spec.height * spec.width * spec.channels
    result = ep.result(spec.epilogue, vector)
    parameters = [Parameter("x", size, element), Parameter("y", spec.out_size, result)]
    return prim_func(parameters, body, independent=True)
