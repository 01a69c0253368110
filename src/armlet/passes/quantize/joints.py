"""Where the channels of one layer are those that the next one reads, and both can be rescaled without a trace.

A joint is two layers with nothing between them but operators that pass a positive factor of a channel on: relu, leaky
relu, pooling, flattening. relu6 and other clamps with an upper limit don't, so there is no joint across them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

from armlet.analysis.graph import Traced, arguments, aten, operator_name, shape_of

LAYERS = (aten.conv2d.default, aten.conv2d.padding, aten.linear.default)
_BY_VALUE = (
    aten.relu.default,
    aten.relu_.default,
    aten.leaky_relu.default,
    aten.leaky_relu_.default,
    aten.contiguous.default,
    aten.clone.default,
)
_BY_CHANNEL = (aten.max_pool2d.default, aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default)


@dataclass(frozen=True, slots=True)
class Joint:
    """Two layers whose channels are the same.

    Attributes:
        first: the node of the layer whose outputs they are.
        second: the node of the layer that reads them.
        copies: inputs of the second layer that come from one output of the first: more than one behind a flattening.
    """

    first: Node
    second: Node
    copies: int


def joints(traced: Traced) -> tuple[tuple[Joint, ...], tuple[str, ...]]:
    """Return the joints of a graph in order, and why pairs of layers that look like one are none."""
    found, notes = [], []
    for node in traced.nodes:
        if node.target not in LAYERS or not _owns_weight(node, traced):
            continue
        last = _next(node)
        while last is not None and _passes_factors(last):
            last = _next(last)
        if last is None:
            continue
        if last.target in LAYERS and _owns_weight(last, traced):
            outputs, inputs = int(shape_of(arguments(node)[1])[0]), n_inputs(last)
            if inputs % outputs == 0:
                found.append(Joint(node, last, inputs // outputs))
        elif operator_name(last) in ("relu6", "hardtanh", "hardtanh_", "clamp"):
            notes.append(f"{node.name} is not rescaled: {operator_name(last)} cuts at a fixed value")
    return tuple(found), tuple(notes)


def _passes_factors(node: Node) -> bool:
    """Whether a positive factor of a channel before the node is one behind it."""
    rank = len(shape_of(arguments(node)[0])) if isinstance(arguments(node)[0], Node) else 0
    match node.target:
        case aten.mean.dim:
            return rank == 4 and sorted(d % rank for d in arguments(node)[1]) == [2, 3]
        case aten.flatten.using_ints:
            return rank == 4 and list(arguments(node)[1:]) in ([1], [1, -1], [1, 3])
    return node.target in _BY_VALUE or node.target in _BY_CHANNEL


def _next(node: Node) -> Node | None:
    """Return what alone uses a node's value, as its first argument."""
    users = tuple(node.users)
    return (
        users[0] if len(users) == 1 and users[0].op == "call_function" and node is users[0].args[0] else None
    )


def _owns_weight(node: Node, traced: Traced) -> bool:
    weight, parameters = arguments(node)[1], traced.program.graph_signature.inputs_to_parameters
    return isinstance(weight, Node) and weight.name in parameters and len(weight.users) == 1


def groups_of(node: Node) -> int:
    """Return the groups of a convolution, 1 for a linear layer."""
    return int(arguments(node)[6]) if len(arguments(node)) > 6 else 1


def n_inputs(node: Node) -> int:
    """Return the input channels of a layer."""
    return int(shape_of(arguments(node)[1])[1]) * groups_of(node)


def input_ranges(node: Node, weight: Tensor) -> Tensor:
    """Return the largest magnitude of the weights that each input channel of a layer meets, [C]."""
    grouped = weight.reshape(groups_of(node), -1, weight.shape[1], *weight.shape[2:]).abs()
    return grouped.amax(dim=(1, *range(3, grouped.dim()))).flatten()


def scale_inputs(node: Node, weight: Tensor, factors: Tensor) -> None:
    """Multiply the weights that each input channel meets by its factor, [C], in place."""
    groups = groups_of(node)
    shape = (groups, 1, weight.shape[1], *[1] * (weight.dim() - 2))
    grouped = weight.reshape(groups, -1, *weight.shape[1:]) * factors.to(weight.dtype).reshape(shape)
    with torch.no_grad():
        weight.copy_(grouped.reshape(weight.shape))


def scale_outputs(weight: Tensor, bias: Tensor | None, factors: Tensor) -> None:
    """Multiply each output channel of a layer by its factor, [O], in place."""
    with torch.no_grad():
        weight.mul_(factors.to(weight.dtype).reshape(-1, *[1] * (weight.dim() - 1)))
        if bias is not None:
            bias.mul_(factors.to(bias.dtype))
