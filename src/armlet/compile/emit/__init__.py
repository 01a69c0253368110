"""The back half of the compiler: kernels, memory plan, C entry, parameters, libraries and the runner.

Files below the output folder:

- `lib/`: `lib<symbol>.a`, `lib<symbol>.so`, `<symbol>.h`: what an app links.
- `src/`: `<symbol>.c` (the entry), `<symbol>_params.S` and `.bin`, `<symbol>_kernels.o`, `runner.c`, `Makefile`; of a
  program for several threads `<symbol>_threads.c` and `.h`.
- `bin/run`: the runner, linked for the target.
- `packed/`: the library with packed constants, where it is asked for.

For Apple's systems there is `lib/module.modulemap` in the place of the shared library, runner and Makefile.

What is reported as code and constants is what an app grows by: the loaded sections of the one object in the static
library (in the objects, for Apple's systems), which holds entry, kernels, unwind tables, parameters and the kernels'
literals. Not counted: functions of
libm, padding between sections, and a shared library's own dynamic-linking tables.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from armlet.artifacts import Compiled, Kernel, KernelVariant
from armlet.compile import link, symbols
from armlet.compile.dump import Dump, of_builds
from armlet.compile.emit.calls import Listing, read_calls
from armlet.compile.emit.entry import check_symbol, entries, render_header, render_source, write_block
from armlet.compile.emit.kernels import build_variants
from armlet.compile.emit.templates import render
from armlet.compile.emit.threads import part_work
from armlet.compile.lowered import LoweredProgram
from armlet.errors import UsageError
from armlet.spec.recipe import Threads
from armlet.spec.target import Target


def emit_program(  # noqa: PLR0913 - the keywords are what is made beside the plain program
    programs: Sequence[LoweredProgram],
    target: Target,
    symbol: str,
    folder: Path,
    *,
    packed: bool = False,
    threads: Threads = 1,
    dump: Dump | None = None,
) -> Compiled:
    """Turn a lowered program into libraries that an app links, and a runner; equal input gives equal bytes.

    Args:
        programs: what the front half made, the kernels of each of the target's `builds`.
        target: the board.
        symbol: C prefix of everything that the program defines.
        folder: where `lib/`, `src/` and `bin/` go.
        packed: whether the library with packed constants is written, too, in `packed/`.
        threads: that may compute one call.
        dump: where what each stage makes is written.

    Raises:
        UsageError: `symbol` can't begin a C identifier, LLVM does not know the target's core, the
            network computes nothing, or there are no constants to pack.
        MissingDependency: the target's compiler or archiver is not installed.
        ArmletError: the program is not in the promised form, or a tool fails.
    """
    check_symbol(symbol)
    programs = [part_work(program, threads) for program in programs]
    folder = folder.resolve()
    lib, src = folder / "lib", folder / "src"
    for place in (lib, src):
        place.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="armlet-link-") as scratch:
        work = Path(scratch)
        modules = [p.module for p in programs]
        kernels_folder = src if target.is_apple else work  # there they ship as they are
        compiled, kernels = build_variants(modules, target, symbol, kernels_folder, dump)
        listing = read_calls(programs, kernels, target.variants, threads)
        if not compiled:
            raise UsageError("the network computes nothing: its answers are inputs and constants")
        _write_sources(symbol, listing, target, lib, src)
        # TVM adds helpers and debug information; what ships holds the kernels that are called and no more.
        roots = sorted({call.kernel.symbol for build in listing.builds for call in build.calls})
        kernels_objects = link.link_relocatable(target, compiled, src / f"{symbol}_kernels.o", roots)
        objects = [work / f"{symbol}_entry.o", *kernels_objects]
        link.compile_object(target, src / f"{symbol}.c", objects[0], lib)
        if threads > 1:
            objects.append(work / f"{symbol}_threads.o")
            link.compile_threads(target, src / f"{symbol}_threads.c", objects[-1], lib)
        if listing.constants:
            objects.append(work / f"{symbol}_params.o")
            link.compile_object(target, src / f"{symbol}_params.S", objects[-1], lib)
        members = link.link_relocatable(target, objects, work / f"{symbol}.o", entries(symbol, listing))
        symbols.check_undefined(target, *members, extensions=bool(listing.variants), threads=threads > 1)
        link.archive(target, members, lib / f"lib{symbol}.a")
        libraries = link.libraries(threads)
        if not target.is_apple:
            link.link_shared(target, members[0], lib / f"lib{symbol}.so", libraries)
        loaded, sizes = link.loaded_bytes(*members), link.symbol_bytes(*members)
    if not target.is_apple:
        runner = folder / "bin" / "run"
        runner.parent.mkdir(exist_ok=True)
        link.link_program(target, src / "runner.c", lib / f"lib{symbol}.a", lib, runner, libraries)
    result = compiled_of(programs, target, symbol, listing, loaded, sizes)
    if dump:
        _dump_builds(dump, result, listing, (src / f"{symbol}.c").read_text(encoding="utf-8"))
    if not packed:
        return result
    from armlet.compile.emit.packed import emit_packed  # needs NumPy, which a plan does without

    return replace(result, packed=emit_packed(target, symbol, listing, folder))


def _write_sources(symbol: str, listing: Listing, target: Target, lib: Path, src: Path) -> None:
    (lib / f"{symbol}.h").write_text(
        render_header(symbol, listing, shared=not target.is_apple), encoding="utf-8"
    )
    (src / f"{symbol}.c").write_text(render_source(symbol, listing), encoding="utf-8")
    objects = [f"{symbol}_entry.o", f"{symbol}_kernels.o"]
    if listing.constants:
        write_block(f"{symbol}_params", listing.constants, src, target)
        objects.append(f"{symbol}_params.o")
    parallel = listing.threads > 1
    if parallel:
        objects.append(f"{symbol}_threads.o")
        _write_threads(symbol, src)
    if target.is_apple:
        render(link.RUNTIME / "module.modulemap.in", lib, {"symbol": symbol})
        return
    names = {"symbol": symbol, "SYMBOL": symbol.upper()}
    starts = {"start": f"    if (!counted)\n        {symbol}_start();\n", "stop": f"    {symbol}_stop();\n"}
    render(link.RUNTIME / "runner.c.in", src, names | (starts if parallel else dict.fromkeys(starts, "")))
    linked = Linked(objects, entries(symbol, listing), link.libraries(listing.threads))
    write_makefile(symbol, target, linked, src)


def _write_threads(symbol: str, src: Path) -> None:
    """Write what a program for several threads has them share work with: `<symbol>_threads.c` and `.h`."""
    for source in sorted(link.RUNTIME.glob("threads.*.in")):
        made = render(source, src, {"symbol": symbol, "SYMBOL": symbol.upper()})
        made.rename(made.with_name(f"{symbol}_{made.name}"))


@dataclass(frozen=True, slots=True)
class Linked:
    """What makes the libraries of a program.

    Attributes:
        objects: names of the files.
        roots: symbols that are kept with what they reach.
        libraries: the linker's names of those that it needs.
    """

    objects: Sequence[str]
    roots: Sequence[str]
    libraries: Sequence[str]


def write_makefile(
    symbol: str, target: Target, linked: Linked, src: Path, template: Path = link.RUNTIME / "Makefile.in"
) -> None:
    """Write the Makefile, and what the linker is given beside the program's own parts.

    Args:
        symbol: C prefix of the program.
        target: what it is linked for.
        linked: what the libraries are made of.
        src: folder for it.
        template: of the Makefile.
    """
    libraries, threads = " ".join(linked.libraries), f"{symbol}_threads.o"
    compiles = (
        f"{threads}: {symbol}_threads.c {symbol}_threads.h ../lib/{symbol}.h\n"
        f"\t$(CC) {' '.join(('$(C_FLAGS)', *link.thread_flags(target)))} -I ../lib -c {symbol}_threads.c -o $@\n\n"
    )
    values = {
        "symbol": symbol,
        "cc": _portable(link.compiler(target)),
        "ar": _portable(link.archiver(target)),
        "c_flags": " ".join(link.c_flags(target)),
        "relocatable_flags": " ".join(link.relocatable_flags(target, linked.roots, "discard_debug.ld")),
        "shared_flags": " ".join(link.shared_flags(target)),
        "libraries": libraries,
        "runner_libraries": libraries,
        "threads_rule": compiles if threads in linked.objects else "",
        "threads_object": f"{threads} " if threads in linked.objects else "",
        "stubs": "",
        "stub_rule": "",
        "runner_flags": " ".join(link.program_flags(target)),
        "objects": " ".join(linked.objects),
    }
    if target.toolchain.zig is not None:
        render(link.DISCARD_DEBUG, src, {})
    if link.needs_stubs(target):
        for stub in sorted(link.RUNTIME.glob("bionic_*.c.in")):
            render(stub, src, {})
        stubs = " ".join(link.STUBS)
        flags = " ".join(link.STUB_FLAGS)
        rule = f"{stubs}: %.so: bionic_%.c\n\t$(CC) {flags} -Wl,-soname,$@ $< -o $@\n\n"
        values |= {"libraries": stubs, "stubs": f" {stubs}", "stub_rule": rule}
    render(template, src, values)


def _portable(command: tuple[str, ...]) -> str:
    """Return a command line without the place where this machine has Python."""
    return " ".join("python3" if word == sys.executable else word for word in command)


def _dump_builds(dump: Dump, compiled: Compiled, listing: Listing, entry: str) -> None:
    dump.write("08-entry.c", entry)
    kernels = (compiled.kernels, *(variant.kernels for variant in compiled.variants))
    names = [variant.name for variant in compiled.variants]
    for build, own, calls in zip(of_builds(dump, names), kernels, listing.builds, strict=True):
        if build:
            build.arena(calls.arena, own)


def _kernels(
    programs: Sequence[LoweredProgram], listing: Listing, code_bytes: Mapping[str, int]
) -> list[tuple[Kernel, ...]]:
    """Say of each build's calls what they do, of what size the kernels are, and which constants they read first.

    Sizes that are not known are left out of `code_bytes`.
    """
    tensors, builds = {tensor.at: tensor.n_bytes for tensor in listing.tensors}, []
    for program, build in zip(programs, listing.builds, strict=True):
        seen, found = set[int](), []
        for call, info in zip(build.calls, program.calls, strict=True):
            constants = {place.at for place in call.inputs if place.kind == "constant"} - seen
            seen |= constants
            kernel = Kernel(
                symbol=call.kernel.symbol,
                code_bytes=code_bytes.get(call.kernel.symbol),
                constant_bytes=sum(tensors[at] for at in constants),
                parallel=call.kernel.turns > 0,
                **asdict(info),
            )
            found.append(kernel)
        builds.append(tuple(found))
    return builds


def compiled_of(
    programs: Sequence[LoweredProgram],
    target: Target,
    symbol: str,
    listing: Listing,
    loaded: link.LoadedBytes,
    code_bytes: Mapping[str, int],
) -> Compiled:
    """Describe a program.

    Args:
        programs: what the front half made, for each of the target's builds.
        target: what it is compiled for.
        symbol: C prefix of the program.
        listing: what it calls.
        loaded: what it takes in memory.
        code_bytes: of each kernel, by its symbol, where that is known.
    """
    program = programs[0]
    base, *others = _kernels(programs, listing, code_bytes)
    names = zip(target.variants, target.builds[1:], others, strict=True)
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
        arena_bytes=listing.arena_bytes,
        arena_lower_bound=listing.arena_lower_bound,
        kernels=base,
        fallbacks=program.fallbacks,
        integer_only=all(i.precision == "int8" or i.op in ("quantize", "dequantize") for i in program.calls),
        tool_versions=_tool_versions(target),
        precision="float16" if any(i.precision == "float16" for i in program.calls) else "float32",
        variants=tuple(KernelVariant(name, build.features, kernels) for name, build, kernels in names),
        threads=listing.threads,
        gpu="" if target.gpu is None else target.gpu.api,
    )


def _tool_versions(target: Target) -> tuple[str, ...]:
    import tvm
    import tvm_ffi

    llvm = tvm_ffi.get_global_func("target.llvm_version_major")()
    return f"apache-tvm {tvm.__version__}", f"LLVM {llvm}", link.compiler_version(target)
