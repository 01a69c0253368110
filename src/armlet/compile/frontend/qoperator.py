"""Rewrites ONNX Runtime's QOperator format to the QDQ form: QLinearX is DequantizeLinear, X and QuantizeLinear.

So ONNX defines them. The same is done with what ONNX Runtime's optimiser makes of the dynamic form
(DynamicQuantizeMatMul, MatMulIntegerToFloat). All that comes afterwards knows the standard's operators alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from armlet.compile.frontend.reader import RefusedNode, attributes
from armlet.compile.frontend.values import Array

if TYPE_CHECKING:
    import onnx

CONTRIBUTED = "com.microsoft"
"""The domain of ONNX Runtime's own operators."""


NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class _Form:
    """Where a QLinear operator has its values, each before its scale and zero point, and what computes between them.

    Attributes:
        op: the standard's operator on real numbers.
        operands: positions of the operands; with a negative last, every third input from the first on.
        result: position of the result's scale.
        bias: position of an int32 bias, whose scale is the product of those of the operands.
    """

    op: str
    operands: tuple[int, ...]
    result: int
    bias: int | None = None


FORMS: Mapping[str, _Form] = MappingProxyType(
    {
        "QLinearConv": _Form("Conv", (0, 3), 6, 8),
        "QLinearMatMul": _Form("MatMul", (0, 3), 6),
        "QGemm": _Form("Gemm", (0, 3), 7, 6),
        "QLinearAdd": _Form("Add", (0, 3), 6),
        "QLinearMul": _Form("Mul", (0, 3), 6),
        "QLinearConcat": _Form("Concat", (2, -1), 0),
        "QLinearAveragePool": _Form("AveragePool", (0,), 3),
        "QLinearGlobalAveragePool": _Form("GlobalAveragePool", (0,), 3),
        "QLinearReduceMean": _Form("ReduceMean", (0,), 3),
        "QLinearSigmoid": _Form("Sigmoid", (0,), 3),
        "QLinearLeakyRelu": _Form("LeakyRelu", (0,), 3),
        "QLinearSoftmax": _Form("Softmax", (0,), 3),
    }
)
"""The QLinear operators that are read."""
DYNAMIC = ("DynamicQuantizeMatMul", "MatMulIntegerToFloat")
"""ONNX Runtime's joined operators of the dynamic form."""


@dataclass(slots=True)
class _Rewriter:
    """What a node becomes.

    Attributes:
        constants: values known at compile time.
        opset: version of the standard's operators.
        nodes: in place of the node.
        initializers: new constants of those.
    """

    constants: Mapping[str, Array]
    opset: int
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: dict[str, Array] = field(default_factory=dict)

    def add(
        self, op: str, inputs: list[str], output: str, name: str = "", given: Mapping[str, Any] = NOTHING
    ) -> str:
        """Append a node of the standard's with one output and the given attributes; return the output."""
        import onnx

        self.nodes.append(onnx.helper.make_node(op, inputs, [output], name=name or output, **given))
        return output

    def constant(self, name: str, value: Array) -> str:
        """Add a constant, and return its name."""
        self.initializers[name] = value
        return name

    def known(self, name: str, what: str) -> Array:
        """Return a constant of the file's; refuse what is none."""
        if name not in self.constants:
            raise RefusedNode(f"its {what} is not a constant")
        return self.constants[name]


def to_qdq(model: onnx.ModelProto, opset: int) -> dict[str, str]:
    """Rewrite a model in place; return why a node of this kind can't be, by the name of its first output.

    Args:
        model: of an ONNX file, its types not inferred yet.
        opset: version of the standard's operators.
    """
    import onnx

    graph, refused = model.graph, {}
    constants = {i.name: onnx.numpy_helper.to_array(i) for i in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        state = _Rewriter(constants, opset)
        try:
            _rewrite(node, state)
        except RefusedNode as reason:
            refused[node.output[0]] = str(reason)
            state = _Rewriter(constants, opset)
        nodes += state.nodes or [node]
        graph.initializer.extend(onnx.numpy_helper.from_array(v, n) for n, v in state.initializers.items())
    del graph.node[:]
    graph.node.extend(nodes)
    return refused


def _rewrite(node: onnx.NodeProto, state: _Rewriter) -> None:
    """Write what a node is; nothing for one that stays as it is."""
    if node.domain == CONTRIBUTED and node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        state.add(node.op_type, list(node.input), node.output[0], node.name, attributes(node))
    elif node.domain == CONTRIBUTED and node.op_type in DYNAMIC:
        _rewrite_dynamic(node, state)
    elif node.domain in ("", CONTRIBUTED) and (form := FORMS.get(node.op_type)):
        _rewrite_static(node, form, state)


def _rewrite_static(node: onnx.NodeProto, form: _Form, state: _Rewriter) -> None:
    given, output = attributes(node), node.output[0]
    if given.pop("channels_last", 0):
        raise RefusedNode("its channels are the last dimension (channels_last = 1)")
    if given.pop("opset", state.opset) < 13 and given.get("axis", 1) != -1:
        raise RefusedNode("it is the softmax over several dimensions of opsets below 13")
    inputs = [_dequantized(node, position, given, state) for position in _operands(node, form)]
    if form.bias is not None and _given(node, form.bias):
        inputs.append(_bias(node, form.bias, state))
    if form.op == "ReduceMean" and state.opset >= 18 and "axes" in given:
        axes = np.array(given.pop("axes"), np.int64)
        inputs.append(state.constant(f"{output}:axes", axes))
    if not _given(node, form.result):  # QGemm alone may leave out its result's scale
        state.add(form.op, inputs, output, node.name, given)
        return
    zero = _given(node, form.result + 1)
    if zero is None:
        raise RefusedNode("its result has no zero point")
    real = state.add(form.op, inputs, f"{output}:real", node.name, given)
    state.add("QuantizeLinear", [real, node.input[form.result], zero], output)


def _operands(node: onnx.NodeProto, form: _Form) -> Iterator[int]:
    if form.operands[-1] < 0:
        return iter(range(form.operands[0], len(node.input), 3))
    return iter(form.operands)


def _given(node: onnx.NodeProto, position: int) -> str | None:
    """Return the name of an input, None if it is left out."""
    return (node.input[position] if position < len(node.input) else None) or None


def _dequantized(node: onnx.NodeProto, position: int, given: Mapping[str, Any], state: _Rewriter) -> str:
    """Write the real numbers of the operand at a position, and return their name."""
    parts = [_given(node, p) or "" for p in range(position, position + 3)]
    scale, along = state.known(parts[1], f"input {position + 1}, a scale,"), {}
    if scale.size > 1:  # of a weight's output channels
        by_row = node.op_type == "QLinearConv" or given.get("transB", 0)
        along = {"axis": 0 if by_row else -1}
    inputs = parts if parts[2] else parts[:2]
    return state.add("DequantizeLinear", inputs, f"{node.output[0]}:operand{position}", given=along)


def _bias(node: onnx.NodeProto, position: int, state: _Rewriter) -> str:
    """Write the real numbers of an int32 bias, and return their name."""
    factors = [state.known(node.input[p], f"input {p}, a scale,").reshape(-1) for p in (1, 4)]
    scale = factors[0] * factors[1]
    name = state.constant(f"{node.output[0]}:bias_scale", scale if scale.size > 1 else scale[0])
    along = {"axis": 0} if scale.size > 1 else {}
    return state.add("DequantizeLinear", [node.input[position], name], f"{node.output[0]}:bias", given=along)


def _rewrite_dynamic(node: onnx.NodeProto, state: _Rewriter) -> None:
    """Write the dynamic form of a product with a weight, and of its bias."""
    import onnx

    output = node.output[0]
    if node.op_type == "DynamicQuantizeMatMul":
        integers, scale, zero = (f"{output}:{part}" for part in ("integers", "scale", "zero"))
        quantize = onnx.helper.make_node(
            "DynamicQuantizeLinear", [node.input[0]], [integers, scale, zero], name=f"{output}:quantize"
        )
        state.nodes.append(quantize)
        of_weight, weight_zero, bias = node.input[2], _given(node, 3), _given(node, 4)
    else:
        integers, scale, zero = node.input[0], node.input[2], _given(node, 4) or ""
        of_weight, weight_zero, bias = node.input[3], _given(node, 5), _given(node, 6)
    operands = [integers, node.input[1], zero, *([weight_zero] if weight_zero else [])]
    total = state.add("MatMulInteger", operands, f"{output}:sums", node.name)
    total = state.add("Cast", [total], f"{output}:real", given={"to": onnx.TensorProto.FLOAT})
    factor = state.add("Mul", [scale, of_weight], f"{output}:factor")
    product = state.add("Mul", [total, factor], f"{output}:product" if bias else output)
    if bias:
        state.add("Add", [product, bias], output)
