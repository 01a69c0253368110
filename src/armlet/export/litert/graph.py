"""An ONNX graph as layers: what .tflite has one operator for, with its activation and its quantisation.

Input -> Output: ONNX file -> `Graph`, in these steps:
1. dequantised initializers become constants that keep their integers;
2. x·W + b becomes one Gemm, and the decomposed GELU one Gelu;
3. a clamp that alone uses the value of a convolution, dense layer or addition belongs to it;
4. a layer between DequantizeLinear and QuantizeLinear computes on integers, where LiteRT has an integer kernel that
   rounds once; every other layer stays float.

Limits: batch of one, static shapes, int8.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from armlet.errors import UnsupportedOperator
from armlet.export.litert.flatbuffer import Array, Scales
from armlet.export.litert.patterns import joined

_WEIGHTED = frozenset({"Conv", "Gemm", "MatMul"})
_CLAMPED = frozenset({"Conv", "Gemm", "MatMul", "Add"})
_MOVING = frozenset(
    {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "MaxPool", "AveragePool", "Concat"}
)
_COMPUTING = frozenset(
    {"Add", "Mul", "ReduceMean", "GlobalAveragePool", "Relu", "LeakyRelu", "HardSwish", "Gelu"}
)
_WITH_CONSTANTS = frozenset({"Reshape", "Squeeze", "Unsqueeze", "ReduceMean"})
_CLAMPS: dict[tuple[float, ...], str] = {(0.0, 6.0): "RELU6", (-1.0, 1.0): "RELU_N1_TO_1"}
_GROUPS = "its weights have scales for groups of inputs, .tflite one for each output"
_FIXED_SCALES = {"Sigmoid": Scales((1 / 256,), -128), "Tanh": Scales((1 / 128,), 0)}


@dataclass(frozen=True, slots=True)
class Constant:
    """An initializer: float32 or int64 values, or the integers behind a DequantizeLinear."""

    values: Array
    quantization: Scales | None = None

    @property
    def real(self) -> Array:
        """The numbers that it stands for."""
        if self.quantization is None:
            return self.values
        scales = np.array(self.quantization.scales, np.float32)
        if scales.size > 1:
            shape = [1] * self.values.ndim
            shape[self.quantization.axis] = -1
            scales = scales.reshape(shape)
        centered = self.values.astype(np.int64) - self.quantization.zero_point
        return centered.astype(np.float32) * scales


@dataclass(frozen=True, slots=True)
class Layer:
    """What becomes one operator, or a few.

    Attributes:
        node: the ONNX node, for its name, operator and attributes.
        inputs: the values it reads; those of the int8 values when `integer`.
        output: the value it makes.
        activation: name of the clamp that belongs to it ("RELU", "RELU6", "RELU_N1_TO_1"), else "NONE".
        integer: whether it computes on int8 values.
    """

    node: onnx.NodeProto
    inputs: tuple[str, ...]
    output: str
    activation: str = "NONE"
    integer: bool = False

    @property
    def name(self) -> str:
        """Name of the node, or of its value where it has none."""
        return str(self.node.name or self.node.output[0])

    def refuse(self, why: str) -> UnsupportedOperator:
        """Return the error that this layer has no .tflite form."""
        return UnsupportedOperator(f"{self.name} ({self.node.op_type}) has no .tflite form: {why}")

    def integers(self, attribute: str, default: Iterable[int] = ()) -> tuple[int, ...]:
        """Return an attribute that is a list of integers."""
        found = _attribute(self.node, attribute)
        return tuple(default if found is None else found.ints)

    def integer_of(self, attribute: str, default: int) -> int:
        """Return an attribute that is an integer."""
        found = _attribute(self.node, attribute)
        return default if found is None else int(found.i)

    def number(self, attribute: str, default: float) -> float:
        """Return an attribute that is a number."""
        found = _attribute(self.node, attribute)
        return default if found is None else float(found.f)

    def text(self, attribute: str, default: str) -> str:
        """Return an attribute that is text."""
        found = _attribute(self.node, attribute)
        return default if found is None else str(found.s.decode())


class Graph:
    """An ONNX graph, read.

    Attributes:
        layers: in order of execution.
        constants: what does not depend on the inputs, by name.
        inputs, outputs: names of the graph's values.
        scales: quantisation of each int8 value, by its name.
        dequantized: name of the int8 value behind each DequantizeLinear's value.
    """

    def __init__(self, onnx_file: Path) -> None:
        model = onnx.shape_inference.infer_shapes(onnx.load(onnx_file), data_prop=True)
        proto = model.graph
        self.constants = {t.name: Constant(numpy_helper.to_array(t)) for t in proto.initializer}
        self.inputs = tuple(v.name for v in proto.input if v.name not in self.constants)
        self.outputs = tuple(v.name for v in proto.output)
        self.scales: dict[str, Scales] = {}
        self.dequantized: dict[str, str] = {}
        self._shapes = {
            v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim)
            for v in (*proto.input, *proto.value_info, *proto.output)
            if v.type.tensor_type.HasField("shape")
        }
        nodes = self._without_constants(proto.node)
        nodes = joined(
            nodes, {name: constant.values for name, constant in self.constants.items()}, self.outputs
        )
        self.layers = self._layers(nodes)

    @property
    def quantized(self) -> bool:
        """Whether any value is int8."""
        return bool(self.scales)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a value or a constant.

        Raises:
            UnsupportedOperator: the shape is not known.
        """
        if name in self.constants:
            return self.constants[name].values.shape
        if name not in self._shapes or 0 in self._shapes[name]:
            raise UnsupportedOperator(f"the shape of {name} is not static")
        return self._shapes[name]

    def constant(self, layer: Layer, position: int) -> Constant:
        """Return the constant that a layer reads at `position`.

        Raises:
            UnsupportedOperator: it is computed, or missing.
        """
        if position >= len(layer.inputs) or layer.inputs[position] not in self.constants:
            raise layer.refuse(f"its input {position} is not a constant")
        return self.constants[layer.inputs[position]]

    def _without_constants(self, nodes: Iterable[onnx.NodeProto]) -> list[onnx.NodeProto]:
        """Take Constant nodes and dequantised initializers out, and record the quantisation of values."""
        rest = []
        for node in nodes:
            if node.op_type == "Constant" and (value := _attribute(node, "value")) is not None:
                self.constants[node.output[0]] = Constant(numpy_helper.to_array(value.t))
            elif node.op_type == "DequantizeLinear" and node.input[0] in self.constants:
                values = self.constants[node.input[0]].values
                self.constants[node.output[0]] = Constant(values, self._scales(node, values.dtype))
            elif node.op_type == "Reshape" and self._is_quantized(node.input[0]):
                layer = Layer(node, tuple(node.input), node.output[0])
                raise layer.refuse(_GROUPS)
            else:
                if node.op_type == "QuantizeLinear":
                    self.scales[node.output[0]] = self._scales(node, np.dtype(np.int8))
                elif node.op_type == "DequantizeLinear":
                    self.dequantized[node.output[0]] = node.input[0]
                rest.append(node)
        return rest

    def _is_quantized(self, name: str) -> bool:
        return name in self.constants and self.constants[name].quantization is not None

    def _scales(self, node: onnx.NodeProto, dtype: np.dtype[np.generic]) -> Scales:
        layer = Layer(node, tuple(node.input), node.output[0])
        scales = self.constant(layer, 1).values.reshape(-1)
        zero_points = self.constant(layer, 2).values.reshape(-1)
        if layer.integer_of("block_size", 0):
            raise layer.refuse(_GROUPS)
        axis = layer.integer_of("axis", 1) if scales.size > 1 else 0
        if zero_points.dtype != dtype or dtype not in (np.int8, np.int32):
            raise layer.refuse(f"its integers are {zero_points.dtype}, not int8")
        if len(set(zero_points.tolist())) != 1 or (scales.size > 1 and node.op_type == "QuantizeLinear"):
            raise layer.refuse("its values have several scales, or zero points that differ")
        return Scales(tuple(scales.tolist()), int(zero_points[0]), axis)

    def _layers(self, nodes: list[onnx.NodeProto]) -> tuple[Layer, ...]:
        users = {name: node for node in nodes for name in node.input}
        n_users = Counter([*(name for node in nodes for name in node.input), *self.outputs])
        layers: dict[str, Layer] = {}
        for node in nodes:
            layer = Layer(node, tuple(node.input), node.output[0])
            alone = n_users[layer.output] == 1
            user = users.get(layer.output) if alone else None
            if user is not None and node.op_type in _CLAMPED and (clamp := self.clamp(user)):
                layer = dataclasses.replace(layer, output=user.output[0], activation=clamp)
            # A node that already belongs to a layer makes that layer's value.
            layers.setdefault(layer.output, layer)
        rounded: dict[str, Layer] = {}
        for layer in layers.values():
            user = users.get(layer.output) if n_users[layer.output] == 1 else None
            if user is not None and user.op_type == "QuantizeLinear":
                layer = self._as_integer(layer, user.output[0])
            if layer.node.op_type != "DequantizeLinear":
                rounded.setdefault(layer.output, layer)
        return tuple(rounded.values())

    def clamp(self, node: onnx.NodeProto) -> str:
        """Return .tflite's name of the clamp that a node is, empty if it is none."""
        if node.op_type == "Relu":
            return "RELU"
        if node.op_type != "Clip" or any(name not in self.constants for name in node.input[1:]):
            return ""
        limits = tuple(float(self.constants[name].values) for name in node.input[1:])
        return _CLAMPS.get(limits, "")

    def _as_integer(self, layer: Layer, quantized: str) -> Layer:
        """Return the layer on int8 values if LiteRT can do so with one rounding, else the layer as it is."""
        values = [name for name in layer.inputs if name not in self.constants]
        constants = [self.constants[name] for name in layer.inputs if name in self.constants]
        if any(name not in self.dequantized for name in values):
            return layer
        result = self.scales[quantized]
        operands = [self.scales[self.dequantized[name]] for name in values]
        kind = layer.node.op_type
        if kind in _WEIGHTED:
            able = bool(constants) and all(
                c.quantization and c.quantization.zero_point == 0 for c in constants
            )
            able = able and layer.number("alpha", 1.0) == layer.number("beta", 1.0) == 1.0
        elif kind in _MOVING:
            able = all(scales == result for scales in operands)
        elif kind == "Clip":
            able = self.clamp(layer.node) == "RELU6"
        else:
            able = kind in _COMPUTING or _FIXED_SCALES.get(kind) == result
        if not able or (constants and kind not in _WEIGHTED | _WITH_CONSTANTS | {"Clip"}):
            return layer
        inputs = tuple(self.dequantized.get(name, name) for name in layer.inputs)
        return dataclasses.replace(layer, inputs=inputs, output=quantized, integer=True)


def _attribute(node: onnx.NodeProto, name: str) -> onnx.AttributeProto | None:
    return next((a for a in node.attribute if a.name == name), None)
