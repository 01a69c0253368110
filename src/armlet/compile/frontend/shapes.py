"""Fixes what an ONNX file leaves open, so that it can be compiled: shapes of inputs, and functions of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from armlet.compile.frontend.load import in_standard_operators, open_onnx, with_shapes
from armlet.errors import Problem, UsageError, nearest

if TYPE_CHECKING:
    import onnx

Shape = tuple[int, ...]


def fix_shapes(file: Path, shapes: Mapping[str, Shape], output: Path) -> None:
    """Write an ONNX file whose inputs and outputs all have static shapes with a batch of one.

    An extent that two inputs share by its name need be given for one of them only. Inputs of int64, such as tokens,
    become int32: programs count in no larger numbers.

    Args:
        file: as somebody made it; weights that lie beside it are taken in.
        shapes: of inputs, with the batch.
        output: the file to write.

    Raises:
        UsageError: the file is not ONNX; a shape does not fit it; or extents are left open: names each input, and what
            to give.
        UnsupportedOperator: lists every node whose operator is not known.
    """
    import onnx
    from onnx import inliner

    model = open_onnx(file)
    if model.functions:
        model = inliner.inline_local_functions(model)
    constants = {i.name for i in model.graph.initializer}
    inputs = [i for i in model.graph.input if i.name not in constants]
    if unknown := [name for name in shapes if name not in {i.name for i in inputs}]:
        names = [i.name for i in inputs]
        raise UsageError([Problem(f"has no input {n!r}", file, hint=nearest(n, names)) for n in unknown])
    if problems := [p for i in inputs if i.name in shapes for p in _misfits(i, shapes[i.name], file)]:
        raise UsageError(problems)
    known = {d.dim_param: n for i in inputs for d, n in zip(_dims(i), shapes.get(i.name, ()), strict=False)}
    for one in inputs:
        _fix(one, shapes.get(one.name), known)
    if problems := [problem for one in inputs for problem in _open(one, file)]:
        raise UsageError(problems)
    for one in inputs:
        if one.type.tensor_type.elem_type == onnx.TensorProto.INT64:
            _narrow(one, model.graph)
    del model.graph.value_info[:]  # said with open extents; they follow from the inputs
    for one in model.graph.output:
        one.type.tensor_type.ClearField("shape")
    outputs = with_shapes(in_standard_operators(model, file), file).graph.output
    if problems := [p for one in (*inputs, *outputs) for p in _unfit(one, file)]:
        raise UsageError(problems)
    del model.graph.output[:]
    model.graph.output.extend(outputs)
    onnx.save_model(model, output)


def _dims(value: onnx.ValueInfoProto) -> list[onnx.TensorShapeProto.Dimension]:
    return list(value.type.tensor_type.shape.dim)


def _misfits(value: onnx.ValueInfoProto, shape: Shape, file: Path) -> list[Problem]:
    """Say where a given shape contradicts the file."""
    dims = _dims(value)
    if value.type.tensor_type.HasField("shape") and len(dims) != len(shape):
        return [
            Problem(
                f"input {value.name!r} has {len(dims)} dimensions, not {len(shape)}: {_text(value)}", file
            )
        ]
    fixed = [(d.dim_value, n) for d, n in zip(dims, shape, strict=False) if d.HasField("dim_value")]
    if any(extent != n for extent, n in fixed):
        return [Problem(f"input {value.name!r} is {_text(value)}, which {list(shape)} does not fit", file)]
    return []


def _fix(value: onnx.ValueInfoProto, shape: Shape | None, known: Mapping[str, int]) -> None:
    """Write the extents that are given, or known by their name."""
    import onnx

    kind = value.type.tensor_type
    if shape is not None:
        kind.shape.CopyFrom(onnx.TensorShapeProto(dim=[{"dim_value": n} for n in shape]))
        return
    for dim in kind.shape.dim:
        if dim.dim_param and dim.dim_param in known:
            dim.dim_value = known[dim.dim_param]


def _open(value: onnx.ValueInfoProto, file: Path) -> list[Problem]:
    """Name an input whose extents are not all known, with what to give."""
    if not value.type.tensor_type.HasField("shape"):
        return [Problem(f"input {value.name!r} has no shape", file, hint=f"give --shape {value.name}=1,...")]
    dims = _dims(value)
    if all(d.HasField("dim_value") and d.dim_value > 0 for d in dims):
        return []
    wanted = [str(d.dim_value) if d.dim_value > 0 else d.dim_param or "N" for d in dims]
    if not dims[0].dim_value:
        wanted[0] = "1"
    hint = f"give it: --shape {value.name}={','.join(wanted)}" + (
        " with a number for each name" if any(not w.isdigit() for w in wanted) else ""
    )
    return [Problem(f"input {value.name!r} leaves extents open: {_text(value)}", file, hint=hint)]


def _narrow(value: onnx.ValueInfoProto, graph: onnx.GraphProto) -> None:
    """Make an input of int64 one of int32, which a first node turns back for those that read it."""
    import onnx

    value.type.tensor_type.elem_type = onnx.TensorProto.INT32
    wide = f"{value.name}:int64"
    for node in graph.node:
        node.input[:] = [wide if name == value.name else name for name in node.input]
    cast = onnx.helper.make_node("Cast", [value.name], [wide], name=wide, to=onnx.TensorProto.INT64)
    graph.node.insert(0, cast)


def _unfit(value: onnx.ValueInfoProto, file: Path) -> list[Problem]:
    """Say why a program can't take or give a value."""
    import onnx

    what, dims = f"{value.name!r} is {_text(value)}", [d.dim_value for d in _dims(value)]
    dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name
    if dtype not in _TYPES:
        return [Problem(f"{what} of {dtype}", file, hint=f"programs take and give {', '.join(_TYPES)}")]
    if not all(dims):
        return [Problem(f"{what}: its shape depends on values", file)]
    if dims[:1] != [1]:
        return [Problem(f"{what}: the first extent is the batch, and a program takes one sample", file)]
    return []


_TYPES = ("float32", "int8", "uint8", "int32", "int64")


def _text(value: onnx.ValueInfoProto) -> str:
    """Return a shape as the file says it: [batch, 3, ?, 224]."""
    return f"[{', '.join(str(d.dim_value) if d.dim_value else d.dim_param or '?' for d in _dims(value))}]"
