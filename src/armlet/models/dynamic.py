"""Quantisation of a layer's input while the network runs, one scale and zero point for a sample's whole value.

Source: ONNX operator DynamicQuantizeLinear; `armlet.compile.quantized.dynamic` is the same in NumPy.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.fx import Graph, Node

_LARGEST, _LEAST = 2.0**126, 2.0**-118


def quantized_while_running(x: Tensor) -> Tensor:
    """Return x [N, ...] rounded to the 256 steps of each sample's own range, which zero is in."""
    if x.dim() < 2:
        raise ValueError(f"a value of shape {list(x.shape)} has no dimension beside the batch")
    over = tuple(range(1, x.dim()))
    low = x.amin(over, keepdim=True).clamp(-_LARGEST, 0.0)
    high = x.amax(over, keepdim=True).clamp(0.0, _LARGEST)
    spread = high - low
    scale = torch.where(spread < _LEAST, 1.0, spread / 255.0)
    zero = torch.round(-low / scale).clamp(max=255.0)
    return torch.clamp(torch.round(x / scale) + zero, 0.0, 255.0).sub(zero).mul(scale)


def quantize_inputs(graph: Graph, weights: Iterable[Node]) -> None:
    """Put the quantisation in front of the linear layers that use these weights, once for each value."""
    made: dict[Node, Node] = {}
    for weight in weights:
        for layer in list(weight.users):
            value = layer.args[0]
            assert isinstance(value, Node)  # noqa: S101 - a linear layer takes a value of the graph
            if value not in made:
                with graph.inserting_after(value):
                    made[value] = graph.call_function(quantized_while_running, (value,))
            layer.replace_input_with(value, made[value])
