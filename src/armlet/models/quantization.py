"""How a network is quantised to INT8, as plain data, and the network that computes with it in torch.

Activations are quantised per tensor, q = clamp(round(x / scale) + zero_point, -128, 127); weights per output channel or
group of its inputs, q = clamp(round(w / scale), -127, 127), or -7 … 7 for weights of 4 bits, which are held as INT8 all
the same; biases are 32-bit integers whose scale is that of the layer's input times that of the weight. Activations are
named by their node in the graph that `armlet.analysis.graph.trace` gives, weights and biases by their parameter.

Source: Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference"; ONNX operators QuantizeLinear and DequantizeLinear.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.ao.quantization.fx._decomposed  # registers torch.ops.quantized_decomposed

from armlet.analysis.graph import Traced, nodes_by_name, trace
from armlet.artifacts import InputSpec
from armlet.models.dynamic import quantize_inputs

ACTIVATION_MIN, ACTIVATION_MAX = -128, 127

IntegerArray = npt.NDArray[np.int8] | npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class ActivationQuantization:
    """Scale and zero point of one value of the graph.

    Attributes:
        node: name of the node whose value is quantised, or of the network's input.
        scale: a positive number that float32 holds exactly.
        zero_point: the integer that stands for 0.0, from -128 to 127.
    """

    node: str
    scale: float
    zero_point: int


@dataclass(frozen=True, slots=True)
class ParameterQuantization:
    """Scales of one weight or bias; the zero point is always 0.

    Attributes:
        parameter: name of the parameter in the module.
        scales: one for each index of `axis`, or for each group there, row by row; each held exactly by float32.
        dtype: int8 for weights, int32 for biases.
        axis: dimension of the output channels: 0, but 1 for the weight of a transposed convolution.
        bits: that an integer of a weight needs.
        dynamic_input: whether the layer's input is quantised while the program runs.
        group: consecutive inputs of a weight [O, K] that share a scale, of which there are [O, K / group]; 0 where all
            inputs of an output do.
    """

    parameter: str
    scales: tuple[float, ...]
    dtype: Literal["int8", "int32"]
    axis: int = 0
    bits: Literal[8, 4] = 8
    dynamic_input: bool = False
    group: int = 0


@dataclass(frozen=True, slots=True)
class Quantization:
    """Everything that turns a float network into its INT8 form. What is not named here stays float."""

    activations: tuple[ActivationQuantization, ...]
    parameters: tuple[ParameterQuantization, ...]


def weight_limit(bits: int) -> int:
    """Return the largest integer of a weight of so many bits; the range is symmetric."""
    return (1 << bits - 1) - 1


def quantized_values(values: npt.NDArray[np.float32], parameter: ParameterQuantization) -> IntegerArray:
    """Return a parameter's integers, in its own shape [O, ...]; rounds half to even and saturates.

    Raises:
        ValueError: the parameter does not have one output channel, or group of inputs, for each scale.
    """
    scales = scales_over(parameter, values.shape).astype(np.float64)
    limit = weight_limit(parameter.bits) if parameter.dtype == "int8" else 2**31 - 1
    integers = np.rint(values.astype(np.float64) / scales)
    return np.clip(integers, -limit, limit).astype(parameter.dtype)


def dequantized_values(integers: IntegerArray, parameter: ParameterQuantization) -> npt.NDArray[np.float32]:
    """Return float32(q) × scale as ONNX DequantizeLinear computes it."""
    return integers.astype(np.float32) * scales_over(parameter, integers.shape)


def scales_over(parameter: ParameterQuantization, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Return a parameter's scales in a form that broadcasts to its shape [O, ...].

    Raises:
        ValueError: the parameter does not have one output channel, or group of inputs, for each scale.
    """
    scales, axis, group = np.array(parameter.scales, np.float32), parameter.axis, parameter.group
    if group and len(shape) == 2 and axis == 0 and scales.size * group == shape[0] * shape[1]:
        return np.repeat(scales.reshape(shape[0], -1), group, axis=1)
    if group or len(shape) <= axis or shape[axis] != scales.size:
        groups = f" of groups of {group}" if group else ""
        raise ValueError(f"{parameter.parameter} has shape {shape}, but {scales.size} scales{groups}")
    return scales.reshape([-1 if i == axis else 1 for i in range(len(shape))])


def quantized_module(
    module: torch.nn.Module, inputs: tuple[InputSpec, ...], quantization: Quantization
) -> torch.nn.Module:
    """Return the network that computes with the quantised values, in float arithmetic.

    Args:
        module: the float network, in eval mode; not changed.
        inputs: what it takes.
        quantization: names nodes of `module`'s graph and its parameters.

    Raises:
        ValueError: the quantisation does not belong to this module.
    """
    return quantized_graph(trace(module, inputs), quantization)


def quantized_graph(traced: Traced, quantization: Quantization) -> torch.fx.GraphModule:
    """Return a module that computes a graph with the quantised values, in float arithmetic.

    Its parameters are its own and hold the dequantised values, and behind each quantised node stands a pair of
    quantize and dequantize operators. The batch size is free.

    Raises:
        ValueError: the quantisation does not belong to this graph.
    """
    graph_module = traced.runnable()
    for parameter in quantization.parameters:
        tensor = graph_module.get_parameter(parameter.parameter)
        integers = quantized_values(tensor.detach().cpu().numpy(), parameter)
        dequantized = torch.from_numpy(dequantized_values(integers, parameter))
        replace_parameter(graph_module, parameter.parameter, dequantized)
    nodes = nodes_by_name(graph_module.graph)
    if unknown := [a.node for a in quantization.activations if a.node not in nodes]:
        raise ValueError(
            f"the network's graph has no nodes {', '.join(unknown)}: it is not the one quantised"
        )
    for activation in quantization.activations:
        _insert(nodes[activation.node], activation)
    names = {node.target: node for node in graph_module.graph.nodes if node.op == "get_attr"}
    dynamic = [p.parameter for p in quantization.parameters if p.dynamic_input]
    quantize_inputs(graph_module.graph, [names[name] for name in dynamic])
    graph_module.recompile()
    return graph_module


def replace_parameter(module: torch.nn.Module, name: str, values: torch.Tensor) -> None:
    """Give a module another parameter under a name; the one before, which others may share, stays as it is."""
    layer, _, own = name.rpartition(".")
    module.get_submodule(layer).register_parameter(own, torch.nn.Parameter(values))


def _insert(node: torch.fx.Node, activation: ActivationQuantization) -> None:
    operators = torch.ops.quantized_decomposed
    arguments = (activation.scale, activation.zero_point, ACTIVATION_MIN, ACTIVATION_MAX, torch.int8)
    users = list(node.users)
    with node.graph.inserting_after(node):
        quantize = node.graph.call_function(operators.quantize_per_tensor.default, (node, *arguments))
    with node.graph.inserting_after(quantize):
        dequantize = node.graph.call_function(operators.dequantize_per_tensor.default, (quantize, *arguments))
    for user in users:
        user.replace_input_with(node, dequantize)
