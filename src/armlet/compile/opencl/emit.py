"""Writes an OpenCL program as libraries for an app: the kernels' source, the weights, and the C driver of both.

Files below the output folder:

- `lib/`: `lib<symbol>.a`, `lib<symbol>.so`, `<symbol>.h`: what an app links.
- `src/`: `<symbol>.c` (the driver), `<symbol>_source.S` and `.cl` (the kernels), `<symbol>_params.S` and `.bin` (the
  weights), `Makefile`.

The driver is C11, loads the system's OpenCL library when a program is opened, and needs nothing else of it to be
built.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import armlet
from armlet.artifacts import Compiled
from armlet.compile import link, symbols
from armlet.compile.dump import Dump
from armlet.compile.emit import Linked, compiled_of, write_makefile
from armlet.compile.emit.calls import Listing, Place, read_calls
from armlet.compile.emit.entry import check_symbol, defines, describe, write_block
from armlet.compile.emit.templates import render
from armlet.compile.lowered import LoweredProgram
from armlet.compile.opencl.source import GpuKernel, write_source
from armlet.errors import UsageError
from armlet.spec.target import Target

RUNTIME = link.RUNTIME / "opencl"
ALIGNMENT = 512
"""Of every buffer within another, in bytes: GPUs of phones ask for 128, of desktops for 512."""

_KINDS = {"input": "INPUT", "output": "OUTPUT", "constant": "WEIGHTS", "arena": "ARENA"}


def emit_opencl(
    program: LoweredProgram, target: Target, symbol: str, folder: Path, dump: Dump | None = None
) -> Compiled:
    """Turn a program for a GPU into libraries; equal input gives equal bytes.

    Args:
        program: what the front half made.
        target: the machine whose CPU runs the driver.
        symbol: C prefix of everything that the program defines.
        folder: where `lib/` and `src/` go.
        dump: where what each stage makes is written.

    Raises:
        UsageError: `symbol` can't begin a C identifier, or the network computes nothing.
        MissingDependency: the target's compiler or archiver is not installed.
        ArmletError: the program is not in the promised form, or a tool fails.
    """
    check_symbol(symbol)
    folder = folder.resolve()
    lib, src = folder / "lib", folder / "src"
    for place in (lib, src):
        place.mkdir(parents=True, exist_ok=True)
    source, kernels = write_source(program.module, symbol, dump)
    listing = read_calls((program,), ([k.plain for k in kernels],), (), alignment=ALIGNMENT)
    if not kernels:
        raise UsageError("the network computes nothing: its answers are inputs and constants")
    needs_half = any(info.precision == "float16" for info in program.calls)
    _write_sources(symbol, listing, (source, kernels, needs_half), target, folder)
    loaded = _link(symbol, target, folder, has_weights=bool(listing.constants))
    compiled = compiled_of((program,), target, symbol, listing, loaded, {})
    if dump:
        dump.write("08-entry.c", (src / f"{symbol}.c").read_text(encoding="utf-8"))
        dump.arena(listing.builds[0].arena, compiled.kernels)
    return compiled


def build_library(symbol: str, target: Target, src: Path, lib: Path, output: Path) -> None:
    """Build the shared library of a program from its sources, for another machine than it was compiled for.

    Args:
        symbol: C prefix of the program.
        target: the other machine.
        src: the program's sources.
        lib: folder of its header.
        output: the library.

    Raises:
        MissingDependency: the target's compiler is not installed.
        ToolFailed: it fails.
    """
    with TemporaryDirectory(prefix="armlet-link-") as scratch:
        whole = _object(
            symbol, target, src, lib, Path(scratch), has_weights=(src / f"{symbol}_params.S").is_file()
        )
        link.link_shared(target, whole, output, link.GPU_LIBRARIES)


def _object(symbol: str, target: Target, src: Path, lib: Path, work: Path, *, has_weights: bool) -> Path:
    """Return the one object of a program's libraries, in `work`."""
    objects: list[Path] = []
    for source in (f"{symbol}.c", f"{symbol}_source.S", *([f"{symbol}_params.S"] if has_weights else [])):
        objects.append(work / f"part{len(objects)}.o")
        link.compile_object(target, src / source, objects[-1], lib)
    (whole,) = link.link_relocatable(target, objects, work / f"{symbol}.o", _entries(symbol))
    return whole


def _link(symbol: str, target: Target, folder: Path, *, has_weights: bool) -> link.LoadedBytes:
    lib = folder / "lib"
    with TemporaryDirectory(prefix="armlet-link-") as scratch:
        whole = _object(symbol, target, folder / "src", lib, Path(scratch), has_weights=has_weights)
        symbols.check_undefined(target, whole)
        link.archive(target, [whole], lib / f"lib{symbol}.a")
        link.link_shared(target, whole, lib / f"lib{symbol}.so", link.GPU_LIBRARIES)
        return link.loaded_bytes(whole)


def _entries(symbol: str) -> list[str]:
    return [f"{symbol}_{name}" for name in ("open", "run", "device", "close")]


def _write_sources(
    symbol: str,
    listing: Listing,
    written: tuple[str, Sequence[GpuKernel], bool],
    target: Target,
    folder: Path,
) -> None:
    """Write the driver with its header, what it includes, and the Makefile.

    Args:
        symbol: C prefix of the program.
        listing: the program.
        written: the kernels' source, the kernels, and whether they need float16.
        target: what the driver is built for.
        folder: where `lib/` and `src/` are.
    """
    source, kernels, needs_half = written
    lib, src, upper = folder / "lib", folder / "src", symbol.upper()
    names = {"symbol": symbol, "SYMBOL": upper}
    header = {
        "version": armlet.__version__,
        "tensors": f"{describe('inputs', listing.inputs)}\n{describe('outputs', listing.outputs)}",
        "arena_bytes": str(listing.arena_bytes),
        "weights_bytes": str(len(listing.constants)),
        "defines": "\n".join(
            defines(symbol, "INPUT", listing.inputs) + defines(symbol, "OUTPUT", listing.outputs)
        ),
    }
    render(RUNTIME / "program.h.in", lib, names | header).rename(lib / f"{symbol}.h")
    text = source.encode()
    tables = _tables(listing, kernels)
    given = {f"{symbol}_source": text} | (
        {f"{symbol}_params": listing.constants} if listing.constants else {}
    )
    driver = {
        "constants": "".join(f"HIDDEN extern const unsigned char {name}[];\n" for name in given)
        + f"enum {{ SOURCE_BYTES = {len(text)} }};\n",
        "needs_half": str(int(needs_half)),
        "alignment": str(ALIGNMENT),
        "weights": _UPLOAD.replace("@symbol@", symbol).replace("@SYMBOL@", upper)
        if listing.constants
        else "",
        **tables,
    }
    render(RUNTIME / "program.c.in", src, names | driver).rename(src / f"{symbol}.c")
    objects = [f"{symbol}_driver.o"]
    for name, data in given.items():
        write_block(name, data, src, target, ".cl" if data is text else ".bin")
        objects.append(f"{name}.o")
    linked = Linked(objects, _entries(symbol), link.GPU_LIBRARIES)
    write_makefile(symbol, target, linked, src, RUNTIME / "Makefile.in")


def _tables(listing: Listing, kernels: Sequence[GpuKernel]) -> dict[str, str]:
    """Return the driver's tables of buffers, arguments, calls and copies, as C."""
    of_symbol = {kernel.plain.symbol: kernel for kernel in kernels}
    (build,) = listing.builds
    # Inputs and outputs come first, under their own numbers, whether or not a kernel touches them.
    ends = [
        *((Place("input", i), info.n_bytes) for i, info in enumerate(listing.inputs)),
        *((Place("output", i), info.n_bytes) for i, info in enumerate(listing.outputs)),
    ]
    numbers = {end: at for at, end in enumerate(ends)}

    def number(place: Place, n_bytes: int) -> int:
        return numbers.setdefault((place, n_bytes), len(numbers))

    arguments: list[int] = []
    calls = []
    for call in build.calls:
        kernel, first = of_symbol[call.kernel.symbol], len(arguments)
        arguments += map(number, (*call.inputs, *call.outputs), kernel.parameter_bytes)
        sizes = (kernel.groups * kernel.group_items, kernel.group_items, first, len(arguments) - first)
        calls.append(f'    {{"{call.kernel.symbol}", {", ".join(f"{size}u" for size in sizes)}}}')
    copies = [
        f"    {{{number(copy.source, copy.n_bytes)}u, {number(copy.output, copy.n_bytes)}u, {copy.n_bytes}u}}"
        for copy in build.copies
    ]
    buffers = [
        f"    {{{_KINDS[place.kind]}, {0 if place.kind in ('input', 'output') else place.at}u, {n}u}}"
        for place, n in numbers
    ]
    return {
        "n_buffers": str(len(numbers)),
        "n_calls": str(len(calls)),
        "buffers": ",\n".join(buffers),
        "arguments": ", ".join(f"{n}u" for n in arguments),
        "calls": ",\n".join(calls),
        "copies": _COPIES.format(copies=",\n".join(copies)) if copies else "",
        "copying": _COPYING if copies else "",
    }


_UPLOAD = """\
    union { const unsigned char *read; void *given; } block = {@symbol@_params}; /* OpenCL's function takes no const */
    p->weights = p->cl.CreateBuffer(
        p->context, READ_ONLY | COPY_HOST_POINTER, @SYMBOL@_WEIGHTS_BYTES, block.given, &status);
    if (p->weights == NULL)
        return failed(message, "clCreateBuffer for the weights", status);
"""

_COPIES = """\
typedef struct {{ unsigned source, target; size_t size; }} Copy; /* numbers of buffers */
static const Copy copies[] = {{
{copies}
}};
"""

_COPYING = """\
    for (size_t i = 0; i < sizeof copies / sizeof copies[0]; i++) {
        status = p->cl.EnqueueCopyBuffer(p->queue, p->memory[copies[i].source], p->memory[copies[i].target], 0, 0,
                                         copies[i].size, 0, NULL, NULL);
        if (status != 0)
            return failed(message, "clEnqueueCopyBuffer", status);
    }
"""
