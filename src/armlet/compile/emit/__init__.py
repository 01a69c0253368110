"""The back half of the compiler: kernels, memory plan, C entry, parameters, libraries and the runner.

Files below the output folder:

- `lib/`: `lib<symbol>.a`, `lib<symbol>.so`, `<symbol>.h`: what an app links.
- `src/`: `<symbol>.c` (the entry), `<symbol>_params.S` and `.bin`, `<symbol>_kernels.o`, `runner.c`, `Makefile`.
- `bin/run`: the runner, linked for the target.
- `packed/`: the library with packed constants, where it is asked for.

What is reported as code and constants is what an app grows by: the loaded sections of the one object in the static
library, which holds entry, kernels, unwind tables, parameters and the kernels' literals. Not counted: functions of
libm, padding between sections, and a shared library's own dynamic-linking tables.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from armlet.artifacts import Compiled, Kernel
from armlet.compile import link
from armlet.compile.emit.calls import CallList, read_calls
from armlet.compile.emit.entry import check_symbol, render_header, render_source, write_parameters
from armlet.compile.emit.kernels import build_kernels
from armlet.compile.emit.templates import RUNTIME, render
from armlet.compile.lowered import LoweredProgram
from armlet.errors import ArmletError
from armlet.spec.target import Target


def emit_program(
    program: LoweredProgram, target: Target, symbol: str, folder: Path, *, packed: bool = False
) -> Compiled:
    """Turn a lowered program into libraries that an app links, and a runner; equal input gives equal bytes.

    Args:
        program: what the front half made.
        target: the board.
        symbol: C prefix of everything that the program defines.
        folder: where `lib/`, `src/` and `bin/` go.
        packed: whether the library with packed constants is written, too, in `packed/`.

    Raises:
        UsageError: `symbol` can't begin a C identifier, LLVM does not know the target's core, or there are no
            constants to pack.
        MissingDependency: the target's compiler or archiver is not installed.
        ArmletError: the program is not in the promised form, or a tool fails.
    """
    check_symbol(symbol)
    folder = folder.resolve()
    lib, src, runner = folder / "lib", folder / "src", folder / "bin" / "run"
    for place in (lib, src, runner.parent):
        place.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="armlet-link-") as scratch:
        work = Path(scratch)
        kernels = build_kernels(program.module, target, symbol, work / "all_kernels.o")
        calls = read_calls(program, kernels)
        if len(calls.calls) != len(program.calls):
            raise ArmletError(
                f"{len(program.calls)} calls are described, but the program has {len(calls.calls)}"
            )
        _write_sources(program, symbol, calls, target, lib, src)
        # TVM adds helpers and debug information; what ships holds the kernels that are called and no more.
        kernels_object = src / f"{symbol}_kernels.o"
        roots = sorted({call.kernel.symbol for call in calls.calls})
        link.link_relocatable(target, [work / "all_kernels.o"], kernels_object, roots)
        objects = [work / f"{symbol}_entry.o", kernels_object]
        link.compile_object(target, src / f"{symbol}.c", objects[0], lib)
        if calls.constants:
            objects.append(work / f"{symbol}_params.o")
            link.compile_object(target, src / f"{symbol}_params.S", objects[-1], lib)
        whole = work / f"{symbol}.o"
        link.link_relocatable(target, objects, whole, [f"{symbol}_run"])
        link.check_undefined(whole)
        link.archive(target, whole, lib / f"lib{symbol}.a")
        link.link_shared(target, whole, lib / f"lib{symbol}.so")
        loaded = link.loaded_bytes(whole)
    link.link_program(target, src / "runner.c", lib / f"lib{symbol}.a", lib, runner)
    compiled = _compiled(program, target, symbol, calls, loaded)
    if not packed:
        return compiled
    from armlet.compile.emit.packed import emit_packed  # needs NumPy, which a plan does without

    return replace(compiled, packed=emit_packed(program, target, symbol, calls, folder))


def _write_sources(
    program: LoweredProgram, symbol: str, calls: CallList, target: Target, lib: Path, src: Path
) -> None:
    header = render_header(symbol, program.inputs, program.outputs, calls)
    (lib / f"{symbol}.h").write_text(header, encoding="utf-8")
    source = render_source(symbol, program.inputs, program.outputs, calls)
    (src / f"{symbol}.c").write_text(source, encoding="utf-8")
    objects = [f"{symbol}_entry.o", f"{symbol}_kernels.o"]
    if calls.constants:
        write_parameters(symbol, calls.constants, src)
        objects.append(f"{symbol}_params.o")
    render(RUNTIME / "runner.c.in", src, {"symbol": symbol, "SYMBOL": symbol.upper()})
    makefile = {
        "symbol": symbol,
        "cc": target.toolchain.cc,
        "ar": target.toolchain.ar,
        "c_flags": " ".join(link.C_FLAGS),
        "relocatable_flags": " ".join(link.relocatable_flags([f"{symbol}_run"])),
        "shared_flags": " ".join(link.SHARED_FLAGS),
        "runner_flags": " ".join(link.program_flags(target)),
        "objects": " ".join(objects),
    }
    render(RUNTIME / "Makefile.in", src, makefile)


def _compiled(
    program: LoweredProgram, target: Target, symbol: str, calls: CallList, loaded: link.LoadedBytes
) -> Compiled:
    return Compiled(
        target=target.name,
        triple=target.resolved_triple,
        cpu=target.resolved_cpu,
        features=target.resolved_features,
        symbol=symbol,
        inputs=program.inputs,
        outputs=program.outputs,
        code_bytes=loaded.code,
        constant_bytes=loaded.constants,
        arena_bytes=calls.arena.arena_bytes,
        arena_lower_bound=calls.arena.lower_bound,
        kernels=tuple(
            Kernel(call.kernel.symbol, info.op, info.layer, info.schedule, info.precision, info.macs)
            for call, info in zip(calls.calls, program.calls, strict=True)
        ),
        fallbacks=program.fallbacks,
        integer_only=all(i.precision == "int8" or i.op in ("quantize", "dequantize") for i in program.calls),
        tool_versions=_tool_versions(target),
    )


def _tool_versions(target: Target) -> tuple[str, ...]:
    import tvm
    import tvm_ffi

    llvm = tvm_ffi.get_global_func("target.llvm_version_major")()
    return f"apache-tvm {tvm.__version__}", f"LLVM {llvm}", link.tool_version(target.toolchain.cc)
