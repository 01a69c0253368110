"""The order in which a value's elements lie in memory. Kernels see flat buffers: this is all there is to a layout.

Convolutions and pooling work on channels-last tensors. A value keeps that order through everything that works element
by element, and through flattening: a dense layer that follows permutes its weights instead of the value.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from armlet.compile.frontend.values import Array


@dataclass(frozen=True, slots=True)
class ChannelsLast:
    """A value of the shape [1, C, H, W], or its flattening, that lies in memory as [H, W, C]."""

    channels: int
    height: int
    width: int

    @property
    def flat(self) -> tuple[int, int]:
        """The shape of the flattened value."""
        return (1, self.channels * self.height * self.width)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """The shape of the value as ONNX has it."""
        return (1, self.channels, self.height, self.width)


Order = ChannelsLast | None
"""None is row-major order of the shape that ONNX has."""


def channels_last(shape: tuple[int, ...]) -> Order:
    """Return the channels-last order of a shape [1, C, H, W]; None where that is the row-major order too."""
    _, channels, height, width = shape
    return None if channels == 1 or height * width == 1 else ChannelsLast(channels, height, width)


def after_reshape(order: Order, shape: tuple[int, ...]) -> Order:
    """Return the order after a reshape to `shape` that moves nothing; None also where the value must be moved first."""
    return order if order is not None and shape in (order.flat, order.shape) else None


def permuted_columns(weight: Array, order: Order) -> Array:
    """Return dense weights [outputs, inputs] for an input that lies in `order`."""
    if order is None:
        return weight
    shape = (weight.shape[0], order.channels, order.height, order.width)
    return np.ascontiguousarray(weight.reshape(shape).transpose(0, 2, 3, 1)).reshape(weight.shape)


def keeps_order(shape: tuple[int, ...], axes: tuple[int, ...]) -> bool:
    """Return whether transposing moves no element: the dimensions larger than one stay in order."""
    moved = [a for a in axes if shape[a] != 1]
    return moved == sorted(moved)
