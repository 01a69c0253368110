"""How each layer becomes .tflite operators, but for those with a window: one function for each ONNX operator.

The versions of operators are the lowest that know the types and features used.

Source: op_version.cc of LiteRT; the operators' kernels there say which scales each accepts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as tfl

from armlet.export.litert.flatbuffer import FlatModel, Scales, Tensor
from armlet.export.litert.graph import Graph, Layer
from armlet.export.litert.values import TO_CHANNELS_LAST, Order, Values
from armlet.registry import Registry


@dataclass(frozen=True, slots=True)
class Context:
    """What an emitter reads from and writes to."""

    graph: Graph
    model: FlatModel
    values: Values


Emitter = Callable[[Layer, Context], None]
EMITTERS: Registry[Emitter] = Registry("operator")
"""Adds a layer's operators to the model, and its value to the values; raises UnsupportedOperator."""


def fused(layer: Layer) -> int:
    """Return the schema's number of the clamp that belongs to a layer."""
    return int(vars(tfl.ActivationFunctionType)[layer.activation])


def bias_of(
    layer: Layer, context: Context, x: Tensor, weight_scales: Scales | None, n_outputs: int
) -> Tensor:
    """Return the bias [O] of a layer that reads `x`, zeros where it has none; no `weight_scales` means float."""
    name = f"{layer.output}/bias"
    has_bias = len(layer.inputs) > 2
    if x.quantization is None or weight_scales is None:
        values = context.graph.constant(layer, 2).real if has_bias else np.zeros(1, np.float32)
        values = values * np.float32(layer.number("beta", 1.0))
        if values.size not in (1, n_outputs):
            raise layer.refuse("its bias is not one number for each output")
        return context.model.add_constant(name, np.broadcast_to(values.reshape(-1), (n_outputs,)))
    scales = np.float32(x.quantization.scales[0]) * np.array(weight_scales.scales, np.float32)
    integers = np.zeros(n_outputs, np.int32)
    if has_bias:
        bias = context.graph.constant(layer, 2)
        own = np.array(bias.quantization.scales if bias.quantization else (), np.float64)
        # LiteRT knows one scale for a bias: that of the input times that of the weight.
        integers = np.rint(bias.values.reshape(-1) * (own / scales)).astype(np.int32)
    return context.model.add_constant(name, integers, Scales(tuple(scales.tolist())))


@EMITTERS.register("MatMul")
@EMITTERS.register("Gemm")
def emit_dense(layer: Layer, context: Context) -> None:
    """FULLY_CONNECTED [O, I]; a flattened picture is read as it lies, with the weight permuted instead."""
    weight = context.graph.constant(layer, 1)
    if weight.values.ndim != 2 or layer.integer_of("transA", 0):
        raise layer.refuse("it is not a product with a constant matrix")
    transposed = not layer.integer_of("transB", 0)
    values = weight.values if layer.integer else weight.real * np.float32(layer.number("alpha", 1.0))
    values = values.T if transposed else values
    scales = weight.quantization if layer.integer else None
    if scales is not None and len(scales.scales) > 1 and scales.axis % 2 != (1 if transposed else 0):
        raise layer.refuse("its weight's scales are not one for each output")
    if scales is not None:
        scales = Scales(scales.scales)
    order = Order.FLAT if context.values.order(layer.inputs[0]) is Order.FLAT else Order.PLAIN
    placed = context.values.placed(layer.inputs[0], order)
    if order is Order.FLAT:
        values = values.reshape(-1, *placed.picture).transpose(0, 2, 3, 1).reshape(values.shape)
    x = placed.tensor
    kernel = context.model.add_constant(layer.inputs[1], values, scales)
    inputs = [x, kernel, bias_of(layer, context, x, scales, values.shape[0])]
    keep = len(x.shape) != 2
    version = 5 if keep else 1
    if scales is not None:
        version = 12 if len(scales.scales) > 1 else max(version, 4)
    options = tfl.FullyConnectedOptionsT(fusedActivationFunction=fused(layer), keepNumDims=keep)
    result = context.values.add(layer.output)
    context.model.add_operator(tfl.BuiltinOperator.FULLY_CONNECTED, version, inputs, result, options)


def _unary(layer: Layer, context: Context, builtin: int, options: Any = None, version: int = 1) -> None:  # noqa: ANN401 - a class of the generated schema
    """Add an operator on single elements, in whatever order they lie."""
    order = context.values.order(layer.inputs[0])
    placed = context.values.placed(layer.inputs[0], order)
    result = context.values.add(layer.output, order, placed.picture)
    context.model.add_operator(builtin, version, [placed.tensor], result, options)


def _version(layer: Layer) -> int:
    """Return the version of the many operators that learned int8 in their second."""
    return 2 if layer.integer else 1


@EMITTERS.register("Relu")
@EMITTERS.register("Clip")
def emit_clamp(layer: Layer, context: Context) -> None:
    """RELU, RELU6 or RELU_N1_TO_1."""
    clamp = context.graph.clamp(layer.node)
    if not clamp:
        raise layer.refuse("only the limits (0, 6) and (-1, 1) have one")
    _unary(layer, context, vars(tfl.BuiltinOperator)[clamp], version=_version(layer))


@EMITTERS.register("Sigmoid")
def emit_sigmoid(layer: Layer, context: Context) -> None:
    """LOGISTIC."""
    _unary(layer, context, tfl.BuiltinOperator.LOGISTIC, version=_version(layer))


@EMITTERS.register("Tanh")
def emit_tanh(layer: Layer, context: Context) -> None:
    """TANH."""
    _unary(layer, context, tfl.BuiltinOperator.TANH, version=_version(layer))


@EMITTERS.register("HardSwish")
def emit_hard_swish(layer: Layer, context: Context) -> None:
    """HARD_SWISH."""
    _unary(layer, context, tfl.BuiltinOperator.HARD_SWISH, tfl.HardSwishOptionsT())


@EMITTERS.register("LeakyRelu")
def emit_leaky_relu(layer: Layer, context: Context) -> None:
    """LEAKY_RELU."""
    options = tfl.LeakyReluOptionsT(alpha=layer.number("alpha", 0.01))
    _unary(layer, context, tfl.BuiltinOperator.LEAKY_RELU, options, _version(layer))


@EMITTERS.register("Gelu")
def emit_gelu(layer: Layer, context: Context) -> None:
    """GELU."""
    options = tfl.GeluOptionsT(approximate=layer.text("approximate", "none") == "tanh")
    _unary(layer, context, tfl.BuiltinOperator.GELU, options, _version(layer))


@EMITTERS.register("QuantizeLinear")
def emit_quantize(layer: Layer, context: Context) -> None:
    """QUANTIZE, from float32 or from int8 of another scale."""
    source = context.graph.dequantized.get(layer.inputs[0], layer.inputs[0])
    order = context.values.order(source)
    placed = context.values.placed(source, order)
    version = 1 if placed.tensor.quantization is None else 2
    result = context.values.add(layer.output, order, placed.picture)
    context.model.add_operator(
        tfl.BuiltinOperator.QUANTIZE, version, [placed.tensor], result, tfl.QuantizeOptionsT()
    )


@EMITTERS.register("Add")
def emit_add(layer: Layer, context: Context) -> None:
    """ADD."""
    _binary(layer, context, tfl.BuiltinOperator.ADD, tfl.AddOptionsT(fusedActivationFunction=fused(layer)))


@EMITTERS.register("Mul")
def emit_mul(layer: Layer, context: Context) -> None:
    """MUL."""
    _binary(layer, context, tfl.BuiltinOperator.MUL, tfl.MulOptionsT())


def _binary(layer: Layer, context: Context, builtin: int, options: Any) -> None:  # noqa: ANN401 - a class of the generated schema
    order = _common_order(layer, context)
    operands = [_operand(name, order, context) for name in layer.inputs]
    result = context.values.add(layer.output, order)
    context.model.add_operator(builtin, _version(layer), operands, result, options)


def _common_order(layer: Layer, context: Context) -> Order:
    """Return the order for pictures if all values are some, and one lies so."""
    values = [name for name in layer.inputs if name not in context.graph.constants]
    pictures = all(len(context.graph.shape(name)) == 4 for name in values)
    lies_so = any(context.values.order(name) is Order.CHANNELS_LAST for name in values)
    return Order.CHANNELS_LAST if pictures and lies_so else Order.PLAIN


def _operand(name: str, order: Order, context: Context) -> Tensor:
    """Return a value or a constant for a calculation in `order`, in which constants broadcast."""
    constant = context.graph.constants.get(name)
    if constant is None or order is Order.PLAIN:
        return context.values.read(name, order)
    picture = constant.real.reshape((1,) * (4 - constant.real.ndim) + constant.real.shape)
    return context.model.add_constant(name + order.value, picture.transpose(TO_CHANNELS_LAST))


@EMITTERS.register("Concat")
def emit_concat(layer: Layer, context: Context) -> None:
    """CONCATENATION."""
    order = _common_order(layer, context)
    rank = len(context.graph.shape(layer.output))
    axis = layer.integer_of("axis", 0) % rank
    axis = TO_CHANNELS_LAST.index(axis) if order is Order.CHANNELS_LAST else axis
    operands = [_operand(name, order, context) for name in layer.inputs]
    result = context.values.add(layer.output, order)
    options = tfl.ConcatenationOptionsT(axis=axis)
    context.model.add_operator(tfl.BuiltinOperator.CONCATENATION, _version(layer), operands, result, options)


@EMITTERS.register("ReduceMean")
@EMITTERS.register("GlobalAveragePool")
def emit_mean(layer: Layer, context: Context) -> None:
    """MEAN."""
    shape = context.graph.shape(layer.inputs[0])
    rank = len(shape)
    axes = layer.integers("axes") or tuple(range(2 if layer.node.op_type == "GlobalAveragePool" else 0, rank))
    if len(layer.inputs) > 1:
        axes = tuple(context.graph.constant(layer, 1).values.reshape(-1).tolist())
    axes = tuple(sorted(axis % rank for axis in axes))
    keep = layer.integer_of("keepdims", 1) == 1
    # Without its height and width, a picture's dimensions have one order.
    order = Order.CHANNELS_LAST if rank == 4 and {2, 3} <= set(axes) else Order.PLAIN
    x = context.values.read(layer.inputs[0], order)
    if order is Order.CHANNELS_LAST:
        axes = tuple(sorted(TO_CHANNELS_LAST.index(axis) for axis in axes))
    result = context.values.add(layer.output, order if keep else Order.PLAIN)
    indices = context.model.add_constant(f"{layer.output}/axes", np.array(axes, np.int32))
    options = tfl.ReducerOptionsT(keepDims=keep)
    context.model.add_operator(tfl.BuiltinOperator.MEAN, _version(layer), [x, indices], result, options)


@EMITTERS.register("Reshape")
@EMITTERS.register("Flatten")
@EMITTERS.register("Squeeze")
@EMITTERS.register("Unsqueeze")
def emit_reshape(layer: Layer, context: Context) -> None:
    """RESHAPE; a flattened picture keeps the order in which it lies."""
    source = layer.inputs[0]
    before, after = context.graph.shape(source), context.graph.shape(layer.output)
    order, picture = Order.PLAIN, before[1:]
    flattened = len(before) == 4 and after == (before[0], math.prod(picture))
    if flattened and context.values.order(source) is Order.CHANNELS_LAST:
        order = Order.CHANNELS_LAST
    x = context.values.read(source, order)
    moved = order is Order.CHANNELS_LAST and picture[0] > 1 and math.prod(picture[1:]) > 1
    result = context.values.add(layer.output, Order.FLAT if moved else Order.PLAIN, picture if moved else ())
    context.values.reshape(x, result)


@EMITTERS.register("Transpose")
def emit_transpose(layer: Layer, context: Context) -> None:
    """TRANSPOSE."""
    x = context.values.read(layer.inputs[0])
    axes = layer.integers("perm", reversed(range(len(x.shape))))
    context.values.transpose(x, axes, context.values.add(layer.output))
