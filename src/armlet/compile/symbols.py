"""What compiled objects may need of the system that they are linked for: a few functions of its C library and libm."""

from __future__ import annotations

from pathlib import Path

from armlet.compile.macho import is_macho, read_macho
from armlet.errors import ArmletError
from armlet.spec.target import Target

LIBC_SYMBOLS = frozenset({"memcpy", "memmove", "memset"})
THREADS_SYMBOLS = frozenset({
    "pthread_cond_broadcast", "pthread_cond_wait", "pthread_create", "pthread_join", "pthread_mutex_lock",
    "pthread_mutex_unlock", "pthread_sigmask", "sched_yield", "sigfillset",
})  # fmt: skip
"""What a program for several threads needs of POSIX."""
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
APPLE_LACKS = frozenset(
    f"{name}{suffix}" for suffix in ("", "f") for name in ("exp10", "roundeven", "sincos")
)
"""Functions of other systems' libm that Apple's does not have."""
APPLE_SYMBOLS = frozenset({"__exp10", "__exp10f", "__sincos_stret", "__sincosf_stret", "bzero"}) | {
    f"memset_pattern{n}" for n in (4, 8, 16)
}
"""Functions of Apple's libSystem, which LLVM calls there in the place of others."""
DRIVER_SYMBOLS = frozenset({"calloc", "dlclose", "dlopen", "dlsym", "free", "snprintf", "strstr"})
"""What the driver of an OpenCL program calls, beside `LIBC_SYMBOLS`."""
ARM32_SYMBOLS = frozenset({"__divdi3"})
"""Division of 64-bit integers, which 32-bit Arm has no instruction for: C compilers add it to what they link."""


def undefined_symbols(*files: Path) -> tuple[str, ...]:
    """Return the symbols that objects need and none of them defines, sorted."""
    defined: set[str] = set()
    needed: set[str] = set()
    for file in files:
        for name, is_defined in _symbols(file):
            (defined if is_defined else needed).add(name)
    return tuple(sorted(needed - defined))


def _symbols(file: Path) -> list[tuple[str, bool]]:
    """Return the symbols of an object, and whether it defines each."""
    from elftools.elf.elffile import ELFFile

    if is_macho(file):
        return [(symbol.name, symbol.section != 0) for symbol in read_macho(file).symbols]
    with file.open("rb") as stream:
        table = ELFFile(stream).get_section_by_name(".symtab")
        symbols = () if table is None else tuple(table.iter_symbols())
        return [(s.name, s["st_shndx"] != "SHN_UNDEF") for s in symbols if s.name]


def check_undefined(target: Target, *files: Path, extensions: bool = False, threads: bool = False) -> None:
    """Refuse objects that need more than memcpy, memset, libm and, in 32-bit code, the compiler's own division.

    With `extensions` they may ask which extensions the CPU has, with `threads` start some; the driver of an OpenCL
    program may load the system's library.

    Raises:
        ArmletError: they do; names the symbols.
    """
    known = LIBC_SYMBOLS | LIBM_SYMBOLS | {"_GLOBAL_OFFSET_TABLE_"}  # the linker makes the last
    if target.is_apple:
        known = (known - APPLE_LACKS) | APPLE_SYMBOLS
    known |= {EXTENSIONS_SYMBOL} if extensions else set()
    known |= THREADS_SYMBOLS if threads else set()
    known |= DRIVER_SYMBOLS if target.gpu is not None else set()
    if target.is_arm32:
        known |= ARM32_SYMBOLS
    unknown = sorted(set(undefined_symbols(*files)) - known)
    if unknown:
        raise ArmletError(
            f"the compiled program needs {', '.join(unknown)}, which no app has: "
            "a kernel uses something beyond memcpy, memset and libm"
        )
