"""Constants that stay integers with scales where the nodes that dequantise or move them are folded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from armlet.compile.frontend.reader import RefusedNode, attributes
from armlet.compile.frontend.values import Array, Constant

if TYPE_CHECKING:
    import onnx


def dequantized(node: onnx.NodeProto, operands: list[Constant]) -> Constant | None:
    """Return the constant that a DequantizeLinear gives, None where it gives no integers with scales.

    Those of 8 bits have no zero points afterwards.

    Raises:
        RefusedNode: it has blocks of scales for something else than a matrix of whole blocks.
    """
    given, values = attributes(node), operands[0].values
    if operands[0].scale is not None:
        return None
    scale = operands[1].values
    zero = operands[2].values if len(operands) > 2 else np.zeros(scale.shape, values.dtype)
    axis = given.get("axis", 1) % max(values.ndim, 1)
    if size := given.get("block_size", 0):
        whole = list(values.shape)
        whole[axis] //= size
        if values.ndim != 2 or scale.shape != tuple(whole) or values.shape[axis] % size:
            raise RefusedNode(f"its values are no matrix of whole blocks of {size}")
        return Constant(_as_int8(values), scale, _as_int8(zero), axis).around_zero()
    return Constant(values, scale.reshape(-1), zero.reshape(-1), axis).around_zero()


def moved(node: onnx.NodeProto, operands: list[Constant]) -> Constant | None:
    """Return integers with scales that a node transposes, or whose groups it joins to rows; None where it does neither.

    The latter is armlet's form of a weight [O, K] with scales for groups of g inputs, which is older than blocks of
    scales: a DequantizeLinear of [O × K / g, g] along its rows, then a Reshape.
    """
    given = operands[0] if operands else None
    if given is None or given.scale is None or given.zero is None:
        return None
    if node.op_type == "Transpose":
        return transposed(given, attributes(node).get("perm", list(reversed(range(given.values.ndim)))))
    symmetric = given.values.dtype == np.int8 and not np.any(given.zero)
    if node.op_type != "Reshape" or not symmetric or given.values.ndim != 2 or given.scale.ndim != 1:
        return None
    shape = operands[1].values.tolist()
    n_groups, size = given.values.shape
    if (
        given.axis != 0
        or given.scale.size != n_groups
        or len(shape) != 2
        or min(shape) < 1
        or shape[1] % size
    ):
        return None
    if shape[1] == size:
        return given
    by_row = (shape[0], shape[1] // size)
    return Constant(given.values.reshape(shape), given.scale.reshape(by_row), given.zero.reshape(by_row))


def transposed(constant: Constant, order: Sequence[int]) -> Constant:
    """Return a constant with its dimensions in another order, its scales with it."""
    values = constant.values.transpose(order)
    if constant.scale is None or constant.zero is None:
        return Constant(values)
    if constant.has_blocks:
        return Constant(values, constant.scale.transpose(order), constant.zero.transpose(order))
    return Constant(values, constant.scale, constant.zero, order.index(constant.axis))


def _as_int8(values: Array) -> Array:
    """Return integers of 4 bits as int8, others as they are."""
    return values.astype(np.int8) if values.dtype.name == "int4" else values
