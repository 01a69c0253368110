"""ONNX LSTM, GRU and RNN nodes to one layer each; what a layer can't express exactly is refused."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import numpy as np

from armlet.compile.frontend.graph import Layer, Part, Recurrent, Reshape
from armlet.compile.frontend.reader import Reader, RefusedNode, attributes
from armlet.compile.frontend.values import Array, Constant, Tensor

if TYPE_CHECKING:
    import onnx

_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
_ACTIVATIONS = {
    "LSTM": ("sigmoid", "tanh", "tanh"),
    "GRU": ("sigmoid", "tanh"),
    "RNN": ("tanh",),
}


def convert_recurrent(node: onnx.NodeProto, name: str, reader: Reader) -> None:
    """Read one recurrent node with a batch of one."""
    given = attributes(node)
    direction = given.get("direction", b"forward").decode()
    cell = _cell(node, given, 2 if direction == "bidirectional" else 1)
    if given.get("layout", 0):
        raise RefusedNode("its batch comes first (layout 1)")
    if len(reader.tensor(node.input[0]).shape) != 3 or reader.tensor(node.input[0]).shape[1] != 1:
        raise RefusedNode(
            f"its input has the shape {list(reader.tensor(node.input[0]).shape)}, not [T, 1, I]"
        )
    if len(node.input) > 7 and node.input[7]:
        raise RefusedNode("it has peepholes")
    weight = _real(node, 1, reader)
    bias, recurrent_bias = _biases(node, weight, reader, cell)
    further = [(word, node.input[i]) for word, i in (("length", 4), ("h", 5), ("c", 6)) if _has(node, i)]
    further = [(word, value) for word, value in further if not _says_nothing(word, value, node, reader)]
    if word := next((word for word, value in further if value in reader.constants), ""):
        raise RefusedNode(f"its {'length' if word == 'length' else 'initial state'} is a constant")
    outputs = [(part, value) for part, value in zip("yhc", node.output, strict=False) if value in reader.used]
    op = Recurrent(
        cell=cell,
        direction=direction,
        weight=weight,
        recurrent=_recurrent(node, reader),
        bias=bias,
        recurrent_bias=recurrent_bias,
        given=tuple(word for word, _ in further),
        parts=tuple(part for part, _ in outputs),
        quantized=_quantized(node, reader),
    )
    inputs = (node.input[0], *(value for _, value in further))
    _append(node, name, op, inputs, [value for _, value in outputs], reader)


def _append(
    node: onnx.NodeProto,
    name: str,
    op: Recurrent,
    inputs: tuple[str, ...],
    outputs: list[str],
    reader: Reader,
) -> None:
    """Append the layer; several results lie in one value, and are parts of it."""
    if len(outputs) == 1:
        reader.tensor(outputs[0])
        reader.layers.append(Layer(name, node.op_type, op, inputs, outputs[0]))
        return
    whole = f"{name}:all"
    sizes = [prod(reader.tensor(value).shape) for value in outputs]
    reader.tensors[whole] = Tensor((sum(sizes),), "float32")
    reader.layers.append(Layer(name, node.op_type, op, inputs, whole))
    for number, (value, size) in enumerate(zip(outputs, sizes, strict=True)):
        flat = f"{value}:flat"
        reader.tensors[flat] = Tensor((size,), "float32")
        reader.layers.append(Layer(name, node.op_type, Part(sum(sizes[:number])), (whole,), flat))
        reader.layers.append(Layer(name, node.op_type, Reshape(), (flat,), value))


def _cell(node: onnx.NodeProto, given: dict[str, object], directions: int) -> str:
    kind = node.op_type
    if given.get("clip") is not None or given.get("input_forget", 0):
        raise RefusedNode("it clips, or couples its gates")
    if kind == "GRU" and not given.get("linear_before_reset", 0):
        raise RefusedNode("it applies the reset gate before the product (linear_before_reset = 0)")
    named = given.get("activations")
    found = (
        # The standard's own default for RNN names one more than one direction needs.
        tuple(a.decode().lower() for a in named)[: directions * len(_ACTIVATIONS[kind])]
        if isinstance(named, list)
        else _ACTIVATIONS[kind] * directions
    )
    if kind == "RNN" and found == ("relu",) * directions:
        return "rnn_relu"
    if found != _ACTIVATIONS[kind] * directions:
        raise RefusedNode(f"its activations are {', '.join(found)}")
    return "rnn_tanh" if kind == "RNN" else kind.lower()


def _has(node: onnx.NodeProto, position: int) -> bool:
    return len(node.input) > position and bool(node.input[position])


def _says_nothing(word: str, value: str, node: onnx.NodeProto, reader: Reader) -> bool:
    """Whether an input is what is taken without it: a state of zeros, or the whole length."""
    if value not in reader.constants:
        return False
    values = reader.constants[value].real()
    if word == "length":
        return bool((values == reader.tensor(node.input[0]).shape[0]).all())
    return not values.any()


def _real(node: onnx.NodeProto, position: int, reader: Reader) -> Array:
    constant = reader.constant(node, position)
    if constant is None:
        raise RefusedNode(f"its input {position} is missing")
    return constant.real().astype(np.float32)


def _recurrent(node: onnx.NodeProto, reader: Reader) -> tuple[Array, ...]:
    """Return the recurrent weight, as two factors where the file has two and they are smaller."""
    weight, factors = _real(node, 2, reader), reader.factors.get(node.input[2])
    if factors is not None:
        left, right = (factor.real().astype(np.float32) for factor in factors)
        if left.ndim == right.ndim == 3 and left.size + right.size < weight.size:
            return left, right
    return (weight,)


def _quantized(node: onnx.NodeProto, reader: Reader) -> tuple[Constant, Constant] | None:
    """Return both weights as int8 numbers with a scale for each row, None where they have another form."""
    found = []
    for position in (1, 2):
        constant = reader.constant(node, position)
        if constant is None or constant.scale is None or constant.values.dtype != np.int8:
            return None
        by_row = constant.scale.size == 1 or (constant.axis == 1 and constant.values.ndim == 3)
        if not by_row or np.any(constant.zero):
            return None
        found.append(constant)
    return found[0], found[1]


def _biases(node: onnx.NodeProto, weight: Array, reader: Reader, cell: str) -> tuple[Array, Array]:
    """Return the bias of the input's share and that of the recurrent product, [D, gates × H] each.

    Only a gru's proposed state multiplies the recurrent product's bias; every other is added to the first.
    """
    directions, rows = weight.shape[:2]
    bias = np.zeros((directions, 2 * rows), np.float32) if not _has(node, 3) else _real(node, 3, reader)
    inner, outer = bias[:, :rows].copy(), bias[:, rows:].copy()
    hidden = rows // _GATES[node.op_type]
    apart = np.zeros(rows, bool)
    if cell == "gru":
        apart[2 * hidden :] = True
    inner[:, ~apart] += outer[:, ~apart]
    outer[:, ~apart] = 0
    return inner, outer
