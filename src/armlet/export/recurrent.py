"""The operators `armlet::recurrent` and `armlet::recurrent_step` as one ONNX LSTM, GRU or RNN node each.

A projection has no ONNX form of its own. With m the output before it, the recurrent product is U (P m) = (U P) m: the
node's recurrent weight is the product of two constants, and its outputs are multiplied with P behind it; not so of a
factorised layer, which answers with m.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxscript
from onnxscript import opset18 as op
from torch import nn

from armlet.export.dynamic import initializer
from armlet.models.recurrent import GATES, OPERATOR, STEP_OPERATOR, Recurrent

_ONNX_NAMES = {"lstm": "LSTM", "gru": "GRU", "rnn_tanh": "RNN", "rnn_relu": "RNN"}


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return the table of translations that torch's ONNX exporter is given."""
    return {OPERATOR.default: _recurrent, STEP_OPERATOR.default: _step}


def keep_factors(graph: ir.Graph, module: nn.Module) -> None:
    """Put the two factors of a recurrent weight back where the exporter multiplied them: they are the smaller form."""
    layers = dict(module.named_modules())
    for node in [n for n in graph if n.op_type in _ONNX_NAMES.values()]:
        weight, product = node.inputs[1], node.inputs[2]
        name = (weight.name or "").removesuffix(".weight") if weight is not None else ""
        layer = layers.get(name)
        if not isinstance(layer, Recurrent) or product is None:
            continue
        parts = [p for p in ("projection_weight", "recurrent_factor_weight") if getattr(layer, p) is not None]
        if not parts:
            continue
        factors = [
            _initializer(graph, f"{name}.{part}", getattr(layer, part).detach().numpy())
            for part in ("recurrent_weight", *parts)
        ]
        multiply = ir.node("MatMul", factors, name=f"{name}.recurrent_product")
        result = multiply.outputs[0]
        result.name, result.type, result.shape = f"{name}.recurrent_product", product.type, product.shape
        graph.insert_before(node, multiply)
        node.replace_input_with(2, result)


def _initializer(graph: ir.Graph, name: str, values: np.ndarray) -> ir.Value:
    if name in graph.initializers:
        return graph.initializers[name]
    return initializer(graph, name, values)


def _recurrent(  # noqa: PLR0913 - called with the operator's arguments
    inputs: onnxscript.FLOAT,
    length: onnxscript.INT32 | None,
    weight: onnxscript.FLOAT,
    recurrent_weight: onnxscript.FLOAT,
    bias: onnxscript.FLOAT,
    projection_weight: onnxscript.FLOAT | None,
    cell: str,
    direction: str,
    projects: bool,
) -> tuple[onnxscript.FLOAT, onnxscript.FLOAT]:
    attributes = _attributes(cell, weight) | {"direction": direction}
    if projection_weight is not None:
        recurrent_weight = op.MatMul(recurrent_weight, projection_weight)
    frames = op.Transpose(inputs, perm=[1, 0, 2])
    found = getattr(op, _ONNX_NAMES[cell])(frames, weight, recurrent_weight, bias, length, **attributes)
    # [T, D, N, H] -> [N, T, D × H] and [D, N, H] -> [N, D × H]
    outputs = op.Reshape(op.Transpose(found[0], perm=[2, 0, 1, 3]), [0, 0, -1])
    states = op.Reshape(op.Transpose(found[1], perm=[1, 0, 2]), [0, -1])
    if projection_weight is not None and projects:
        across = op.Transpose(op.Squeeze(projection_weight, [0]), perm=[1, 0])
        outputs, states = op.MatMul(outputs, across), op.MatMul(states, across)
    return outputs, states


def _step(  # noqa: PLR0913 - called with the operator's arguments
    inputs: onnxscript.FLOAT,
    state: onnxscript.FLOAT,
    weight: onnxscript.FLOAT,
    recurrent_weight: onnxscript.FLOAT,
    bias: onnxscript.FLOAT,
    projection_weight: onnxscript.FLOAT | None,
    cell: str,
    projects: bool,
) -> tuple[onnxscript.FLOAT, onnxscript.FLOAT]:
    attributes = _attributes(cell, weight)
    if projection_weight is not None:
        recurrent_weight = op.MatMul(recurrent_weight, projection_weight)
    hidden, frames = attributes["hidden_size"], op.Transpose(inputs, perm=[1, 0, 2])
    states = [op.Unsqueeze(state, [0])]
    if cell == "lstm":
        states = [op.Slice(states[0], [start], [start + hidden], [2]) for start in (0, hidden)]
    found = getattr(op, _ONNX_NAMES[cell])(
        frames, weight, recurrent_weight, bias, None, *states, **attributes
    )
    # [T, 1, N, H] -> [N, T, H] and [1, N, H] -> [N, H]
    outputs = op.Reshape(op.Transpose(found[0], perm=[2, 0, 1, 3]), [0, 0, -1])
    after = op.Concat(found[1], found[2], axis=2) if cell == "lstm" else found[1]
    if projection_weight is not None and projects:
        outputs = op.MatMul(outputs, op.Transpose(op.Squeeze(projection_weight, [0]), perm=[1, 0]))
    return outputs, op.Squeeze(after, [0])


def _attributes(cell: str, weight: onnxscript.FLOAT) -> dict[str, Any]:
    """Return the attributes of a node that do not depend on its direction."""
    attributes: dict[str, Any] = {"hidden_size": weight.shape[1] // GATES[cell]}
    if cell == "gru":
        attributes["linear_before_reset"] = 1
    if cell == "rnn_relu":
        attributes["activations"] = ["Relu"] * weight.shape[0]
    return attributes
