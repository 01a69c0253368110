"""Truth values, of which masks are made, as float32 numbers that are 1 or 0, and what is chosen by them.

Whole numbers are compared with constants: `x > c` is x - c limited to 0 and 1. In float32 that is exact for every int32
and every constant below 2^24, since rounding keeps order. Float numbers are compared as they are, with anything.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from armlet.compile.frontend.generic import append, computed
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
    """Read a comparison of float numbers, or of whole numbers with a constant."""
    first, second = node.input
    if all(reader.tensor(n).dtype == "float32" for n in node.input if n not in reader.constants):
        _kept(node, name, reader)
        return
    kind, value, constant = node.op_type, first, reader.constants.get(second)
    if constant is None:
        kind, value, constant = _MIRRORED[kind], second, reader.constants.get(first)
    if constant is None or reader.tensor(value).dtype != "int32":
        raise RefusedNode("whole numbers are compared with constants only")
    limits: Array = constant.values.astype(np.float64)
    if np.abs(limits).max(initial=0) >= _LARGEST:
        raise RefusedNode(f"its constant is not below {_LARGEST}")
    real, output = _real(value, name, reader), node.output[0]
    match kind:
        case "Greater" | "GreaterOrEqual":
            found = computed("Sub", (real, limits - (kind != "Greater")), f"{output}:over", output, reader)
        case "Less" | "LessOrEqual":
            found = computed("Sub", (limits + (kind != "Less"), real), f"{output}:under", output, reader)
        case _:
            over = computed("Sub", (real, limits), f"{output}:over", output, reader)
            apart = computed("Abs", (over,), f"{output}:apart", output, reader)
            found = computed("Sub", (np.ones(1), apart), f"{output}:equal", output, reader)
    append(reader, node, name, Limit(Clamp(0.0, 1.0)), (found,))


def convert_to_truth(node: onnx.NodeProto, name: str, reader: Reader) -> None:
    """Read numbers as truth values, which all but 0 are."""
    value, output = node.input[0], node.output[0]
    if reader.tensor(value).dtype == "float32":
        zero = computed("Equal", (value, np.zeros(1)), f"{output}:zero", output, reader)
        computed("Sub", (np.ones(1), zero), output, output, reader)
        return
    apart = computed("Abs", (_real(value, name, reader),), f"{output}:apart", output, reader)
    append(reader, node, name, Limit(Clamp(0.0, 1.0)), (apart,))


def convert_logic(node: onnx.NodeProto, name: str, reader: Reader) -> None:
    """Read `not`, `and` and `or` of truth values."""
    operands = [reader.constants[n].values if n in reader.constants else n for n in node.input]
    if any(reader.tensor(n).dtype != "float32" for n in operands if isinstance(n, str)):
        raise RefusedNode("its truth values are not computed in the network")
    output = node.output[0]
    match node.op_type:
        case "Not":
            computed("Sub", (np.ones(1), operands[0]), output, output, reader)
        case "And":
            computed("Mul", (operands[0], operands[1]), output, output, reader)
        case _:
            computed("Max", (operands[0], operands[1]), output, output, reader)


def _real(value: str, name: str, reader: Reader) -> str:
    """Return whole numbers as float32, made by a layer where there is none yet."""
    real = f"{value}:real"
    if real not in reader.tensors:
        reader.tensors[real] = Tensor(reader.tensor(value).shape, "float32")
        reader.layers.append(Layer(name, "Cast", Convert(), (value,), real))
    return real


def convert_where(node: onnx.NodeProto, name: str, reader: Reader) -> None:
    """Read the choice between two float numbers, or truth values, by a truth value."""
    chosen = [reader.tensor(n).dtype for n in node.input if n not in reader.constants]
    if {*chosen, reader.tensor(node.output[0]).dtype} != {"float32"}:
        raise RefusedNode("only float numbers and truth values are chosen")
    _kept(node, name, reader)


def _kept(node: onnx.NodeProto, name: str, reader: Reader) -> None:
    """Append a node as it is, with truth values as numbers."""
    constants = {
        n: reader.constants[n].real().astype(np.float32) for n in node.input if n in reader.constants
    }
    op = Generic(node, MappingProxyType(constants), True, reader.opset)
    append(reader, node, name, op, tuple(n for n in node.input if n not in constants))


TRUTH = MappingProxyType(
    dict.fromkeys(_MIRRORED, convert_comparison)
    | dict.fromkeys(("Not", "And", "Or"), convert_logic)
    | {"Where": convert_where}
)
"""The function that reads each operator on truth values."""
