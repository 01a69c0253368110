"""The compiler's steps, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from armlet.artifacts import Compiled
from armlet.compile.dump import Dump, of_builds
from armlet.compile.lowered import LoweredProgram
from armlet.errors import Problem, UsageError
from armlet.spec.recipe import Precision, Recipe, Threads
from armlet.spec.target import Target


def check_precision(precision: Precision, target: Target) -> None:
    """Refuse a target that does not compute in a precision.

    Raises:
        UsageError: it has no instructions for it.
    """
    if precision == "float16" and not target.computes_float16:
        lacking = sorted({"neon", "fp16"} - set(target.resolved_features), reverse=True)
        raise UsageError(
            Problem(
                f"target {target.name} has no arithmetic on float16: its features lack {' and '.join(lacking)}",
                key="precision",
                hint="use float32, or a target whose core has it, such as raspberry-pi-5",
            )
        )


_NO_THREADS = "threads share the work of the core, and OpenCL programs compute on a GPU"
_WITHOUT = "leave it out, or choose a target without a GPU"


def check_threads(threads: int, target: Target) -> None:
    """Refuse a number of threads that programs for a target are not made for.

    Raises:
        UsageError: it is not 1, 2 or 4, or more than 1 for a GPU.
    """
    if threads not in get_args(Threads):
        raise UsageError(Problem(f"{threads} threads can't compute one call: use 1, 2 or 4", key="threads"))
    if threads > 1 and target.gpu is not None:
        raise UsageError(Problem(f"target {target.name}: {_NO_THREADS}", key="threads", hint=_WITHOUT))


def check_gpu(recipe: Recipe, target: Target) -> None:
    """Refuse what a program for a GPU can't be, before anything is trained.

    Raises:
        UsageError: lists all of it.
    """
    if target.gpu is None:
        return
    quantizing = [
        (f"passes.{i}", p.kind) for i, p in enumerate(recipe.passes) if p.kind.startswith("quantize_")
    ]
    problems = [
        (key, f"{kind} makes integers, and OpenCL programs are float32 or float16")
        for key, kind in quantizing
    ]
    if recipe.stream is not None:
        problems.append(("stream", "OpenCL programs take no streams"))
    if recipe.package == "packed":
        problems.append(("package", "constants of OpenCL programs are not packed"))
    if recipe.threads > 1:
        problems.append(("threads", _NO_THREADS))
    if problems:
        raise UsageError(
            [Problem(f"target {target.name}: {text}", key=key, hint=_WITHOUT) for key, text in problems]
        )


def lower(
    onnx_file: Path,
    target: Target,
    *,
    small: bool = False,
    precision: Precision = "float32",
    dump: Dump | None = None,
) -> LoweredProgram:
    """Return the first of `lower_builds`."""
    return lower_builds(onnx_file, (target,), small=small, precision=precision, dump=dump)[0]


def lower_builds(
    onnx_file: Path,
    builds: Sequence[Target],
    *,
    small: bool = False,
    precision: Precision = "float32",
    dump: Dump | None = None,
) -> tuple[LoweredProgram, ...]:
    """Turn an ONNX file (batch of one, static shapes, float32 or quantised) into scheduled kernels and a list of calls.

    Args:
        onnx_file: the network.
        builds: targets, each of which gets a program of its own.
        small: whether constants must not grow for the sake of speed.
        precision: what real numbers are within.
        dump: where what each stage makes is written.

    Raises:
        UsageError: the file is not ONNX, or follows an unknown version of the operators; or a target does not compute
            in this precision.
        UnsupportedOperator: names every node that can't be compiled, with the reason.
    """
    from armlet.compile.float16 import to_float16
    from armlet.compile.frontend.load import read_onnx
    from armlet.compile.frontend.simplify import simplify
    from armlet.compile.kernels.loops import vector_of
    from armlet.compile.kernels.select import select_kernels
    from armlet.compile.quantized.integer import to_integer

    for build in builds:
        check_precision(precision, build)
    read = read_onnx(onnx_file)
    simplified = simplify(read)  # first: integers are looked for in whole layers, with bias and clamp
    graph, fallbacks = to_integer(simplified)
    if precision == "float16":
        graph = to_float16(graph)
    programs = tuple(
        select_kernels(graph, fallbacks, vector_of(build, precision), small=small) for build in builds
    )
    if dump:
        dump.onnx(onnx_file)
        dump.graph("01-read.txt", read)
        dump.graph("02-simplified.txt", simplified)
        dump.graph("03-integer.txt", graph)
    names = [build.resolved_features[-1] for build in builds[1:]]
    for place, program in zip(of_builds(dump, names), programs, strict=True):
        if place:
            place.module("04-kernels", program.module)
    return programs


def lower_opencl(
    onnx_file: Path, precision: Precision = "float32", dump: Dump | None = None
) -> LoweredProgram:
    """Turn an ONNX file (batch of one, static shapes, not quantised) into kernels for a GPU and a list of calls.

    Args:
        onnx_file: the network.
        precision: what real numbers are in the GPU's memory; they are added up in float32.
        dump: where what each stage makes is written.

    Raises:
        UsageError: the file is not ONNX, or follows an unknown version of the operators.
        UnsupportedOperator: names every node that can't be compiled, with the reason.
    """
    from armlet.compile.float16 import to_float16
    from armlet.compile.frontend.load import read_onnx
    from armlet.compile.frontend.simplify import simplify
    from armlet.compile.opencl.select import check_graph, select_kernels

    read = read_onnx(onnx_file)
    simplified = simplify(read)
    check_graph(simplified)
    program = select_kernels(to_float16(simplified) if precision == "float16" else simplified, precision)
    if dump:
        dump.onnx(onnx_file)
        dump.graph("01-read.txt", read)
        dump.graph("02-simplified.txt", simplified)
        dump.module("04-kernels", program.module)
    return program


def compile_onnx(  # noqa: PLR0913 - the keywords are what kernels are chosen by
    onnx_file: Path,
    target: Target,
    symbol: str,
    folder: Path,
    *,
    packed: bool = False,
    small: bool = False,
    precision: Precision = "float32",
    threads: Threads = 1,
    dump: Dump | None = None,
) -> Compiled:
    """Compile an ONNX file into libraries and a runner below `folder`; `symbol` begins every C name.

    One call may be computed by `threads`. A program for a GPU has no runner.

    With `packed` there is a second library with packed constants, in `packed/`; with it, or with `small`, constants do
    not grow for the sake of speed: transformed weights would pack badly.

    Raises:
        UsageError: the file is not ONNX, `symbol` can't begin a C name, or the target lacks the precision.
        UnsupportedOperator: names every node that can't be compiled, with the reason.
        MissingDependency: the target's compiler is not installed.
    """
    if target.gpu is not None:
        from armlet.compile.opencl.emit import emit_opencl

        return emit_opencl(lower_opencl(onnx_file, precision, dump), target, symbol, folder, dump)
    from armlet.compile.emit import emit_program

    programs = lower_builds(onnx_file, target.builds, small=small or packed, precision=precision, dump=dump)
    return emit_program(programs, target, symbol, folder, packed=packed, threads=threads, dump=dump)
