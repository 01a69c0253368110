"""Several ONNX nodes that are one .tflite operator: x·W + b, and GELU as exporters write it for opset < 20."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import onnx

from armlet.export.litert.flatbuffer import Array


def joined(
    nodes: Sequence[onnx.NodeProto], constants: Mapping[str, Array], outputs: Sequence[str]
) -> list[onnx.NodeProto]:
    """Return the nodes with each pattern joined into one node.

    Args:
        nodes: in order of execution.
        constants: values of the constants, by name.
        outputs: names of the graph's outputs, which must stay.
    """
    graph = _Nodes(nodes, constants, outputs)
    found: dict[str, onnx.NodeProto] = {}
    gone: set[str] = set()
    for node in nodes:
        for pattern in (_dense, _gelu):
            if match := pattern(node, graph):
                new, old = match
                found[new.output[0]] = new
                gone |= set(old)
    kept = [found.get(node.output[0], node) for node in nodes]
    return [node for node in kept if node.output[0] in found or node.output[0] not in gone]


class _Nodes:
    """Who makes and who uses each value."""

    def __init__(
        self, nodes: Sequence[onnx.NodeProto], constants: Mapping[str, Array], outputs: Sequence[str]
    ) -> None:
        self.constants = constants
        self._maker = {node.output[0]: node for node in nodes}
        self._user = {name: node for node in nodes for name in node.input}
        self._n_users = Counter([*(name for node in nodes for name in node.input), *outputs])

    def user(self, node: onnx.NodeProto, operator: str) -> onnx.NodeProto | None:
        """Return the node that alone uses `node`'s value, if it is an `operator`."""
        user = self._user.get(node.output[0])
        alone = self._n_users[node.output[0]] == 1
        return user if user is not None and alone and user.op_type == operator else None

    def maker(self, name: str) -> onnx.NodeProto | None:
        """Return the node that makes a value used once."""
        return self._maker.get(name) if self._n_users[name] == 1 else None

    def is_number(self, name: str, value: float) -> bool:
        """Whether a value is the constant `value`, up to float32's rounding."""
        found = self.constants.get(name)
        return (
            found is not None and found.size == 1 and math.isclose(float(found.item()), value, rel_tol=1e-6)
        )


Match = tuple[onnx.NodeProto, list[str]]  # the new node, and the values that no longer exist


def _dense(node: onnx.NodeProto, graph: _Nodes) -> Match | None:
    """MatMul(x, W) + b, with b a constant vector."""
    if node.op_type != "MatMul" or node.input[1] not in graph.constants:
        return None
    add = graph.user(node, "Add")
    if add is None:
        return None
    bias = _other(add, node.output[0])
    n_outputs = graph.constants[node.input[1]].shape[-1]
    if bias not in graph.constants or graph.constants[bias].shape != (n_outputs,):
        return None
    joined = onnx.helper.make_node(
        "Gemm", [*node.input, bias], [add.output[0]], name=node.name or node.output[0]
    )
    return joined, [node.output[0]]


def _gelu(erf: onnx.NodeProto, graph: _Nodes) -> Match | None:
    """0.5 · x · (1 + erf(x / √2)), with the two products in either order."""
    if erf.op_type != "Erf" or (scaled := graph.maker(erf.input[0])) is None:
        return None
    divided = scaled.op_type == "Div" and graph.is_number(scaled.input[1], math.sqrt(2))
    if not divided and not (scaled.op_type == "Mul" and graph.is_number(scaled.input[1], math.sqrt(0.5))):
        return None
    x = scaled.input[0]
    add = graph.user(erf, "Add")
    if add is None or not graph.is_number(_other(add, erf.output[0]), 1.0):
        return None
    first = graph.user(add, "Mul")
    second = graph.user(first, "Mul") if first is not None else None
    if first is None or second is None:
        return None
    factors = [_other(first, add.output[0]), _other(second, first.output[0])]
    if x not in factors or not graph.is_number(factors[1 - factors.index(x)], 0.5):
        return None
    old = [node.output[0] for node in (scaled, erf, add, first)]
    return onnx.helper.make_node("Gelu", [x], [second.output[0]], name=second.name), old


def _other(node: onnx.NodeProto, name: str) -> str:
    """Return the operand of a node of two that is not `name`."""
    return str(node.input[1] if node.input[0] == name else node.input[0])
