"""Where a graph is quantised: which values carry a scale, which share one, and what stays float.

1. Convolutions, transposed ones too, linear layers, additions of two values or of one and a constant, averages over a
   picture, average pooling, products of two matrices and layer normalisations compute on integers: their inputs and
   their output are quantised.
2. A clamp (relu, relu6) that alone uses the value of such a node belongs to it: the clamp's value is quantised instead.
   So does a number that alone a product of matrices is multiplied with.
3. Pooling by maximum, reshapes, permutations, parts and concatenation compute on the integers as they are: their inputs
   and their output share one scale.
4. Functions of one number (gelu, silu, tanh, sigmoid, elu, ...), which are tables of 256 entries, prelu, softmax,
   averages over tokens and products of two values, element by element, are integers where what they take is quantised
   anyway: a layer in float keeps its exact activation. A mask on what a softmax takes stays float, and belongs to the
   softmax. The network's answers are float numbers.
5. Recurrent layers take int8 values and give int8 outputs and states, which share one scale; their gates and states in
   between are integers, too.
6. Embeddings give int8 rows: the table's own integers.
7. What follows from a length alone (`lengths`) needs no scales: a value whose tokens behind the length are hidden has
   the scale it had before.
8. Everything else stays float; so do the layers that the user excludes. Each is named in the notes.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
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
from armlet.models.recurrent import OPERATOR
from armlet.passes.base import is_named
from armlet.passes.quantize.joints import groups_of
from armlet.passes.quantize.lengths import (
    averaged,
    exits,
    hidden,
    is_summed,
    mask_of_flags,
    of_lengths,
)
from armlet.passes.quantize.operators import (
    CLAMPS,
    MATRIX_PRODUCTS,
    PRODUCTS,
    SHARING,
    TABLES,
    WEIGHTED,
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
class RecurrentWeights:
    """The weights of a recurrent layer that computes on integers, [D, gates × H, ...] with a scale for each row.

    Attributes:
        weight: name of the input's weight.
        recurrent_weight: name of the other.
        input: name of the node whose value it takes.
        results: names of the nodes that are its outputs and states.
    """

    weight: str
    recurrent_weight: str
    input: str
    results: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LookupTable:
    """An embedding whose rows are integers.

    Attributes:
        node: name of the node that gives them; their scale is that of the weight, with the zero point 0.
        weight: name of its weight, [n, width].
    """

    node: str
    weight: str


@dataclass(frozen=True, slots=True)
class Placement:
    """What of a graph is quantised.

    Attributes:
        shared: names of the nodes whose values are quantised, in sets of one scale each, in graph order.
        layers: convolutions and linear layers whose weights are quantised.
        recurrent: recurrent layers whose weights are.
        tables: embeddings whose weights are.
        notes: what stays float, and why.
    """

    shared: tuple[tuple[str, ...], ...]
    layers: tuple[WeightedLayer, ...]
    recurrent: tuple[RecurrentWeights, ...]
    tables: tuple[LookupTable, ...]
    notes: tuple[str, ...]

    @property
    def n_layers(self) -> int:
        """Layers with integer weights."""
        return len(self.layers) + len(self.recurrent) + len(self.tables)


def place(traced: Traced, exclude: Sequence[str]) -> Placement:
    """Decide which values of a graph are quantised.

    Args:
        traced: a graph with its batch normalisations folded.
        exclude: module names, or patterns with *, that stay float.
    """
    needed: set[Node] = set()
    fused: set[Node] = set()
    layers: list[WeightedLayer] = []
    recurrent: dict[Node, RecurrentWeights] = {}
    tables: list[LookupTable] = []
    notes: list[str] = []
    floats: set[str] = set()
    aside, varying = set(of_lengths(traced)), _varying(traced)
    for node in traced.nodes:
        is_value = node in varying and _computes(node)
        if not is_value or node in fused or node in aside or _belongs(node, traced):
            continue
        whole = _recurrence(node) or node  # which of its values a node takes of a recurrent layer is no layer
        if reason := _why_float(whole, traced, exclude, needed):
            notes.append(f"{layer_name(whole)} stays float: {reason}")
            floats.add(value_name(node))
            continue
        if whole is not node:
            needed |= {node, arguments(whole)[0]}
            recurrent[whole] = _recurrent_weights(whole, traced)
            continue
        if node.target is aten.embedding.default:
            needed.add(node)
            tables.append(LookupTable(value_name(node), traced.tensor_name(arguments(node)[0]) or ""))
            continue
        result = _clamp_of(node, exclude) or _scaled(node, exclude) or node
        fused.add(result)
        needed |= {result, *_inputs(node, traced)}
        if node.target in WEIGHTED:
            layers.append(_layer(node, traced))
    shared = _shared(traced, needed)
    notes += _float_lengths(traced, {name for names in shared for name in names} - floats)
    kept = tuple(dict.fromkeys(notes))
    return Placement(shared, tuple(layers), tuple(recurrent.values()), tuple(tables), kept)


def _float_lengths(traced: Traced, integers: set[str]) -> list[str]:
    """Return what of that which follows from a length alone stays float, as something reads it that is no integer."""
    nodes = of_lengths(traced)
    region, notes = set(nodes), []
    for node in (n for n in nodes if _computes(n) and n.target not in SHARING):
        for user, read in exits(node, region):
            scores = _scores_of(user, traced)
            result = user if scores is None else next(iter(user.users))
            known = hidden(user, traced) or averaged(user, traced) or (scores and mask_of_flags(read, traced))
            if not known or value_name(result) not in integers:
                notes.append(f"{layer_name(node)} stays float: {layer_name(result)}, which reads it, is")
                break
    return notes


def _belongs(node: Node, traced: Traced) -> bool:
    """Whether a node has no scale of its own, as it moves values or is a part of what another node does."""
    return _shares(node, traced) or _scores_of(node, traced) is not None or is_summed(node, traced)


def _shares(node: Node, traced: Traced) -> bool:
    """Whether a node's value has the scale of what it takes (rules 3 and 7)."""
    return node.target in SHARING or hidden(node, traced) is not None


def _computes(node: Node) -> bool:
    """Whether the node computes on values of the network, not on its sizes."""
    return hasattr(node.meta.get("val"), "shape")


def _varying(traced: Traced) -> set[Node]:
    """Return the nodes that compute on what the network takes; the others give constants, such as a causal mask."""
    found = set(traced.inputs)
    for node in traced.nodes:
        is_size = isinstance(node.meta.get("val"), torch.SymInt | int)
        if not is_size and not found.isdisjoint(node.all_input_nodes):
            found.add(node)
    return found


def _inputs(node: Node, traced: Traced) -> list[Node]:
    """Return the values of the network that a node computes on; of a softmax behind a mask, what is masked."""
    if node.target is aten.softmax.int and (scores := _scores_of(arguments(node)[0], traced)) is not None:
        return [scores]
    value = hidden(node, traced) or averaged(node, traced)
    if value is not None:
        return [value]
    return [n for n in node.all_input_nodes if traced.tensor_name(n) is None and _computes(n)]


def _why_float(node: Node, traced: Traced, exclude: Sequence[str], quantized: set[Node]) -> str:
    """Return why a node can't compute on integers, empty if it can; `quantized` are the values that are so far."""
    if _excluded(node, exclude):
        return "excluded"
    match node.target:
        case target if target in WEIGHTED:
            return _why_no_weights(node, traced, arguments(node)[1:3])
        case aten.embedding.default:
            return _why_no_weights(node, traced, arguments(node)[:1])
        case aten.add.Tensor | aten.add_.Tensor:
            return _why_no_sum(node, traced)
        case aten.mean.dim:
            rank = len(shape_of(arguments(node)[0]))
            over = sorted(d % rank for d in arguments(node)[1])
            if (rank, over) == (3, [1]):
                return _why_not_followed(node, traced, quantized)
            known = (rank, over) == (4, [2, 3])
            return "" if known else "only averages over a picture or over tokens are taken on integers"
        case aten.adaptive_avg_pool2d.default:
            return "" if list(arguments(node)[1]) in ([1, 1], [1]) else "its windows differ in size"
        case aten.avg_pool2d.default:
            return "" if len(arguments(node)) <= 4 else "it counts its padding in an unusual way"
        case aten.prelu.default if traced.tensor_name(arguments(node)[1]) is None:
            return "its slopes are computed"
        case target if target in (*TABLES, aten.prelu.default) or averaged(node, traced) is not None:
            return _why_not_followed(node, traced, quantized)
        case target if target is OPERATOR.default:
            return _why_no_recurrence(node, traced)
    return _why_no_attention(node, traced, quantized)


def _why_no_weights(node: Node, traced: Traced, weights: Sequence[Any]) -> str:
    """Return why a layer has no integer weights, empty if it has."""
    parameters = traced.program.graph_signature.inputs_to_parameters
    weights = [n for n in weights if n is not None]
    if any(not isinstance(n, Node) or n.name not in parameters for n in weights):
        return "its weight is computed"
    if any(len(n.users) > 1 for n in weights if isinstance(n, Node)):
        return "its weight is shared with another layer"
    if node.target is aten.conv_transpose2d.input and groups_of(node) > 1:
        return "a transposed convolution in groups has no integer form"
    return ""


def _why_no_recurrence(node: Node, traced: Traced) -> str:
    """Return why a recurrent layer does not compute on integers, empty if it does."""
    if arguments(node)[5] is not None:
        return "a projection, or a recurrent weight in two factors, has no integer form"
    return _why_no_weights(node, traced, arguments(node)[2:4])


def _why_no_sum(node: Node, traced: Traced) -> str:
    """Return why an addition is not one of integers, empty if it is: of two values, or of one and its constant."""
    operands, shapes = _inputs(node, traced), [shape_of(operand) for operand in node.all_input_nodes]
    same = len(shapes) == 2 and shapes[0][1:] == shapes[1][1:] and not node.kwargs
    if same and (len(operands) == 1 or (operands and shapes[0] == shapes[1])):
        return ""
    return "only values of one shape are added as integers"


def _why_no_attention(node: Node, traced: Traced, quantized: set[Node]) -> str:
    """Return why a part of attention, or what is like one, does not compute on integers, empty if it does."""
    match node.target:
        case target if target in MATRIX_PRODUCTS:
            shapes = [shape_of(operand) for operand in _inputs(node, traced)]
            same = len(shapes) == 2 and shapes[0][:-2] == shapes[1][:-2] and min(map(len, shapes)) > 1
            return (
                "" if same else "only products of two computed values, of as many matrices each, are integers"
            )
        case aten.layer_norm.default:
            weights = node.all_input_nodes[1:]
            if len(arguments(node)[1]) > 1 or any(traced.tensor_name(n) is None for n in weights):
                return "only a normalisation over the last dimension is computed on integers"
            return "it gives the network's answer" if _answers(node, traced) else ""
        case aten.softmax.int if arguments(node)[1] not in (-1, len(shape_of(node)) - 1):
            return "only a softmax over the last dimension is computed on integers"
        case aten.softmax.int:
            return _why_not_followed(node, traced, quantized)
        case target if target in PRODUCTS and len(_inputs(node, traced)) == len(node.all_input_nodes) == 2:
            return _why_no_product(node, traced, quantized)
    return f"{operator_name(node)} has no integer form"


def _why_no_product(node: Node, traced: Traced, quantized: set[Node]) -> str:
    """Return why an elementwise product of two values is not one of integers, empty if it is."""
    first, second = (shape_of(operand) for operand in _inputs(node, traced))
    orders = (first, second), (second, first)
    by_channel = any(len(values) == 4 and gate == (*values[:2], 1, 1) for values, gate in orders)
    if first != second and not by_channel:
        return "only two values of one shape, or a number for each channel, are multiplied as integers"
    return _why_not_followed(node, traced, quantized)


def _why_not_followed(node: Node, traced: Traced, quantized: set[Node]) -> str:
    """Return why a node does not go on with integers that are there anyway, empty if it does (rule 4)."""
    for source in _inputs(node, traced):
        while _shares(source, traced) and source not in quantized:
            source = _inputs(source, traced)[0]
        if source not in quantized:
            return "what it takes is float"
    return "it gives the network's answer" if _answers(node, traced) else ""


def _scores_of(node: Node, traced: Traced) -> Node | None:
    """Return what a mask is added to, for the softmax that alone reads the sum; None if it is something else."""
    users = tuple(node.users)
    if node.target is not aten.add.Tensor or node.kwargs or [u.target for u in users] != [aten.softmax.int]:
        return None
    shape = list(shape_of(node))
    scores = [n for n in _inputs(node, traced) if list(shape_of(n)) == shape and not mask_of_flags(n, traced)]
    if len(scores) > 1:  # a mask of its own for each head
        scores = [n for n in scores if _is_product(n)]
    masks = [n for n in node.all_input_nodes if n not in scores]
    if len(scores) != 1 or len(masks) != 1:
        return None
    rest = list(shape_of(masks[0]))
    rest = rest[1:] if len(rest) == len(shape) else rest  # the samples'
    while rest and rest[0] == 1:
        del rest[0]
    return scores[0] if rest and rest == shape[len(shape) - len(rest) :] else None


def _is_product(node: Node) -> bool:
    """Whether a node gives a product of matrices, maybe times a number."""
    source = node if node.target in MATRIX_PRODUCTS else arguments(node)[0] if node.args else None
    return isinstance(source, Node) and (source is node or _scaled(source, ()) is node)


def _answers(node: Node, traced: Traced) -> bool:
    """Whether a node's value, moved at most, is what the network gives."""
    while len(node.users) == 1 and _shares(next(iter(node.users)), traced):
        node = next(iter(node.users))
    return node in traced.outputs


def _recurrence(node: Node) -> Node | None:
    """Return the recurrent layer that a node takes one of the results of."""
    source = arguments(node)[0] if node.target is operator.getitem else None
    return source if isinstance(source, Node) and source.target is OPERATOR.default else None


def _recurrent_weights(node: Node, traced: Traced) -> RecurrentWeights:
    weight, recurrent_weight = (traced.tensor_name(n) or "" for n in arguments(node)[2:4])
    results = tuple(map(value_name, node.users))
    return RecurrentWeights(weight, recurrent_weight, value_name(arguments(node)[0]), results)


def _scaled(node: Node, exclude: Sequence[str]) -> Node | None:
    """Return the multiplication with a number that alone uses a product of matrices (rule 2)."""
    users = tuple(node.users)
    if node.target not in MATRIX_PRODUCTS or len(users) != 1 or _excluded(users[0], exclude):
        return None
    number = arguments(users[0])[-1]
    known = users[0].target in (*PRODUCTS, aten.div.Tensor) and isinstance(number, int | float) and number > 0
    return users[0] if known else None


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


def _shared(traced: Traced, needed: set[Node]) -> tuple[tuple[str, ...], ...]:
    """Return the sets of one scale each (rule 3) that hold a value that some integer node needs."""
    nodes = [*traced.inputs, *traced.nodes]
    leader = {node: node for node in nodes}
    for node in traced.nodes:
        whole = _recurrence(node)
        if _shares(node, traced) or whole is not None:
            together = list(whole.users) if whole is not None else [node, *_inputs(node, traced)]
            joined = {leader[n] for n in together}
            first = min(joined, key=nodes.index)
            leader = {n: first if old in joined else old for n, old in leader.items()}
    chosen = {leader[node] for node in needed}
    return tuple(
        tuple(value_name(n) for n in nodes if leader[n] is first) for first in nodes if first in chosen
    )
