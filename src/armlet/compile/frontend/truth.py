"""Truth values, of which masks are made, as float32 numbers that are 1 or 0.

Whole numbers are compared with constants: `x > c` is x - c limited to 0 and 1. In float32 that is exact for every int32
and every constant below 2^24, since rounding keeps order.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from armlet.compile.frontend.generic import append
from armlet.compile.frontend.graph import Convert, Generic, Layer, Limit
from armlet.compile.frontend.reader import Reader, RefusedNode
from armlet.compile.frontend.values import Array, Clamp, Tensor

if TYPE_CHECKING:
    import onnx

_MIRRORED = {
    "Greater": "Less",
    "Less": "Greater",
    "GreaterOrEqual": "LessOrEqual",
    "LessOrEqual": "GreaterOrEqual",
    "Equal": "Equal",
}
_LARGEST = 2**24


def convert_comparison(node: onnx.NodeProto, name: str, reader: Reader) -> None:
    """Read a comparison of whole numbers with a constant."""
    first, second = node.input
    kind, value, constant = node.op_type, first, reader.constants.get(second)
    if constant is None:
        kind, value, constant = _MIRRORED[kind], second, reader.constants.get(first)
    if constant is None or reader.tensor(value).dtype != "int32":
        raise RefusedNode("only whole numbers are compared, and with constants")
    limits: Array = constant.values.astype(np.float64)
    if np.abs(limits).max(initial=0) >= _LARGEST:
        raise RefusedNode(f"its constant is not below {_LARGEST}")
    real, output = _real(value, name, reader), node.output[0]
    match kind:
        case "Greater" | "GreaterOrEqual":
            found = _computed("Sub", real, limits - (kind != "Greater"), f"{output}:over", output, reader)
        case "Less" | "LessOrEqual":
            found = _computed("Sub", limits + (kind != "Less"), real, f"{output}:under", output, reader)
        case _:
            over = _computed("Sub", real, limits, f"{output}:over", output, reader)
            apart = _computed("Abs", over, None, f"{output}:apart", output, reader)
            found = _computed("Sub", np.ones(1), apart, f"{output}:equal", output, reader)
    append(reader, node, name, Limit(Clamp(0.0, 1.0)), (found,))


def convert_to_truth(node: onnx.NodeProto, name: str, reader: Reader) -> None:
    """Read whole numbers as truth values, which all but 0 are."""
    value, output = node.input[0], node.output[0]
    if (dtype := reader.tensor(value).dtype) != "int32":
        raise RefusedNode(f"only whole numbers are turned into truth values, not {dtype}")
    apart = _computed("Abs", _real(value, name, reader), None, f"{output}:apart", output, reader)
    append(reader, node, name, Limit(Clamp(0.0, 1.0)), (apart,))


def convert_logic(node: onnx.NodeProto, name: str, reader: Reader) -> None:
    """Read `not`, `and` and `or` of truth values."""
    operands = [reader.constants[n].values if n in reader.constants else n for n in node.input]
    if any(reader.tensor(n).dtype != "float32" for n in operands if isinstance(n, str)):
        raise RefusedNode("its truth values are not computed in the network")
    output = node.output[0]
    match node.op_type:
        case "Not":
            _computed("Sub", np.ones(1), operands[0], output, output, reader)
        case "And":
            _computed("Mul", operands[0], operands[1], output, output, reader)
        case _:
            _computed("Max", operands[0], operands[1], output, output, reader)


def _real(value: str, name: str, reader: Reader) -> str:
    """Return whole numbers as float32, made by a layer where there is none yet."""
    real = f"{value}:real"
    if real not in reader.tensors:
        reader.tensors[real] = Tensor(reader.tensor(value).shape, "float32")
        reader.layers.append(Layer(name, "Cast", Convert(), (value,), real))
    return real


def _computed(
    kind: str, first: str | Array, second: str | Array | None, result: str, like: str, reader: Reader
) -> str:
    """Append one operator on float32 numbers, and return the name of its result, which has the shape of `like`."""
    import onnx

    names, constants = [], {}
    for place, operand in enumerate(o for o in (first, second) if o is not None):
        if isinstance(operand, str):
            names.append(operand)
        else:
            names.append(f"{result}:constant{place}")
            constants[names[-1]] = operand.astype(np.float32)
    reader.tensors[result] = Tensor(reader.tensor(like).shape, "float32")
    node = onnx.helper.make_node(kind, names, [result], name=result)
    op = Generic(node, MappingProxyType(constants), True, reader.opset)
    append(reader, node, result, op, tuple(n for n in names if n not in constants))
    return result


TRUTH = MappingProxyType(
    dict.fromkeys(_MIRRORED, convert_comparison) | dict.fromkeys(("Not", "And", "Or"), convert_logic)
)
"""The function that reads each operator on truth values."""
