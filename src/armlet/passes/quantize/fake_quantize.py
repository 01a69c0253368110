"""A graph that computes with quantised values and can be trained, its scales too.

Source: Esser et al. 2020, "Learned Step Size Quantization". What rounding does is left out of the gradient (the
straight-through estimator, Bengio et al. 2013); the gradient of a scale is that of the rounding error within the range
and of the range's end outside, divided by √(values × largest integer). A scale is learned as a factor of its first
value, so that one learning rate fits scales of every size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from armlet.analysis.graph import Traced, arguments, nodes_by_name, value_name
from armlet.models.quantization import (
    ACTIVATION_MAX,
    ACTIVATION_MIN,
    ActivationQuantization,
    ParameterQuantization,
    Quantization,
    replace_parameter,
    weight_limit,
)
from armlet.models.recurrent import OPERATOR, run_layer
from armlet.passes.quantize.calibrate import NumberFormat, limited_scales
from armlet.passes.quantize.operators import SHARING
from armlet.passes.quantize.placement import Placement
from armlet.passes.quantize.simulation import layers_of

_SMALLEST_SHARE = 1e-3  # of its first value: a scale never becomes zero or negative


class FakeQuantize(nn.Module):
    """Rounds values to what their integers stand for: [...] -> [...].

    Args:
        scales: one, or one for each index of `axis`.
        zero_point: the integer that stands for 0.0.
        limits: the least and the greatest integer.
        axis: dimension that the scales are along; None for one scale of values [N, ...].
        frozen_after: calls in training after which the scales stay, None to learn them to the end.
    """

    def __init__(
        self,
        scales: tuple[float, ...],
        zero_point: int,
        limits: tuple[int, int],
        axis: int | None = None,
        frozen_after: int | None = None,
    ) -> None:
        super().__init__()
        self.axis, self.limits, self.zero_point, self.frozen_after = axis, limits, zero_point, frozen_after
        self.factor = nn.Parameter(torch.ones(len(scales)))
        self.first = nn.Buffer(torch.tensor(scales))
        # In the state, so that a checkpoint of another quantisation is not taken for this one's.
        settings = [zero_point, *limits, -1 if frozen_after is None else frozen_after]
        self.settings = nn.Buffer(torch.tensor(settings))
        self.n_steps = nn.Buffer(torch.zeros((), dtype=torch.int64))

    def scales(self) -> Tensor:
        """Return the scales as they are now."""
        return self.first * self.factor.clamp(min=_SMALLEST_SHARE)

    def forward(self, values: Tensor) -> Tensor:
        """Round the values; the gradients are those of the paper."""
        scales, shape = self.scales(), [1] * values.dim()
        n_values = values.numel() / (len(values) if self.axis is None else len(scales))
        share = 1 / math.sqrt(n_values * self.limits[1])
        scales = (scales - scales * share).detach() + scales * share
        if self.training and torch.is_grad_enabled():  # a critic looks at pictures without learning from them
            if self.frozen_after is not None and int(self.n_steps) >= self.frozen_after:
                scales = scales.detach()
            self.n_steps.add_(1)
        if self.axis is not None:
            shape[self.axis] = -1
        scales = scales.reshape(shape)
        exact = (values / scales + self.zero_point).clamp(*self.limits)
        codes = exact + (torch.round(exact) - exact).detach()
        return (codes - self.zero_point) * scales


@dataclass(frozen=True, slots=True)
class Trainable:
    """A graph with learned scales.

    Attributes:
        module: [N, *shape] for each input -> [N, *output_shape].
        activations: names of the quantisers of each set of values that share a scale.
        weights: names of the quantisers of weights, by parameter.
    """

    module: GraphModule
    activations: dict[tuple[str, ...], str]
    weights: dict[str, str]

    def scales(self, quantizer: str) -> np.ndarray:
        """Return the scales of a quantiser, float32."""
        found = self.module.get_submodule(quantizer)
        if not isinstance(found, FakeQuantize):
            raise TypeError(f"{quantizer} is no quantiser")
        return found.scales().detach().numpy()


def fake_quantized(
    traced: Traced,
    placement: Placement,
    quantization: Quantization,
    frozen_after: int | None,
    *,
    per_channel: bool,
) -> Trainable:
    """Return a trainable module that computes a graph with quantised values.

    Args:
        traced: the float graph; its parameters are copied.
        placement: what is quantised.
        quantization: where scales begin.
        frozen_after: steps of training after which scales stay as they are.
        per_channel: whether each output channel of a weight has a scale of its own.
    """
    module = _plain(traced)
    for name, value in list(module.named_parameters()):
        replace_parameter(module, name, value.detach().clone())
    nodes = nodes_by_name(module.graph)
    first = {a.node: a for a in quantization.activations}
    activations = {}
    for number, names in enumerate(placement.shared):
        one = first[names[0]]
        quantizer = f"quantizer_{number}"
        limits = (ACTIVATION_MIN, ACTIVATION_MAX)
        # What only moves values of the same scale has nothing to round.
        rounded = [
            nodes[name]
            for name in names
            if nodes[name].target not in SHARING
            or not {value_name(n) for n in nodes[name].all_input_nodes} <= set(names)
        ]
        calls = (
            None if frozen_after is None else frozen_after * len(rounded)
        )  # it counts those, several a step
        module.add_submodule(
            quantizer, FakeQuantize((one.scale,), one.zero_point, limits, frozen_after=calls)
        )
        activations[names] = quantizer
        for node in rounded:
            _insert(node, quantizer)
    weights, parameters = {}, {p.parameter: p for p in quantization.parameters}
    for number, (name, source) in enumerate(_weights(traced, placement, quantization, nodes)):
        quantizer, weight = f"weight_quantizer_{number}", parameters[name]
        limit = weight_limit(weight.bits)
        scales = weight.scales if per_channel else weight.scales[:1]
        module.add_submodule(quantizer, FakeQuantize(scales, 0, (-limit, limit), weight.axis, frozen_after))
        weights[name] = quantizer
        _insert(source, quantizer)
    module.recompile()
    return Trainable(module, activations, weights)


def _weights(
    traced: Traced, placement: Placement, quantization: Quantization, nodes: Mapping[str, Node]
) -> Iterator[tuple[str, Node]]:
    """Give each weight that has scales of its own to learn, and the node of its value."""
    for layer in layers_of(traced, placement, quantization):
        yield layer.weight.parameter, _argument(nodes[layer.node.name], 1)
    wanted = {r.weight for r in placement.recurrent}
    for node in traced.nodes:
        if node.target is OPERATOR.default and traced.tensor_name(arguments(node)[2]) in wanted:
            for position in (2, 3):
                name = traced.tensor_name(arguments(node)[position]) or ""
                yield name, _argument(nodes[node.name], position)


def _argument(node: Node, position: int) -> Node:
    found = node.args[position]
    if not isinstance(found, Node):
        raise TypeError(f"argument {position} of {node.name} is no value of the graph")
    return found


def _plain(traced: Traced) -> GraphModule:
    """Return a graph as a module that takes and gives tensors, can be trained, and copied like any other."""
    source, graph, copies = traced.runnable(), Graph(), dict[Node, Node]()
    graph.graph_copy(source.graph, copies)
    (output,) = traced.outputs
    graph.output(copies[nodes_by_name(source.graph)[value_name(output)]])
    for node in graph.find_nodes(op="call_function", target=OPERATOR.default):
        node.target = run_layer  # the operator itself has no gradient
    return GraphModule(source, graph)


def _insert(node: Node, quantizer: str) -> None:
    users = list(node.users)
    with node.graph.inserting_after(node):
        rounded = node.graph.call_module(quantizer, (node,))
    rounded.meta = {"val": node.meta["val"]} if "val" in node.meta else {}
    for user in users:
        if user.target != quantizer:
            user.replace_input_with(node, rounded)


def learned_quantization(
    trainable: Trainable,
    state: Mapping[str, Tensor],
    start: Quantization,
    placement: Placement,
    numbers: NumberFormat,
) -> Quantization:
    """Return the quantisation with the scales that were learned.

    Args:
        trainable: after training.
        state: the float parameters after training, by name.
        start: the quantisation that training began with.
        placement: what is quantised.
        numbers: what the integers are like.
    """
    activations = []
    for names, quantizer in trainable.activations.items():
        scale = float(trainable.scales(quantizer)[0])
        zero_points = {a.node: a.zero_point for a in start.activations}
        activations += [ActivationQuantization(name, scale, zero_points[name]) for name in names]
    scale_of = {a.node: a.scale for a in activations}
    parameters = []
    for layer in placement.layers:
        bias = None if layer.bias is None else state[layer.bias].detach().numpy()
        found = trainable.scales(trainable.weights[layer.weight]).astype(np.float64)
        n_outputs = state[layer.weight].shape[layer.axis]
        scales = limited_scales(np.broadcast_to(found, n_outputs), bias, scale_of[layer.input], numbers)
        parameters.append(
            ParameterQuantization(
                layer.weight, tuple(scales.tolist()), "int8", layer.axis, numbers.weight_bits
            )
        )
        if layer.bias is not None:
            bias_scales = np.float32(scale_of[layer.input]) * scales
            parameters.append(ParameterQuantization(layer.bias, tuple(bias_scales.tolist()), "int32"))
    for name in (name for r in placement.recurrent for name in (r.weight, r.recurrent_weight)):
        found = np.broadcast_to(trainable.scales(trainable.weights[name]), state[name].shape[1])
        parameters.append(ParameterQuantization(name, tuple(found.tolist()), "int8", 1, numbers.weight_bits))
    for table in placement.tables:
        rows = len(state[table.weight])
        parameters.append(ParameterQuantization(table.weight, (scale_of[table.node],) * rows, "int8"))
    return Quantization(tuple(activations), tuple(parameters))
