"""Normalisations of layers, groups and instances in ONNX become one of rows, scaled and shifted element by element.

Source: Ba et al. 2016 (layers); Wu and He 2018 (groups); Ulyanov et al. 2016 (instances, groups of one channel).
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import numpy as np

from armlet.compile.frontend.generic import append, computed, convert_generic
from armlet.compile.frontend.graph import Layer, LayerNorm, Reshape
from armlet.compile.frontend.reader import Reader, RefusedNode, attributes
from armlet.compile.frontend.values import Tensor

if TYPE_CHECKING:
    import onnx

_ONE, _ZERO = np.ones(1, np.float32), np.zeros(1, np.float32)


def convert_layer_norm(node: onnx.NodeProto, name: str, reader: Reader) -> None:
    """Read a normalisation over the last dimension; one over several goes to the generic kernels."""
    given, shape = attributes(node), reader.tensor(node.input[0]).shape
    gain, bias = reader.constant(node, 1), reader.constant(node, 2)
    if (
        gain is None
        or gain.values.shape != shape[-1:]
        or given.get("axis", -1) % len(shape) != len(shape) - 1
    ):
        convert_generic(node, name, reader)
        return
    real = [np.zeros(shape[-1]) if c is None else c.real() for c in (gain, bias)]
    gains, biases = (np.broadcast_to(values.astype(np.float32), shape[-1:]) for values in real)
    append(reader, node, name, LayerNorm(gains, biases, given.get("epsilon", 1e-5)), (node.input[0],))


def convert_group_norm(node: onnx.NodeProto, name: str, reader: Reader) -> None:
    """Read GroupNormalization, or InstanceNormalization as that of groups of one channel, of [1, C, ...].

    Each group is a row in memory. ONNX has withdrawn what GroupNormalization was before version 21.
    """
    value, output = node.input[0], node.output[0]
    tensor, given = reader.tensor(value), attributes(node)
    if tensor.dtype != "float32" or len(tensor.shape) < 3 or tensor.shape[0] != 1:
        raise RefusedNode(f"its input is {tensor.dtype} {list(tensor.shape)}, not float32 [1, C, ...]")
    channels = tensor.shape[1]
    groups = given.get("num_groups", channels)
    scale, shift = (reader.constant(node, place) for place in (1, 2))
    if scale is None or shift is None:
        raise RefusedNode("its scale and its shift are not both constants")
    rows, normal = f"{output}:rows", f"{output}:normal"
    reader.tensors[rows] = reader.tensors[normal] = Tensor(
        (1, groups, prod(tensor.shape) // groups), "float32"
    )
    normalize = LayerNorm(_ONE, _ZERO, given.get("epsilon", 1e-5))
    back = f"{output}:shaped"
    reader.tensors[back] = tensor
    reader.layers += [
        Layer(name, node.op_type, Reshape(), (value,), rows),
        Layer(name, node.op_type, normalize, (rows,), normal),
        Layer(name, node.op_type, Reshape(), (normal,), back),
    ]
    extents = (channels, *(1 for _ in tensor.shape[2:]))
    scaled = computed("Mul", (back, scale.real().reshape(extents)), f"{output}:scaled", output, reader, name)
    computed("Add", (scaled, shift.real().reshape(extents)), output, output, reader, name)
