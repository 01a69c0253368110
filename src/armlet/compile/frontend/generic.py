"""ONNX operators without a layer type of their own, and how layers are added."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from armlet.compile.frontend.graph import Generic, Layer, Op
from armlet.compile.frontend.reader import Reader, RefusedNode
from armlet.compile.frontend.values import Array, Tensor

if TYPE_CHECKING:
    import onnx

ELEMENTWISE = frozenset(
    {
        "Sigmoid",
        "Tanh",
        "HardSigmoid",
        "HardSwish",
        "Elu",
        "LeakyRelu",
        "Softplus",
        "Mish",
        "PRelu",
        "Erf",
        "Gelu",
        "Exp",
        "Log",
    }
    | {"Sqrt", "Neg", "Abs", "Reciprocal", "Add", "Sub", "Mul", "Div", "Pow", "Min", "Max"}
)
"""Operators without a layer type of their own that work element by element."""

COMPARISONS = frozenset({"Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal"})
"""Operators that give truth values of numbers."""

OTHER = frozenset({"LogSoftmax", "ReduceSum", "ReduceMax", "BatchNormalization"})
"""Other operators without a layer type of their own."""


def convert_generic(node: onnx.NodeProto, name: str, reader: Reader) -> None:
    """Keep the node as it is, for the generic kernels."""
    values = [n for n in node.input if n]
    for value in [*(v for v in values if v not in reader.constants), node.output[0]]:
        if reader.tensor(value).dtype != "float32":
            raise RefusedNode(f"{value} is {reader.tensor(value).dtype}, not float32")
    if any(node.output[1:]):
        raise RefusedNode("it has more than one output")
    constants = {}
    for value in values:
        if value in reader.constants:
            constant = reader.constants[value]
            real = constant.values if constant.scale is None else constant.real().astype(np.float32)
            constants[value] = real
    op = Generic(node, MappingProxyType(constants), node.op_type in ELEMENTWISE, reader.opset)
    append(reader, node, name, op, tuple(v for v in values if v not in constants))


def computed(
    kind: str,
    operands: Sequence[str | Array],
    result: str,
    like: str,
    reader: Reader,
    name: str = "",
) -> str:
    """Append one operator on float32 numbers, and return the name of its result, which has the shape of `like`.

    The layer has the name of its result, unless another is given.
    """
    import onnx

    names, constants = [], {}
    for place, operand in enumerate(operands):
        if isinstance(operand, str):
            names.append(operand)
        else:
            names.append(f"{result}:constant{place}")
            constants[names[-1]] = operand.astype(np.float32)
    reader.tensors[result] = Tensor(reader.tensor(like).shape, "float32")
    node = onnx.helper.make_node(kind, names, [result], name=name or result)
    op = Generic(node, MappingProxyType(constants), True, reader.opset)
    append(reader, node, name or result, op, tuple(n for n in names if n not in constants))
    return result


def append(reader: Reader, node: onnx.NodeProto, name: str, op: Op, inputs: tuple[str, ...]) -> None:
    """Add a layer for a node with one output, whose shape must be known as those of its inputs."""
    for value in (*inputs, node.output[0]):
        reader.tensor(value)
    reader.layers.append(Layer(name, node.op_type, op, inputs, node.output[0]))
