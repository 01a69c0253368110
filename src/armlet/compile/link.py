"""Runs the target's C compiler and archiver, and reads what they made.

Every command runs through `run_tool`, so that a failure shows the exact command. Flags make the output depend on
the input alone: no time stamps, no paths, no build identifiers.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from armlet.errors import ArmletError, MissingDependency
from armlet.spec.target import Target

C_FLAGS = (
    "-std=c11", "-O2", "-fPIC", "-Wall", "-Wextra", "-Werror", "-pedantic",
    "-ffunction-sections", "-fdata-sections", "-fno-asynchronous-unwind-tables", "-fno-stack-protector",
)  # fmt: skip
"""How the C entry is compiled; it has no arrays, so a stack protector would only pull in a symbol."""
SHARED_FLAGS = ("-shared", "-Wl,-z,defs", "-Wl,--build-id=none", "-Wl,--as-needed")

_PACKAGES = {"gcc": "gcc", "cc": "gcc", "clang": "clang", "ar": "binutils"}
_CROSS = "aarch64-linux-gnu-"

LIBC_SYMBOLS = frozenset({"memcpy", "memmove", "memset"})
EXTENSIONS_SYMBOL = "getauxval"
"""The function of Linux's and Android's C libraries that tells which extensions the CPU has."""
LIBM_SYMBOLS = frozenset(
    f"{name}{suffix}"
    for suffix in ("", "f")
    for name in (
        "acos", "acosh", "asin", "asinh", "atan", "atan2", "atanh", "cbrt", "ceil", "cos", "cosh", "erf", "exp",
        "exp10", "exp2", "expm1", "fabs", "floor", "fma", "fmax", "fmin", "fmod", "hypot", "ldexp", "log", "log10",
        "log1p", "log2", "lrint", "nearbyint", "nextafter", "pow", "remainder", "rint", "round", "roundeven", "sin",
        "sincos", "sinh", "sqrt", "tan", "tanh", "trunc",
    )
)  # fmt: skip


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
        raise MissingDependency(command[0], needed_for, _install_command(command[0]))
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip()
        raise ToolFailed(
            f"{shlex.join(command)}\nfailed in {folder} with exit code {done.returncode}:\n{said}"
        )
    return done.stdout


def tool_version(program: str) -> str:
    """Return the first line of the program's `--version`."""
    return run_tool([program, "--version"], Path.cwd(), "compiling for the target").splitlines()[0].strip()


def compile_object(target: Target, source: Path, output: Path, *include: Path) -> None:
    """Compile one C or assembler file; warnings are errors."""
    # Run in the source's folder with bare names: the object then holds no path, and .incbin finds its file.
    folders = [f"-I{folder}" for folder in include]
    command = [target.toolchain.cc, *C_FLAGS, *folders, "-c", source.name, "-o", str(output)]
    run_tool(command, source.parent, "compiling C for the target")


def relocatable_flags(roots: Sequence[str]) -> tuple[str, ...]:
    """Return the compiler's flags for linking objects into one that keeps only what `roots` reach."""
    return ("-r", "-nostdlib", ",".join(["-Wl,-S,--gc-sections", *(f"-u,{root}" for root in roots)]))


def link_relocatable(target: Target, objects: Sequence[Path], output: Path, roots: Sequence[str]) -> None:
    """Link objects into one: drops what no root reaches, and debug information."""
    # All paths are absolute, and none enters the result.
    command = [target.toolchain.cc, *relocatable_flags(roots), *map(str, objects), "-o", str(output)]
    run_tool(command, output.parent, "linking")


def archive(target: Target, member: Path, output: Path) -> None:
    """Write a static library of one object, without time stamps or owners."""
    output.unlink(missing_ok=True)
    run_tool(
        [target.toolchain.ar, "rcsD", str(output), member.name], member.parent, "writing a static library"
    )


def link_shared(target: Target, member: Path, output: Path) -> None:
    """Link a shared library that leaves no symbol undefined but libc's and libm's."""
    command = [
        target.toolchain.cc, *SHARED_FLAGS, f"-Wl,-soname,{output.name}", member.name, "-lm", "-s", "-o", str(output),
    ]  # fmt: skip
    run_tool(command, member.parent, "linking")


def program_flags(target: Target) -> tuple[str, ...]:
    """Return the compiler's flags for a whole program; static where it runs under emulation."""
    # A static program needs no sysroot under emulation, and its addresses are those of its symbol table.
    static = () if target.is_native else ("-static",)
    return ("-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-pedantic", "-Wl,--build-id=none", *static)


def link_program(target: Target, source: Path, library: Path, include: Path, output: Path) -> None:
    """Compile one C file and link it with a static library to a program."""
    command = [
        target.toolchain.cc, *program_flags(target), "-I", str(include), source.name, str(library), "-lm",
        "-o", str(output),
    ]  # fmt: skip
    run_tool(command, source.parent, "linking")


def loaded_bytes(file: Path) -> LoadedBytes:
    """Return what the loaded sections of an object take; alignment between them isn't counted."""
    from elftools.elf.constants import SH_FLAGS
    from elftools.elf.elffile import ELFFile

    code = constants = 0
    with file.open("rb") as stream:
        for section in ELFFile(stream).iter_sections():
            flags = section["sh_flags"]
            if not flags & SH_FLAGS.SHF_ALLOC:
                continue
            if flags & SH_FLAGS.SHF_EXECINSTR or section.name.startswith(".eh_frame"):
                code += section["sh_size"]
            else:
                constants += section["sh_size"]
    return LoadedBytes(code, constants)


def undefined_symbols(file: Path) -> tuple[str, ...]:
    """Return the symbols that an object needs from elsewhere, sorted."""
    from elftools.elf.elffile import ELFFile

    with file.open("rb") as stream:
        table = ELFFile(stream).get_section_by_name(".symtab")
        symbols = () if table is None else tuple(table.iter_symbols())
        return tuple(sorted({s.name for s in symbols if s["st_shndx"] == "SHN_UNDEF" and s.name}))


def check_undefined(file: Path, *, extensions: bool = False) -> None:
    """Refuse an object that needs more than memcpy, memset and libm, and getauxval if it looks for `extensions`.

    Raises:
        ArmletError: it does; names the symbols.
    """
    allowed = {"_GLOBAL_OFFSET_TABLE_", *LIBC_SYMBOLS, *LIBM_SYMBOLS}  # the first is the linker's own
    allowed |= {EXTENSIONS_SYMBOL} if extensions else set()
    unknown = sorted(set(undefined_symbols(file)) - allowed)
    if unknown:
        raise ArmletError(
            f"the compiled program needs {', '.join(unknown)}, which no app has: "
            "a kernel uses something beyond memcpy, memset and libm"
        )


def _install_command(program: str) -> str:
    if program.startswith(_CROSS):
        tool = program.removeprefix(_CROSS)
        return f"apt install {'gcc' if tool == 'gcc' else 'binutils'}-aarch64-linux-gnu"
    package = _PACKAGES.get(program)
    return f"apt install {package}" if package else "your system's package manager (toolchain of the target)"
