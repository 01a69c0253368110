"""A graph that computes as it will when quantised, beside the float one, so that layers can be adjusted one by one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from armlet.analysis.graph import Traced, arguments, nodes_by_name, observing, value_name
from armlet.models.quantization import (
    ParameterQuantization,
    Quantization,
    dequantized_values,
    quantized_graph,
    quantized_values,
    replace_parameter,
)
from armlet.passes.quantize.operators import CLAMPS, WEIGHTED
from armlet.passes.quantize.placement import Placement, WeightedLayer
from armlet.passes.quantize.ranges import BATCH, Samples


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer with integer weights, in the graph.

    Attributes:
        node: that computes it.
        placed: names of its input and its parameters.
        weight: how its weight is quantised.
        bias: how its bias is, None if it is float or there is none.
    """

    node: Node
    placed: WeightedLayer
    weight: ParameterQuantization
    bias: ParameterQuantization | None

    @property
    def name(self) -> str:
        """Name of the module."""
        return self.placed.weight.rpartition(".")[0]

    @property
    def clamp(self) -> Node | None:
        """The clamp that belongs to it, if there is one."""
        users = tuple(self.node.users)
        return users[0] if len(users) == 1 and users[0].target in CLAMPS else None

    @property
    def groups(self) -> int:
        """Groups of a convolution, 1 for everything else."""
        found = arguments(self.node)
        return int(found[6]) if len(found) > 6 else 1

    def compute(self, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return what the layer and its clamp make of inputs [N, ...]."""
        return self.clamped(self.sums(inputs, weight, bias))

    def sums(self, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return what the layer makes of inputs [N, ...], before its clamp."""
        rest = arguments(self.node)[3:]
        found: Tensor = self.node.target(inputs, weight, bias, *rest)  # type: ignore[operator]
        return found

    def clamped(self, sums: Tensor) -> Tensor:
        """Return the values behind the clamp, if there is one."""
        if self.clamp is None:
            return sums
        found: Tensor = self.clamp.target(sums.clone(), *arguments(self.clamp)[1:])  # type: ignore[operator]
        return found


class Simulation:
    """A quantised graph and its float reference.

    Args:
        traced: of the float module, whose parameters `set_weight` and `set_bias` change.
        placement: what is quantised.
        quantization: of the graph.

    Attributes:
        layers: those with integer weights, in the order of execution.
    """

    def __init__(self, traced: Traced, placement: Placement, quantization: Quantization) -> None:
        self.layers = layers_of(traced, placement, quantization)
        self._state = traced.program.state_dict
        self._reference = traced.runnable()
        for name, value in list(self._reference.named_parameters()):
            replace_parameter(self._reference, name, value.detach().clone())
        self._quantized = quantized_graph(traced, quantization)

    def weight(self, layer: Layer) -> Tensor:
        """Return the float weight that the quantised one is to stand for."""
        return self._reference.get_parameter(layer.placed.weight).detach()

    def bias(self, layer: Layer) -> Tensor | None:
        """Return the bias that the quantised layer adds."""
        name = layer.placed.bias
        return None if name is None else self._quantized.get_parameter(name).detach()

    def inputs(self, layer: Layer, samples: Samples) -> Tensor:
        """Return what the layer takes when everything before it is quantised, [N, ...] of all samples."""
        source = nodes_by_name(self._quantized.graph)[layer.node.name].args[0]
        if not isinstance(source, Node):
            raise TypeError(f"the input of {layer.name} is no value of the graph")
        return torch.cat(list(_values(self._quantized, value_name(source), samples)))

    def sums(self, layer: Layer, samples: Samples) -> Iterator[tuple[Tensor, Tensor]]:
        """Give what the float and the quantised layer sum up, batch by batch, before any clamp."""
        name = layer.node.name
        return zip(
            _values(self._reference, name, samples), _values(self._quantized, name, samples), strict=True
        )

    def set_weight(self, layer: Layer, weight: Tensor) -> None:
        """Let a layer have this weight, of values that its scales can hold: it rounds to itself."""
        self._set(layer.placed.weight, weight, layer.weight)

    def set_bias(self, layer: Layer, bias: Tensor) -> None:
        """Let a layer have this bias."""
        if layer.placed.bias is None:
            raise ValueError(f"{layer.name} has no bias")
        self._set(layer.placed.bias, bias, layer.bias)

    def _set(self, name: str, values: Tensor, quantization: ParameterQuantization | None) -> None:
        computed = values
        if quantization is not None:
            integers = quantized_values(values.detach().numpy(), quantization)
            computed = torch.from_numpy(dequantized_values(integers, quantization))
        with torch.no_grad():
            self._state[name].copy_(values)
            self._quantized.get_parameter(name).copy_(computed)


def weight_nodes(traced: Traced) -> dict[str, Node]:
    """Return the convolutions and linear layers of a graph by the names of their weights."""
    return {
        name: node
        for node in traced.nodes
        if node.target in WEIGHTED and (name := traced.tensor_name(arguments(node)[1])) is not None
    }


def layers_of(traced: Traced, placement: Placement, quantization: Quantization) -> tuple[Layer, ...]:
    """Return the convolutions and linear layers with integer weights, in the order of execution."""
    parameters = {p.parameter: p for p in quantization.parameters}
    nodes = weight_nodes(traced)
    return tuple(
        Layer(
            nodes[placed.weight],
            placed,
            parameters[placed.weight],
            None if placed.bias is None else parameters.get(placed.bias),
        )
        for placed in placement.layers
        if placed.weight in nodes
    )


def _values(module: GraphModule, name: str, samples: Samples) -> Iterator[Tensor]:
    observed = observing(module, (name,))
    for batch in zip(*(torch.split(x, BATCH) for x in samples), strict=True):
        with torch.no_grad():
            (value,) = observed(*batch)
        yield value
