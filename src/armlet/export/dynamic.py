"""Layers whose input is quantised while the program runs, as the ONNX operators that quantize_dynamic writes.

DynamicQuantizeLinear -> MatMulInteger or ConvInteger -> Cast -> Mul -> Add. Weights are uint8 around 128 and not int8:
with those, ONNX Runtime saturates sums of two products on CPUs without VNNI.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from armlet.errors import UnsupportedOperator
from armlet.models.quantization import ParameterQuantization


def store_dynamic(graph: ir.Graph, parameter: ParameterQuantization, integers: np.ndarray) -> None:
    """Put integer operators in the place of the layer whose weight is dequantised in the graph.

    Args:
        graph: in which the weight stands behind a DequantizeLinear.
        parameter: how the weight is quantised.
        integers: of the weight, int8 [outputs, inputs, ...].

    Raises:
        UnsupportedOperator: something else than one product uses the weight.
    """
    name = parameter.parameter
    layer = name.removesuffix(".weight")
    old = _product(graph, name)
    value, bias = old.inputs[0], old.inputs[2] if len(old.inputs) > 2 else None
    quantize = _quantization(graph, value, old)
    convolution = old.op_type == "Conv"
    weight = (integers.astype(np.int16) + 128).astype(np.uint8)
    weight = weight if convolution else np.ascontiguousarray(weight.T)
    for suffix in ("quantized", "zero_point"):
        del graph.initializers[f"{name}.{suffix}"]
    stored = initializer(graph, f"{name}.quantized", weight)
    zero = initializer(graph, f"{name}.zero_point", np.array(128, np.uint8))
    scale = graph.initializers[f"{name}.scale"]
    if convolution:
        scale, bias = _by_channel(scale), None if bias is None else _by_channel(bias)
    numbers, factor, middle = quantize.outputs
    kind = "ConvInteger" if convolution else "MatMulInteger"
    product = _node(kind, [numbers, stored, middle, zero], f"{layer}.integer_product")
    if convolution:
        product.attributes.update(old.attributes)
    number = _node("Cast", [product.outputs[0]], f"{layer}.number", {"to": ir.DataType.FLOAT})
    factors = _node("Mul", [factor, scale], f"{layer}.factors")
    scaled = _node("Mul", [number.outputs[0], factors.outputs[0]], f"{layer}.scaled")
    scaled.metadata_props.update(old.metadata_props)  # it is what the layer's name goes to
    nodes = [product, number, factors, scaled]
    if bias is not None:
        nodes.append(_node("Add", [scaled.outputs[0], bias], f"{layer}.sum"))
    graph.insert_before(old, nodes)
    result, before = nodes[-1].outputs[0], old.outputs[0]
    for node in (scaled, nodes[-1]):
        node.outputs[0].type, node.outputs[0].shape = before.type, before.shape
    for use in list(before.uses()):
        use.node.replace_input_with(use.idx, result)
    for i, output in enumerate(graph.outputs):
        if output is before:
            graph.outputs[i] = result
    graph.remove(old, safe=True)


def initializer(graph: ir.Graph, name: str, values: np.ndarray) -> ir.Value:
    """Add a constant to a graph."""
    tensor = ir.tensor(values, name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
    graph.register_initializer(value)
    return value


def _by_channel(value: ir.Value) -> ir.Value:
    """Turn a constant [C] into one [C, 1, 1], which goes along the channels of pictures."""
    assert value.const_value is not None  # noqa: S101 - of scales and biases
    tensor = ir.tensor(value.const_value.numpy().reshape(-1, 1, 1), name=value.name)
    value.const_value, value.shape = tensor, tensor.shape
    return value


def _product(graph: ir.Graph, weight: str) -> ir.Node:
    """Return the Conv, Gemm or MatMul that alone uses a dequantised weight, which is removed."""
    dequantize = next(node for node in graph if node.outputs[0].name == weight)
    uses = list(dequantize.outputs[0].uses())
    if len(uses) != 1 or uses[0].node.op_type not in ("Conv", "Gemm", "MatMul"):
        kinds = ", ".join(use.node.op_type for use in uses)
        raise UnsupportedOperator(f"{weight} is used by {kinds}, not by one product alone")
    node = uses[0].node
    node.replace_input_with(1, None)
    graph.remove(dequantize, safe=True)
    return node


def _quantization(graph: ir.Graph, value: ir.Value | None, before: ir.Node) -> ir.Node:
    """Return the node that quantises a value, made where there is none yet."""
    assert value is not None  # noqa: S101 - every product has it
    found = next((use.node for use in value.uses() if use.node.op_type == "DynamicQuantizeLinear"), None)
    if found is None:
        found = ir.node("DynamicQuantizeLinear", [value], num_outputs=3)
        for output, part in zip(found.outputs, ("quantize", "scale", "zero_point"), strict=True):
            output.name = f"{value.name}.{part}"
        graph.insert_before(before, found)
    return found


def _node(kind: str, inputs: list[ir.Value], name: str, attributes: dict[str, int] | None = None) -> ir.Node:
    node = ir.node(kind, inputs, attributes, name=name)
    node.outputs[0].name = name
    return node
