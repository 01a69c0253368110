"""The compiler's steps, one after the other."""

from __future__ import annotations

from pathlib import Path

from armlet.artifacts import Compiled
from armlet.compile.lowered import LoweredProgram
from armlet.spec.target import Target


def lower(onnx_file: Path, target: Target, *, small: bool = False) -> LoweredProgram:
    """Turn an ONNX file (batch of one, static shapes, float32 or QDQ) into scheduled kernels and a list of calls.

    With `small`, constants do not grow for the sake of speed.

    Raises:
        UsageError: the file is not ONNX, or follows an unknown version of the operators.
        UnsupportedOperator: names every node that can't be compiled, with the reason.
    """
    from armlet.compile.frontend.load import read_onnx
    from armlet.compile.frontend.simplify import simplify
    from armlet.compile.kernels.loops import vector_of
    from armlet.compile.kernels.select import select_kernels
    from armlet.compile.quantized.integer import to_integer

    graph = read_onnx(onnx_file)
    graph = simplify(graph)  # first: integers are looked for in whole layers, with bias and clamp
    graph, fallbacks = to_integer(graph)
    return select_kernels(graph, fallbacks, vector_of(target), small=small)


def compile_onnx(
    onnx_file: Path, target: Target, symbol: str, folder: Path, *, packed: bool = False, small: bool = False
) -> Compiled:
    """Compile an ONNX file into libraries and a runner below `folder`; `symbol` begins every C name.

    With `packed` there is a second library with packed constants, in `packed/`; with `small`, constants do not grow
    for the sake of speed.

    Raises:
        UsageError: the file is not ONNX, or `symbol` can't begin a C name.
        UnsupportedOperator: names every node that can't be compiled, with the reason.
        MissingDependency: the target's compiler is not installed.
    """
    from armlet.compile.emit import emit_program

    return emit_program(lower(onnx_file, target, small=small), target, symbol, folder, packed=packed)
