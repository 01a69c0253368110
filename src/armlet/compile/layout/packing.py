"""Constants in the order in which kernels read them."""

from __future__ import annotations

import numpy as np

from armlet.compile.frontend.values import Array
from armlet.compile.kernels.conv2d import Conv2d
from armlet.compile.kernels.depthwise_dot import ROWS, Block
from armlet.compile.kernels.reduction import Tile


def starts(bias: Array, weight: Array, tile: Tile | Block) -> Array:
    """Return what the accumulators begin at: the bias, less what the tile adds to inputs times the weights.

    Args:
        bias: [outputs], int32 if the weights are multiplied as integers.
        weight: [outputs, ...].
        tile: or block of channels, of the kernel.
    """
    if not tile.offset:
        return bias
    sums = weight.reshape(len(weight), -1).sum(1, dtype=np.int64)
    start: Array = (bias.astype(np.int64) - tile.offset * sums).astype(np.int32)
    return start


def shifted(weight: Array) -> tuple[Array, Array | None]:
    """Return weights as int8, and what those of each output are more than that, int32; None where it is nothing.

    Args:
        weight: [outputs, ...], int8 or float32; or int16, those of one output at most 255 apart.
    """
    if weight.dtype != np.int16:
        return weight, None
    rows = weight.reshape(len(weight), -1).astype(np.int32)
    least = rows.max(1) - 127
    # Down to -127 where that is enough: two products fit in int16 then.
    shifts: Array = np.clip(0, least, np.maximum(rows.min(1) + 127, least))
    return (rows - shifts[:, None]).astype(np.int8).reshape(weight.shape), shifts.astype(np.int32)


def pack_conv2d(weight: Array, spec: Conv2d, tile: Tile) -> Array:
    """Pack weights [outputs, inputs / groups, kernel height, kernel width] for the convolution kernel, flat.

    The order is block of channels that lie together, run, step, then (unit / n, channel, n), n being how many weights
    of a channel are adjacent. The last step of a run is moved back to end at its end; elements that the step before
    has are zero there, and so are those that a run shorter than a step lacks.
    """
    runs = weight.transpose(0, 2, 3, 1).reshape(spec.outputs, spec.runs, spec.run_length)
    steps = np.arange(tile.steps(spec))[:, None] * tile.unit
    index = np.minimum(steps, max(spec.run_length - tile.unit, 0)) + np.arange(tile.unit)
    taken = (index >= steps) & (index < spec.run_length)
    found = runs[:, :, np.minimum(index, spec.run_length - 1)]
    gathered = np.where(taken, found, runs.dtype.type(0))  # [outputs, runs, steps, unit]
    blocks = gathered.reshape(-1, tile.packed, *gathered.shape[1:])
    units = blocks.reshape(*blocks.shape[:-1], -1, tile.adjacent)
    return np.ascontiguousarray(units.transpose(0, 2, 3, 4, 1, 5)).reshape(-1)


def pack_depthwise(weight: Array, bias: Array, factors: Array | None, block: Block | None) -> list[Array]:
    """Pack the constants of a depthwise kernel: weight [channels, 1, height, width], bias and factors [channels].

    The weights' order is (row, column, channel). With dot products it is (block of channels, column, four rows,
    channel, row), channels in the order of the accumulators and rows past the last one zero; bias and factors are
    blocks, too.
    """
    rest = [] if factors is None else [factors]
    if block is None:
        return [np.ascontiguousarray(weight[:, 0].transpose(1, 2, 0)).reshape(-1), bias, *rest]
    order = np.add.outer(block.starts(len(weight)), block.order())  # [blocks, channels]
    padded = np.pad(weight[:, 0], ((0, 0), (0, -weight.shape[2] % ROWS), (0, 0)))
    grouped = padded.reshape(len(weight), -1, ROWS, weight.shape[3])[
        order
    ]  # [blocks, channels, groups, ROWS, columns]
    packed = np.ascontiguousarray(grouped.transpose(0, 4, 2, 1, 3)).reshape(-1)
    return [packed, *(values[order].reshape(-1) for values in (starts(bias, weight, block), *rest))]
