"""Reads what an ONNX graph does with integers of 8 bits; those without a sign are int8 here, 128 less.

Exact: a zero point is 128 less, too, so that the real numbers are the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from armlet.compile.frontend.generic import append
from armlet.compile.frontend.graph import Dequantize, Layer, Quantize, Recenter
from armlet.compile.frontend.reader import Converter, Reader, RefusedNode
from armlet.compile.frontend.values import THEMSELVES, Constant, QuantizedTensor, Tensor

if TYPE_CHECKING:
    import onnx

MIDDLE = 128
"""What an integer without a sign is more than the int8 number that stands for it."""

_MOVED = frozenset(
    {"MaxPool", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout", "Transpose", "Gather", "Concat"}
    | {"Slice", "Resize"}
)  # fmt: skip
_COMPUTED = frozenset({"QuantizeLinear", "DequantizeLinear", "Cast"})


def quantize(node: onnx.NodeProto, name: str, reader: Reader) -> None:
    """Read a QuantizeLinear."""
    to = _quantization(node, node.output[0], reader)
    append(reader, node, name, Quantize(to), (node.input[0],))


def dequantize(node: onnx.NodeProto, name: str, reader: Reader) -> None:
    """Read a DequantizeLinear of what is no constant."""
    origin = _quantization(node, node.input[0], reader)
    append(reader, node, name, Dequantize(origin), (node.input[0],))


def _quantization(node: onnx.NodeProto, integers: str, reader: Reader) -> QuantizedTensor:
    """Return how a value of integers stands for real numbers."""
    scale, zero = reader.constant(node, 1), reader.constant(node, 2)
    if scale is None or scale.values.size != 1:
        raise RefusedNode("an activation has more than one scale")
    if scale.values.dtype != np.float32 or not 0 < scale.values.reshape(-1)[0] < np.inf:
        raise RefusedNode("its scale is not a positive float32 number")
    unsigned, dtype = integers in reader.unsigned, reader.tensor(integers).dtype
    if dtype != "int8":
        raise RefusedNode(f"it is quantized to {dtype}, not to 8 bits")
    stored = 0 if zero is None else int(zero.values.reshape(-1)[0])
    return QuantizedTensor(float(scale.values.reshape(-1)[0]), stored - MIDDLE * unsigned)


def convert_to_float(node: onnx.NodeProto, name: str, reader: Reader) -> None:
    """Read the cast of 8-bit integers to float32: they are real numbers with the scale 1."""
    origin = QuantizedTensor(1.0, -MIDDLE * (node.input[0] in reader.unsigned))
    append(reader, node, name, Dequantize(origin), (node.input[0],))


def read_moved(node: onnx.NodeProto, name: str, reader: Reader, converters: Mapping[str, Converter]) -> bool:
    """Read a node that moves or chooses 8-bit integers as one of real numbers, as which they are exact.

    Returns:
        Whether it is one.

    Raises:
        RefusedNode: it computes on such integers.
    """
    import onnx

    integers = [
        v for v in (*node.input, *node.output) if v in reader.tensors and reader.tensors[v].dtype == "int8"
    ]
    if not integers or node.op_type in _COMPUTED:
        return False
    if node.op_type not in _MOVED or node.output[0] not in integers:
        raise RefusedNode("it computes on 8-bit integers without scales")
    real = onnx.NodeProto()
    real.CopyFrom(node)
    for position, value in enumerate(node.input):
        if value in reader.constants:
            real.input[position] = _constant_numbers(value, reader)
        elif value in integers:
            real.input[position] = _numbers(value, name, reader)
    real.output[0] = f"{node.output[0]}:numbers"
    reader.tensors[real.output[0]] = Tensor(reader.tensor(node.output[0]).shape, "float32")
    converters[node.op_type](real, name, reader)
    append(reader, node, name, Quantize(THEMSELVES), (real.output[0],))
    return True


def _numbers(value: str, name: str, reader: Reader) -> str:
    """Return the name of the real numbers of a value of integers, which a layer makes where there are none yet."""
    numbers = f"{value}:numbers"
    if numbers not in reader.tensors:
        reader.tensors[numbers] = Tensor(reader.tensor(value).shape, "float32")
        reader.layers.append(Layer(name, "DequantizeLinear", Dequantize(THEMSELVES), (value,), numbers))
    return numbers


def _constant_numbers(value: str, reader: Reader) -> str:
    """Return the name of a constant as real numbers, those of 8 bits; of any other its own."""
    values = reader.constants[value].values
    if values.dtype not in (np.int8, np.uint8):
        return value
    less = MIDDLE * (values.dtype == np.uint8)
    reader.constants[f"{value}:numbers"] = Constant(values.astype(np.float32) - np.float32(less))
    return f"{value}:numbers"


def rename_unsigned_ends(graph: onnx.GraphProto) -> dict[str, str]:
    """Give inputs and outputs of uint8 other names within the graph, and return those by the names at its ends."""
    import onnx

    stored = {i.name for i in graph.initializer}
    ends = {
        value.name: f"{value.name}:int8"
        for value in (*graph.input, *graph.output)
        if value.type.tensor_type.elem_type == onnx.TensorProto.UINT8 and value.name not in stored
    }
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [ends.get(name, name) for name in names]
    return ends


def recenter(ends: Iterable[tuple[str, str]], reader: Reader) -> None:
    """Append what makes int8 of uint8, or the other way around, for pairs (source, result)."""
    reader.layers.extend(Layer(result, "Cast", Recenter(), (source,), result) for source, result in ends)
