"""Reads an ONNX file into armlet's normal form, or says in one error everything that it can't read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from armlet.compile.frontend.constants import dequantized, moved
from armlet.compile.frontend.convert import CONVERTERS
from armlet.compile.frontend.dynamic import read_dynamic
from armlet.compile.frontend.evaluate import evaluate
from armlet.compile.frontend.generic import ELEMENTWISE, OTHER, convert_generic
from armlet.compile.frontend.graph import Graph
from armlet.compile.frontend.integers import read_moved, recenter, rename_unsigned_ends
from armlet.compile.frontend.qoperator import to_qdq
from armlet.compile.frontend.reader import Reader, RefusedNode
from armlet.compile.frontend.truth import TRUTH
from armlet.compile.frontend.values import Array, Constant, Tensor
from armlet.errors import Problem, UnsupportedOperator, UsageError

if TYPE_CHECKING:
    import onnx

OPSETS = range(13, 22)
"""Versions of the ONNX operators that are read."""

_DOMAINS = ("", "ai.onnx")

_WITHIN = {"int64": "int32", "bool": "float32", "uint8": "int8"}
"""What stands for a type between the layers: large whole numbers come from int32 inputs, truth values are 1 or 0, and
integers of 8 bits without a sign are 128 less."""


def read_onnx(file: Path) -> Graph:
    """Read an ONNX file with static shapes.

    Raises:
        UsageError: the file is not ONNX, or follows an unknown version of the operators.
        UnsupportedOperator: lists every node that can't be read, with the reason.
    """
    model, opset, refused_forms = _checked_model(file)
    for node in model.graph.node:
        node.name = node.name or node.output[0]  # what the file calls it
    ends = rename_unsigned_ends(model.graph)
    refused_forms = {ends.get(value, value): reason for value, reason in refused_forms.items()}
    used = {n for node in model.graph.node for n in node.input if n} | {o.name for o in model.graph.output}
    truths, unsigned = _of_type(model, "BOOL"), _of_type(model, "UINT8").union(ends.values())
    tensors = _tensors(model)
    tensors |= {
        within: replace(tensors[name], dtype="int8") for name, within in ends.items() if name in tensors
    }
    reader = Reader(_initializers(model), tensors, opset, frozenset(used), truths=truths, unsigned=unsigned)
    recenter(((i.name, ends[i.name]) for i in model.graph.input if i.name in ends), reader)
    refused: list[str] = []
    unknown: set[str] = set()
    for node in model.graph.node:
        try:
            _read_node(node, node.name, reader)
        except RefusedNode as reason:
            if unknown.isdisjoint(node.input):  # else it follows from what is refused already
                refused.append(_refusal(node, refused_forms.get(node.output[0], reason)))
            unknown.update(value for value in node.output if value not in reader.tensors)
    recenter(((ends[o.name], o.name) for o in model.graph.output if o.name in ends), reader)
    refused += [
        f"{o.name}: an answer is a part of a layer"
        for o in model.graph.output
        if ends.get(o.name, o.name) in reader.pending
    ]
    refused += [f"{o.name}: an answer is a truth value" for o in model.graph.output if o.name in truths]
    _refuse(file, refused)
    inputs = tuple(i.name for i in model.graph.input if i.name not in reader.constants)
    return Graph(tuple(reader.layers), reader.tensors, inputs, tuple(o.name for o in model.graph.output))


def _read_node(node: onnx.NodeProto, name: str, reader: Reader) -> None:
    if node.domain not in _DOMAINS:
        raise RefusedNode(_foreign(node))
    if _fold(node, reader) or read_dynamic(node, name, reader) or read_moved(node, name, reader, CONVERTERS):
        return
    if convert := CONVERTERS.get(node.op_type) or TRUTH.get(node.op_type):
        convert(node, name, reader)
    elif node.op_type in ELEMENTWISE or node.op_type in OTHER:
        convert_generic(node, name, reader)
    else:
        raise RefusedNode("no such operator is known")


def open_onnx(file: Path) -> onnx.ModelProto:
    """Return what a file holds, with its weights, wherever they lie.

    Raises:
        UsageError: there is no such file, or it is not ONNX.
        UnsupportedOperator: lists every node whose operator ONNX does not know.
    """
    import onnx
    from google.protobuf.message import DecodeError

    if not file.is_file():
        raise UsageError(Problem("no such file", file=file))
    try:
        model = onnx.load(file)
    except (DecodeError, onnx.checker.ValidationError, OSError) as error:
        raise UsageError(Problem(f"can't be read as ONNX: {error}", file=file)) from error
    if not model.graph.node:
        raise UsageError(Problem("can't be read as ONNX: it has no graph", file=file))
    unknown = [n for n in model.graph.node if n.domain in _DOMAINS and not onnx.defs.has(n.op_type)]
    _refuse(file, [_refusal(node, "no such operator is known") for node in unknown])
    return model


def in_standard_operators(model: onnx.ModelProto, file: Path) -> onnx.ModelProto:
    """Return a copy of the model in the QDQ form, whose shapes can be told.

    Raises:
        UnsupportedOperator: lists every node of another domain that is not read.
    """
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    reasons = to_qdq(copy, _opset_of(copy))
    foreign = [node for node in copy.graph.node if node.domain not in _DOMAINS]
    _refuse(file, [_refusal(node, reasons.get(node.output[0], _foreign(node))) for node in foreign])
    return copy


def with_shapes(model: onnx.ModelProto, file: Path) -> onnx.ModelProto:
    """Return the model with the shape of every value that can be told.

    Raises:
        UsageError: its nodes do not fit together.
    """
    import onnx

    try:
        model = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
        onnx.checker.check_model(model)  # afterwards: a file need not say its outputs' shapes
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise UsageError(Problem(f"can't be read as ONNX: {error}", file=file)) from error
    return model


def _opset_of(model: onnx.ModelProto) -> int:
    """Return the version of the standard's operators, 0 if the file does not say it."""
    return next((o.version for o in model.opset_import if o.domain in _DOMAINS), 0)


def _foreign(node: onnx.NodeProto) -> str:
    return f"no such operator of the domain {node.domain} is known"


def _refusal(node: onnx.NodeProto, reason: object) -> str:
    domain = f"{node.domain}." if node.domain else ""
    return f"{node.name or node.output[0]} ({domain}{node.op_type}): {reason}"


def _refuse(file: Path, refused: list[str]) -> None:
    if refused:
        raise UnsupportedOperator(f"{file.name} has nodes that can't be compiled:\n  " + "\n  ".join(refused))


def _checked_model(file: Path) -> tuple[onnx.ModelProto, int, dict[str, str]]:
    """Return the model in the QDQ form with its types, its operators' version, and why nodes are not in that form."""
    model = open_onnx(file)
    opset = _opset_of(model)
    refused = to_qdq(model, opset)  # first: the types of other domains' operators are not inferred
    model = with_shapes(model, file)
    if opset not in OPSETS:
        raise UsageError(
            Problem(
                f"has operators of version {opset}", file=file, hint=f"{OPSETS[0]} to {OPSETS[-1]} are read"
            )
        )
    return model, opset, refused


def _initializers(model: onnx.ModelProto) -> dict[str, Constant]:
    import onnx

    return {i.name: Constant(onnx.numpy_helper.to_array(i)) for i in model.graph.initializer}


def _tensors(model: onnx.ModelProto) -> dict[str, Tensor]:
    """Return every value whose shape is static, with its type in the program."""
    import onnx

    found = {}
    ends = {i.name for i in [*model.graph.input, *model.graph.output]}
    for info in [*model.graph.input, *model.graph.value_info, *model.graph.output]:
        dims = info.type.tensor_type.shape.dim
        if info.type.tensor_type.HasField("shape") and all(d.HasField("dim_value") for d in dims):
            dtype = onnx.helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)
            within = dtype.name if info.name in ends else _WITHIN.get(dtype.name, dtype.name)
            found[info.name] = Tensor(tuple(d.dim_value for d in dims), within)
    return found


def _of_type(model: onnx.ModelProto, dtype: str) -> frozenset[str]:
    """Return the values of one of ONNX's element types, given by its name."""
    import onnx

    values = [*model.graph.input, *model.graph.value_info, *model.graph.output]
    number = onnx.TensorProto.DataType.Value(dtype)
    return frozenset(v.name for v in values if v.type.tensor_type.elem_type == number)


def _fold(node: onnx.NodeProto, reader: Reader) -> bool:
    """Evaluate a node whose inputs are all constants; quantized ones stay quantized where that is exact."""
    given = [name for name in node.input if name]
    if not all(name in reader.constants for name in given):
        return False
    operands = [reader.constants[name] for name in given]
    result = dequantized(node, operands) if node.op_type == "DequantizeLinear" else moved(node, operands)
    if result is None:
        if node.op_type == "MatMul":
            reader.factors[node.output[0]] = (operands[0], operands[1])
        result = Constant(evaluate(node, [_plain(o) for o in operands], reader.opset))
    reader.constants[node.output[0]] = result
    return True


def _plain(constant: Constant) -> Array:
    return constant.values if constant.scale is None else constant.real().astype(np.float32)
