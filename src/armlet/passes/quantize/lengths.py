"""What of a graph depends on a length, and has an integer form in the compiled program (`compile.quantized.lengths`).

Flags are 1.0 for a token that starts before the length and 0.0 for one behind it: clamp(length - starts, 0, 1), with
whole numbers for `starts`. Of integers are a value times the flags of its tokens, a sum over tokens that is divided by
the number of flags or by the length, and masks of a softmax that follow from the flags.
"""

from __future__ import annotations

from collections.abc import Iterator, Set

import torch
from torch.fx import Node

from armlet.analysis.graph import Traced, arguments, aten, shape_of
from armlet.passes.quantize.operators import PRODUCTS

_MOVES = (
    aten.unsqueeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.view.default,
    aten.reshape.default,
    aten.flatten.using_ints,
    aten.contiguous.default,
    aten.clone.default,
)
_BY_ELEMENT = (
    aten.add.Tensor,
    aten.sub.Tensor,
    aten.rsub.Scalar,
    aten.mul.Tensor,
    aten.div.Tensor,
    aten.neg.default,
    aten.clamp.default,
)


def hidden(node: Node, traced: Traced) -> Node | None:
    """Return the value [N, ..., T, C] that a node multiplies with the flags [N, ..., T, 1] of its tokens, or None."""
    operands = node.all_input_nodes
    if node.target not in PRODUCTS or len(operands) != 2:
        return None
    for value, by in (operands, operands[::-1]):
        if _are_flags(by, traced) and shape_of(by) == (*shape_of(value)[:-1], 1):
            return value
    return None


def averaged(node: Node, traced: Traced) -> Node | None:
    """Return the value [N, T, C] that a node divides the sum of over its tokens by a number from a length, or None."""
    operands = node.all_input_nodes
    if node.target is not aten.div.Tensor or len(operands) != 2 or node.kwargs:
        return None
    total, number = operands
    if not _is_sum(total, over=1) or len(total.users) != 1 or not _is_number(number, traced):
        return None
    return total.all_input_nodes[0]


def is_summed(node: Node, traced: Traced) -> bool:
    """Whether a node is the sum of a mean over tokens."""
    return node.target is aten.sum.dim_IntList and any(
        averaged(user, traced) is not None and arguments(user)[0] is node for user in node.users
    )


def mask_of_flags(node: Node, traced: Traced) -> bool:
    """Whether a mask follows from flags and constants, element by element."""
    if _are_flags(node, traced):
        return True
    computed = [n for n in node.all_input_nodes if traced.tensor_name(n) is None]
    return (
        node.target in (*_MOVES, *_BY_ELEMENT, aten.slice.Tensor)
        and bool(computed)
        and all(mask_of_flags(n, traced) for n in computed)
    )


def of_lengths(traced: Traced) -> tuple[Node, ...]:
    """Return the nodes that depend on nothing but whole numbers of one for each sample, in graph order.

    What has weights, such as the embedding of a category, is a layer like any other, and so is what follows it.
    """
    parameters = traced.program.graph_signature.inputs_to_parameters
    found: dict[Node, None] = dict.fromkeys(
        node
        for node in traced.inputs
        if len(shape_of(node)) == 1 and not node.meta["val"].is_floating_point()
    )
    lengths = set(found)
    for node in traced.nodes:
        computed = [n for n in node.all_input_nodes if traced.tensor_name(n) is None]
        weighted = any(n.name in parameters for n in node.all_input_nodes)
        if computed and not weighted and all(n in found for n in computed):
            found[node] = None
    return tuple(node for node in found if node not in lengths)


def exits(node: Node, region: Set[Node]) -> Iterator[tuple[Node, Node]]:
    """Give each node outside of a region that depends on a node of it through others, and what it reads there."""
    for user in node.users:
        if user in region:
            yield from exits(user, region)
        elif user.op == "call_function":
            yield user, node


def _unmoved(node: Node) -> Node:
    """Return what a node is under another shape."""
    while node.target in _MOVES or (
        node.target is aten.slice.Tensor and shape_of(node) == _source_shape(node)
    ):
        node = node.all_input_nodes[0]
    return node


def _source_shape(node: Node) -> tuple[int | torch.SymInt, ...]:
    return shape_of(node.all_input_nodes[0])


def _are_flags(node: Node, traced: Traced) -> bool:
    node = _unmoved(node)
    if node.target is not aten.clamp.default or tuple(arguments(node)[1:]) != (0, 1):
        return False
    before = arguments(node)[0]
    if before.target is not aten.sub.Tensor or before.kwargs:
        return False
    length, starts = arguments(before)
    name = traced.tensor_name(starts)
    if name is None or not _is_length(length):
        return False
    program = traced.program
    values = program.state_dict[name] if name in program.state_dict else program.constants[name]
    return bool((values == values.round()).all())


def _is_length(node: object) -> bool:
    """Whether a node is one whole number for each sample, as float numbers."""
    if not isinstance(node, Node):
        return False
    node = _unmoved(node)
    if node.target is not aten.to.dtype or arguments(node)[1] is not torch.float32:
        return False
    source = _unmoved(node.all_input_nodes[0])
    return source.op == "placeholder" and len(shape_of(source)) == 1


def _is_number(node: Node, traced: Traced) -> bool:
    """Whether a node is a length, or how many flags are 1, at least 1 in both cases."""
    node = _unmoved(node)
    if node.target is aten.clamp.default:
        low, high = (*arguments(node)[1:], None, None)[:2]
        if high is not None or (low or 0) > 1:
            return False
        node = _unmoved(arguments(node)[0])
    if _is_length(node):
        return True
    return _is_sum(node, over=None) and _are_flags(node.all_input_nodes[0], traced)


def _is_sum(node: Node, over: int | None) -> bool:
    """Whether a node sums up [N, T, C] over this dimension, or, where it is None, whatever there is of a sample."""
    if node.target is not aten.sum.dim_IntList:
        return False
    rank = len(_source_shape(node))
    dims = sorted(d % rank for d in arguments(node)[1])
    if over is None:
        return dims == list(range(1, rank)) or all(n == 1 for n in shape_of(node)[1:])
    return rank == 3 and dims == [over]
