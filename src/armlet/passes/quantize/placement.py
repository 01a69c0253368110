"""Where a graph is quantised: which values carry a scale, which share one, and what stays float.

1. Convolutions, transposed ones too, linear layers, additions of two values, averages over the picture and average
   pooling compute on integers: their inputs and their output are quantised.
2. A clamp (relu, relu6) that alone uses the value of such a node belongs to it: the clamp's value is quantised instead.
3. Pooling by maximum, reshapes, permutations and concatenation compute on the integers as they are: their inputs and
   their output share one scale.
4. Functions of one number (gelu, silu, tanh, sigmoid, elu, ...) are tables of 256 entries, where what they take is
   quantised anyway: a layer in float keeps its exact activation, and the network's answers are float numbers.
5. Everything else stays float; so do the layers that the user excludes. Each is named in the notes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch.fx import Node

from armlet.analysis.graph import (
    Traced,
    arguments,
    aten,
    layer_name,
    module_name,
    operator_name,
    shape_of,
    value_name,
)
from armlet.passes.base import is_named

WEIGHTED = (
    aten.conv2d.default,
    aten.conv2d.padding,
    aten.linear.default,
    aten.conv_transpose2d.input,
)
CLAMPS = (
    aten.relu.default,
    aten.relu_.default,
    aten.relu6.default,
    aten.hardtanh.default,
    aten.hardtanh_.default,
    aten.clamp.default,
)
TABLES = (
    aten.gelu.default,
    aten.silu.default,
    aten.silu_.default,
    aten.tanh.default,
    aten.sigmoid.default,
    aten.elu.default,
    aten.elu_.default,
    aten.leaky_relu.default,
    aten.leaky_relu_.default,
    aten.hardswish.default,
    aten.hardswish_.default,
    aten.hardsigmoid.default,
    aten.mish.default,
    aten.softplus.default,
)
SHARING = (
    aten.max_pool2d.default,
    aten.upsample_nearest2d.vec,
    aten.flatten.using_ints,
    aten.view.default,
    aten.reshape.default,
    aten.permute.default,
    aten.transpose.int,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.unsqueeze.default,
    aten.contiguous.default,
    aten.clone.default,
    aten.cat.default,
)


@dataclass(frozen=True, slots=True)
class WeightedLayer:
    """A convolution or a linear layer that computes on integers.

    Attributes:
        input: name of the node whose value it takes.
        weight: name of its weight.
        bias: name of its bias, None if it has none.
        axis: dimension of the weight that the output channels are in.
    """

    input: str
    weight: str
    bias: str | None
    axis: int = 0


@dataclass(frozen=True, slots=True)
class Placement:
    """What of a graph is quantised.

    Attributes:
        shared: names of the nodes whose values are quantised, in sets of one scale each, in graph order.
        layers: the layers whose weights are quantised.
        notes: what stays float, and why.
    """

    shared: tuple[tuple[str, ...], ...]
    layers: tuple[WeightedLayer, ...]
    notes: tuple[str, ...]


def place(traced: Traced, exclude: Sequence[str]) -> Placement:
    """Decide which values of a graph are quantised.

    Args:
        traced: a graph with its batch normalisations folded.
        exclude: module names, or patterns with *, that stay float.
    """
    needed: set[Node] = set()
    fused: set[Node] = set()
    layers: list[WeightedLayer] = []
    notes: list[str] = []
    for node in traced.nodes:
        if node in fused or node.target in SHARING or not _computes(node):
            continue
        if reason := _why_float(node, traced, exclude, needed):
            notes.append(f"{layer_name(node)} stays float: {reason}")
            continue
        result = _clamp_of(node, exclude) or node
        fused.add(result)
        needed |= {result, *_inputs(node, traced)}
        if node.target in WEIGHTED:
            layers.append(_layer(node, traced))
    return Placement(_shared(traced, needed), tuple(layers), tuple(notes))


def _computes(node: Node) -> bool:
    """Whether the node computes on values of the network, not on its sizes."""
    return hasattr(node.meta.get("val"), "shape")


def _inputs(node: Node, traced: Traced) -> list[Node]:
    return [n for n in node.all_input_nodes if traced.tensor_name(n) is None and _computes(n)]


def _why_float(node: Node, traced: Traced, exclude: Sequence[str], quantized: set[Node]) -> str:
    """Return why a node can't compute on integers, empty if it can; `quantized` are the values that are so far."""
    if _excluded(node, exclude):
        return "excluded"
    match node.target:
        case aten.conv2d.default | aten.conv2d.padding | aten.linear.default | aten.conv_transpose2d.input:
            parameters = traced.program.graph_signature.inputs_to_parameters
            weights = [n for n in arguments(node)[1:3] if n is not None]
            if any(not isinstance(n, Node) or n.name not in parameters for n in weights):
                return "its weight is computed"
            if any(len(n.users) > 1 for n in weights if isinstance(n, Node)):
                return "its weight is shared with another layer"
            if node.target is aten.conv_transpose2d.input and _groups(node) > 1:
                return "a transposed convolution in groups has no integer form"
            return ""
        case aten.add.Tensor | aten.add_.Tensor:
            operands = _inputs(node, traced)
            same = len(operands) == 2 and shape_of(operands[0]) == shape_of(operands[1])
            return "" if same and not node.kwargs else "only two values of one shape are added as integers"
        case aten.mean.dim:
            rank = len(shape_of(arguments(node)[0]))
            over = sorted(d % rank for d in arguments(node)[1])
            return (
                "" if rank == 4 and over == [2, 3] else "only the average over a picture is taken on integers"
            )
        case aten.adaptive_avg_pool2d.default:
            return "" if list(arguments(node)[1]) in ([1, 1], [1]) else "its windows differ in size"
        case aten.avg_pool2d.default:
            return "" if len(arguments(node)) <= 4 else "it counts its padding in an unusual way"
        case target if target in TABLES:
            return _why_no_table(node, traced, quantized)
    return f"{operator_name(node)} has no integer form"


def _why_no_table(node: Node, traced: Traced, quantized: set[Node]) -> str:
    """Return why a function of one number is no table, empty if it is one (rule 4)."""
    source = node.all_input_nodes[0]
    while source.target in SHARING and source not in quantized:
        source = source.all_input_nodes[0]
    if source not in quantized:
        return "what it takes is float"
    last = node
    while len(last.users) == 1 and next(iter(last.users)).target in SHARING:
        last = next(iter(last.users))
    return "it gives the network's answer" if last in traced.outputs else ""


def _clamp_of(node: Node, exclude: Sequence[str]) -> Node | None:
    """Return the clamp that alone uses a node's value (rule 2)."""
    users = tuple(node.users)
    if len(users) == 1 and users[0].target in CLAMPS and not _excluded(users[0], exclude):
        return users[0]
    return None


def _excluded(node: Node, exclude: Sequence[str]) -> bool:
    return is_named(module_name(node), exclude)


def _layer(node: Node, traced: Traced) -> WeightedLayer:
    bias = arguments(node)[2] if len(arguments(node)) > 2 else None
    axis = 1 if node.target is aten.conv_transpose2d.input else 0
    weight = traced.tensor_name(arguments(node)[1]) or ""
    return WeightedLayer(value_name(arguments(node)[0]), weight, traced.tensor_name(bias), axis)


def _groups(node: Node) -> int:
    return arguments(node)[6] if len(arguments(node)) > 6 else 1


def _shared(traced: Traced, needed: set[Node]) -> tuple[tuple[str, ...], ...]:
    """Return the sets of one scale each (rule 3) that hold a value that some integer node needs."""
    nodes = [*traced.inputs, *traced.nodes]
    leader = {node: node for node in nodes}
    for node in traced.nodes:
        if node.target in SHARING:
            joined = {leader[n] for n in [node, *_inputs(node, traced)]}
            first = min(joined, key=nodes.index)
            leader = {n: first if old in joined else old for n, old in leader.items()}
    chosen = {leader[node] for node in needed}
    return tuple(
        tuple(value_name(n) for n in nodes if leader[n] is first) for first in nodes if first in chosen
    )
