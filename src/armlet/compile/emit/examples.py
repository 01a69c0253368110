"""Writes the examples of a bundle: the least C, CMake and Python that runs the compiled program."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from armlet.artifacts import Compiled, TensorInfo
from armlet.compile.emit.templates import render
from armlet.compile.link import RUNTIME
from armlet.compile.memory import ALIGNMENT


def write_examples(compiled: Compiled, folder: Path) -> tuple[Path, ...]:
    """Write `examples/` below `folder`, beside its `lib/`; return the files.

    Args:
        compiled: the program that lies in `folder`.
        folder: the bundle.
    """
    sources = [s for s in sorted((RUNTIME / "examples").glob("*.in")) if _fits(s, compiled)]
    if compiled.gpu:
        sources = [RUNTIME / "opencl" / "main.c.in", RUNTIME / "examples" / "CMakeLists.txt.in"]
    return tuple(render(source, folder / "examples", _values(compiled)) for source in sources)


def write_stream_example(compiled: Compiled, folder: Path) -> tuple[Path, ...]:
    """Write `examples/` of a program for streams: it keeps the state from call to call."""
    sources = (RUNTIME / "stream" / "main.c.in", RUNTIME / "examples" / "CMakeLists.txt.in")
    fitting = [source for source in sources if _fits(source, compiled)]
    return tuple(render(source, folder / "examples", _values(compiled)) for source in fitting)


def _fits(source: Path, compiled: Compiled) -> bool:
    """Say whether an example is of use: apps for Apple's systems are built by Xcode, with no shared library."""
    return source.suffixes[0] == ".c" or "-apple-" not in compiled.triple


def _values(compiled: Compiled) -> dict[str, str]:
    """Return what the marks in the sources stand for."""
    upper, parallel = compiled.symbol.upper(), compiled.threads > 1
    return {
        "start": f"    {compiled.symbol}_start();\n" if parallel else "",
        "stop": f"    {compiled.symbol}_stop();\n" if parallel else "",
        "python_start": f"library.{compiled.symbol}_start()\n" if parallel else "",
        "symbol": compiled.symbol,
        "SYMBOL": upper,
        "libraries": "${CMAKE_DL_LIBS} m" if compiled.gpu else "m pthread" if parallel else "m",
        "arena_bytes": str(compiled.arena_bytes),
        "alignment": str(ALIGNMENT),
        "buffers": "\n".join(
            _buffers(upper, "INPUT", compiled.inputs) + _buffers(upper, "OUTPUT", compiled.outputs)
        ),
        "inputs": ", ".join(f"input_{i}" for i in range(len(compiled.inputs))),
        "outputs": ", ".join(f"output_{i}" for i in range(len(compiled.outputs))),
        "input_list": repr([(t.shape, t.dtype) for t in compiled.inputs]),
        "output_list": repr([(t.shape, t.dtype) for t in compiled.outputs]),
    }


def _buffers(upper: str, what: str, tensors: Sequence[TensorInfo]) -> list[str]:
    return [
        f"static {upper}_{what}_{i}_TYPE {what.lower()}_{i}[{upper}_{what}_{i}_ELEMENTS];"
        for i in range(len(tensors))
    ]
