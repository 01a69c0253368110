"""The compiler's steps, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from armlet.artifacts import Compiled
from armlet.compile.dump import Dump, of_builds
from armlet.compile.lowered import LoweredProgram
from armlet.errors import Problem, UsageError
from armlet.spec.recipe import Precision, Threads
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


def check_threads(threads: int) -> None:
    """Refuse a number of threads that programs are not made for.

    Raises:
        UsageError: it is not 1, 2 or 4.
    """
    if threads not in get_args(Threads):
        raise UsageError(Problem(f"{threads} threads can't compute one call: use 1, 2 or 4", key="threads"))


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
) -> Compiled:
    """Compile an ONNX file into libraries and a runner below `folder`; `symbol` begins every C name.

    One call may be computed by `threads`.

    With `packed` there is a second library with packed constants, in `packed/`; with it, or with `small`, constants do
    not grow for the sake of speed: transformed weights would pack badly.

    Raises:
        UsageError: the file is not ONNX, `symbol` can't begin a C name, or the target lacks the precision.
        UnsupportedOperator: names every node that can't be compiled, with the reason.
        MissingDependency: the target's compiler is not installed.
    """
    from armlet.compile.emit import emit_program

    programs = lower_builds(onnx_file, target.builds, small=small or packed, precision=precision)
    return emit_program(programs, target, symbol, folder, packed=packed, threads=threads)
