"""Runs the target's C compiler and archiver, and reads what they made.

Every command runs through `run_tool`, so that a failure shows the exact command. Flags make the output depend on
the input alone: no time stamps, no paths, no build identifiers.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from armlet.compile.macho import is_macho, read_macho
from armlet.errors import ArmletError, MissingDependency
from armlet.spec.target import Target

C_FLAGS = (
    "-std=c11", "-O2", "-fPIC", "-Wall", "-Wextra", "-Werror", "-pedantic",
    "-ffunction-sections", "-fdata-sections", "-fno-asynchronous-unwind-tables", "-fno-stack-protector",
)  # fmt: skip
"""How the C entry is compiled; it has no arrays, so a stack protector would only pull in a symbol."""
SHARED_FLAGS = ("-shared", "-Wl,-z,defs", "-Wl,--build-id=none", "-Wl,--as-needed")

RUNTIME = Path(__file__).parents[1] / "runtime"
"""Sources that ship in bundles."""
STUBS = ("libc.so", "libdl.so", "libm.so")
STUB_FLAGS = ("-shared", "-nostdlib", "-fno-builtin", "-w")
GPU_LIBRARIES = ("-ldl", "-lm")
"""The linker's names of the libraries that the driver of an OpenCL program needs."""
DISCARD_DEBUG = RUNTIME / "discard_debug.ld.in"
"""A linker script: zig's linker has no flag that strips an object."""

_DEBIAN_PACKAGES = {
    "gcc": "gcc libc6-dev",
    "cc": "gcc libc6-dev",
    "clang": "clang",
    "ar": "binutils",
    "aarch64-linux-gnu-gcc": "gcc-aarch64-linux-gnu libc6-dev-arm64-cross",
    "aarch64-linux-gnu-ar": "binutils-aarch64-linux-gnu",
    "arm-linux-gnueabihf-gcc": "gcc-arm-linux-gnueabihf libc6-dev-armhf-cross",
    "arm-linux-gnueabihf-ar": "binutils-arm-linux-gnueabihf",
}


class ToolFailed(ArmletError):
    """A compiler or an archiver failed; the message has the command and what it said."""


@dataclass(frozen=True, slots=True)
class LoadedBytes:
    """What an object takes in memory.

    Attributes:
        code: executable sections and unwind tables.
        constants: all other sections that are loaded: parameters and the kernels' literals.
    """

    code: int
    constants: int


def run_tool(command: Sequence[str], folder: Path, needed_for: str) -> str:
    """Run a program in `folder` and return what it printed.

    Raises:
        MissingDependency: there is no such program.
        ToolFailed: it exits with an error.
    """
    if shutil.which(command[0]) is None:
        raise MissingDependency(command[0], needed_for, install_command(command[0]))
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip()
        raise ToolFailed(
            f"{shlex.join(command)}\nfailed in {folder} with exit code {done.returncode}:\n{said}"
        )
    return done.stdout


def install_command(program: str) -> str:
    """Return what installs a program of a tool chain: a command for Debian's packages or Python's, else words."""
    if program == "ziglang":
        return "pip install 'ziglang>=0.17,<0.18'"
    packages = _DEBIAN_PACKAGES.get(program)
    if packages is None:
        return f"your system's package that has {program}, which the target's file names"
    return f"apt-get install {packages}"


def missing_tools(target: Target) -> tuple[str, ...]:
    """Return what of the target's tool chain this machine lacks."""
    tools = target.toolchain
    if tools.zig is not None:
        return () if find_spec("ziglang") is not None else ("ziglang",)
    return tuple(tool for tool in (tools.cc, tools.ar) if tool is not None and shutil.which(tool) is None)


def compiler(target: Target) -> tuple[str, ...]:
    """Return the words of a command line that call the target's C compiler.

    Raises:
        MissingDependency: it is zig's, and the package ziglang is not installed.
    """
    tools = target.toolchain
    return _zig("cc", "-target", tools.zig) if tools.zig is not None else (str(tools.cc),)


def archiver(target: Target) -> tuple[str, ...]:
    """Return the words of a command line that call the target's archiver; as `compiler`."""
    tools = target.toolchain
    return _zig("ar") if tools.zig is not None else (str(tools.ar),)


def _zig(*arguments: str) -> tuple[str, ...]:
    if find_spec("ziglang") is None:
        raise MissingDependency("ziglang", "compiling for the target", install_command("ziglang"))
    return (sys.executable, "-m", "ziglang", *arguments)


def _zig_folder() -> Path:
    found = find_spec("ziglang")
    if found is None or found.origin is None:
        raise MissingDependency("ziglang", "compiling for the target", install_command("ziglang"))
    return Path(found.origin).parent


def compiler_version(target: Target) -> str:
    """Return the version of the target's C compiler in one line."""
    if target.toolchain.zig is None:
        words = [*compiler(target), "--version"]
        return run_tool(words, Path.cwd(), "compiling for the target").splitlines()[0].strip()
    return f"zig {run_tool(_zig('version'), Path.cwd(), 'compiling for the target').strip()}"


def c_flags(target: Target) -> tuple[str, ...]:
    """Return how the target's compiler compiles the C entry; zig's adds debug information and unwind tables."""
    if target.toolchain.zig is None:
        return C_FLAGS
    # Zig's compiler is LLVM's, whose flaw `emit.kernels.llvm_target` speaks of.
    further = ("-mllvm", "-arm-load-store-opt=0") if target.is_arm32 else ()
    if target.is_apple:  # zig finds Apple's C headers by itself for macOS only
        further = ("-isystem", str(_zig_folder() / "lib" / "libc" / "include" / "any-darwin-any"))
    return (*C_FLAGS, "-g0", "-fno-unwind-tables", *further)


def thread_flags(target: Target) -> tuple[str, ...]:
    """Return what is added to those for C that has atomic operations: GCC would call its library for them."""
    return ("-mno-outline-atomics",) if target.resolved_triple.startswith("aarch64") else ()


def compile_threads(target: Target, source: Path, output: Path, *include: Path) -> None:
    """Compile the C file that has a program's threads share work."""
    compile_object(target, source, output, *include, flags=thread_flags(target))


def compile_object(
    target: Target, source: Path, output: Path, *include: Path, flags: Sequence[str] = ()
) -> None:
    """Compile one C or assembler file; warnings are errors."""
    # Run in the source's folder with bare names: the object then holds no path, and .incbin finds its file.
    folders = [f"-I{folder}" for folder in include]
    command = [
        *compiler(target), *c_flags(target), *flags, *folders, "-c", source.name, "-o", str(output)
    ]  # fmt: skip
    run_tool(command, source.parent, "compiling C for the target")


def relocatable_flags(target: Target, roots: Sequence[str], script: str = "") -> tuple[str, ...]:
    """Return the compiler's flags for linking objects into one that keeps only what `roots` reach.

    Args:
        target: names the compiler.
        roots: symbols.
        script: path of `DISCARD_DEBUG`, which zig's linker is given.
    """
    strip = "-S" if target.toolchain.zig is None else f"-T,{script}"
    return ("-r", "-nostdlib", ",".join([f"-Wl,{strip},--gc-sections", *(f"-u,{root}" for root in roots)]))


def link_relocatable(
    target: Target, objects: Sequence[Path], output: Path, roots: Sequence[str]
) -> tuple[Path, ...]:
    """Link objects into one, without what no root reaches and without debug information; return what a library holds.

    For Apple's systems those are the objects as they came: an app's linker drops what it does not reach.
    """
    if target.is_apple:
        return tuple(objects)
    # All paths are absolute, and none enters the result.
    flags = relocatable_flags(target, roots, str(DISCARD_DEBUG))
    command = [*compiler(target), *flags, *map(str, objects), "-o", str(output)]
    run_tool(command, output.parent, "linking")
    return (output,)


def archive(target: Target, members: Sequence[Path], output: Path) -> None:
    """Write a static library of objects, without time stamps or owners."""
    output.unlink(missing_ok=True)
    form = ("--format=darwin",) if target.is_apple else ()
    command = [*archiver(target), "rcsD", *form, str(output), *map(str, members)]
    run_tool(command, output.parent, "writing a static library")


def needs_stubs(target: Target) -> bool:
    """Say whether shared libraries are linked with stubs of Android's libraries, which zig does not have."""
    return target.is_android and target.toolchain.zig is not None


def shared_flags(target: Target) -> tuple[str, ...]:
    """Return the compiler's flags for linking a shared library."""
    flags = list(SHARED_FLAGS)
    if target.toolchain.zig is not None:
        flags.append("-O2")  # zig brings its own division and the like, without it unoptimised and whole
    if needs_stubs(target):
        flags += ["-nostdlib", "-rtlib=compiler-rt"]
    if target.is_android and not target.is_arm32:
        flags.append("-Wl,-z,max-page-size=16384")  # what Android 15 loads where pages have 16 KiB
    return tuple(flags)


def libraries(threads: int) -> tuple[str, ...]:
    """Return the linker's names of the libraries that a program needs."""
    return ("-lm", "-lpthread") if threads > 1 else ("-lm",)


def link_shared(target: Target, member: Path, output: Path, libraries: Sequence[str] = ("-lm",)) -> None:
    """Link a shared library that leaves no symbol undefined but libc's and those of libraries."""
    with TemporaryDirectory(prefix="armlet-stubs-") as scratch:
        named = _stubs(target, Path(scratch)) if needs_stubs(target) else libraries
        command = [
            *compiler(target), *shared_flags(target), f"-Wl,-soname,{output.name}", member.name, *named,
            "-s", "-o", str(output),
        ]  # fmt: skip
        run_tool(command, member.parent, "linking")


def _stubs(target: Target, folder: Path) -> list[str]:
    """Build the stubs of Android's libraries; return their paths."""
    for stub in STUBS:
        source = (folder / stub).with_suffix(".c")
        shutil.copyfile(RUNTIME / f"bionic_{source.name}.in", source)
        command = [*compiler(target), *STUB_FLAGS, f"-Wl,-soname,{stub}", source.name, "-o", stub]
        run_tool(command, folder, "linking")
    return [str(folder / stub) for stub in STUBS]


def program_flags(target: Target) -> tuple[str, ...]:
    """Return the compiler's flags for a whole program; static where it runs under emulation."""
    # A static program needs no sysroot under emulation, and its addresses are those of its symbol table.
    static = () if target.is_native else ("-static",)
    plain = (
        () if target.toolchain.zig is None else ("-Wl,-S",)
    )  # debug information has paths, zig's own among them
    return (
        "-std=c11",
        "-O2",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-pedantic",
        "-Wl,--build-id=none",
        *static,
        *plain,
    )


def link_program(
    target: Target,
    source: Path,
    library: Path,
    include: Path,
    output: Path,
    libraries: Sequence[str] = ("-lm",),
) -> None:
    """Compile one C file and link it with a static library, and with others, to a program."""
    command = [
        *compiler(target), *program_flags(target), "-I", str(include), source.name, str(library), *libraries,
        "-o", str(output),
    ]  # fmt: skip
    run_tool(command, source.parent, "linking")


def loaded_bytes(*files: Path) -> LoadedBytes:
    """Return what the loaded sections of objects take; alignment between them isn't counted."""
    found = [_loaded_bytes(file) for file in files]
    return LoadedBytes(sum(each.code for each in found), sum(each.constants for each in found))


def _loaded_bytes(file: Path) -> LoadedBytes:
    from elftools.elf.constants import SH_FLAGS
    from elftools.elf.elffile import ELFFile

    if is_macho(file):
        loaded = [section for section in read_macho(file).sections if section.is_loaded]
        code = sum(section.size for section in loaded if section.is_code)
        return LoadedBytes(code, sum(section.size for section in loaded) - code)
    code = constants = 0
    with file.open("rb") as stream:
        for section in ELFFile(stream).iter_sections():
            flags = section["sh_flags"]
            if not flags & SH_FLAGS.SHF_ALLOC:
                continue
            if flags & SH_FLAGS.SHF_EXECINSTR or section.name.startswith((".eh_frame", ".ARM.ex")):
                code += section["sh_size"]
            else:
                constants += section["sh_size"]
    return LoadedBytes(code, constants)


def symbol_bytes(*files: Path) -> dict[str, int]:
    """Return the bytes of each function that objects define, by its name."""
    return {name: size for file in files for name, size in _symbol_bytes(file).items()}


def _symbol_bytes(file: Path) -> dict[str, int]:
    from elftools.elf.elffile import ELFFile

    if is_macho(file):
        return read_macho(file).symbol_bytes()
    with file.open("rb") as stream:
        table = ELFFile(stream).get_section_by_name(".symtab")
        symbols = () if table is None else tuple(table.iter_symbols())
        return {s.name: s["st_size"] for s in symbols if s["st_info"]["type"] == "STT_FUNC"}
