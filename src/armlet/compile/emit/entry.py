"""Writes the C entry of a program: header, source, parameters.

The entry is a straight list of calls over the caller's inputs, outputs and arena. It has no state, takes nothing from
the heap, and is C11 that compiles without warnings under `-Wall -Wextra -pedantic`. A call whose work is parted among
threads goes by way of a function that computes one part, which `runtime/threads.c.in` calls.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from types import MappingProxyType

import armlet
from armlet import digest
from armlet.artifacts import TensorInfo
from armlet.compile.emit.calls import CallList, Listing
from armlet.compile.emit.parts import expression, parts, share, take, threads_header
from armlet.compile.link import libraries
from armlet.compile.memory import ALIGNMENT
from armlet.errors import UsageError
from armlet.spec.target import Target, Variant

BASE = "base"
"""Name of the build that needs nothing beyond the target's own features."""

_TESTS: Mapping[Variant, str] = MappingProxyType(
    {
        "dotprod": "(getauxval(AT_HWCAP) & (1ul << 20)) != 0",
        "i8mm": "(getauxval(AT_HWCAP2) & (1ul << 13)) != 0",
    }
)
"""How C asks Linux for an extension: HWCAP_ASIMDDP and HWCAP2_I8MM of arch/arm64/include/uapi/asm/hwcap.h."""

_C_TYPES = {"float32": "float", "int8": "int8_t", "uint8": "uint8_t", "int32": "int32_t", "int64": "int64_t"}


_TAKEN = frozenset({
    "runner", "main", "c", "m", "dl", "rt", "gcc", "pthread", "assert", "complex", "ctype", "errno",
    "features", "fenv", "float", "inttypes", "iso646", "limits", "locale", "math", "setjmp", "signal",
    "stdalign", "stdarg", "stdatomic", "stdbool", "stddef", "stdint", "stdio", "stdlib", "stdnoreturn",
    "string", "tgmath", "threads", "time", "uchar", "unistd", "wchar", "wctype",
})  # fmt: skip
"""Names whose `<name>.h`, `lib<name>` or `<name>.c` would hide one of the C library's, or one beside it in a bundle."""


def check_symbol(symbol: str) -> None:
    """Refuse a prefix that can't begin C identifiers, or whose files would hide others.

    Raises:
        UsageError: it isn't lower case letters, digits and underscores after a letter, or it is taken.
    """
    if symbol in _TAKEN:
        raise UsageError(
            f"{symbol!r} can't be a program's name: its files would hide the C library's or the bundle's own"
        )
    if not re.fullmatch(r"[a-z][a-z0-9_]*", symbol):
        raise UsageError(
            f"{symbol!r} can't be a program's name in C: use lower-case letters, digits and underscores after a letter"
        )


def entries(symbol: str, listing: Listing, run: str = "run") -> list[str]:
    """Return the names of the C functions that an app calls."""
    threads = [f"{symbol}_start", f"{symbol}_stop"] if listing.threads > 1 else []
    return [f"{symbol}_{run}", *([f"{symbol}_variant"] if listing.variants else []), *threads]


def render_header(symbol: str, listing: Listing, *, shared: bool = True) -> str:
    """Return the header that an app includes; `shared` says whether there is a shared library, too."""
    inputs, outputs, parallel = listing.inputs, listing.outputs, listing.threads > 1
    needed = " ".join(libraries(listing.threads))
    builds = ", ".join(f'"{name}"' for name in (BASE, *listing.variants))
    variant = _VARIANT_HEADER.substitute(
        symbol=symbol, SYMBOL=symbol.upper(), n=len(listing.builds), builds=builds
    )
    return _HEADER.substitute(
        symbol=symbol,
        SYMBOL=symbol.upper(),
        version=armlet.__version__,
        linked=f"lib{symbol}.a (and {needed}) or lib{symbol}.so" if shared else f"lib{symbol}.a",
        inputs=describe("inputs", inputs),
        outputs=describe("outputs", outputs),
        arena_bytes=listing.arena_bytes,
        alignment=ALIGNMENT,
        variant=variant if listing.variants else "",
        threads=threads_header(symbol, listing.threads) if parallel else "",
        state="" if parallel else " and has no state",
        tensors="\n".join(defines(symbol, "INPUT", inputs) + defines(symbol, "OUTPUT", outputs)),
    )


def render_source(symbol: str, listing: Listing, *, unpacked: bool = False) -> str:
    """Return the C source of `<symbol>_run`, or of `<symbol>_run_unpacked`, which is given its constants."""
    prototypes = {}
    for call in (call for build in listing.builds for call in build.calls):
        arguments = ["const void *"] * len(call.inputs) + ["void *"] * len(call.outputs)
        arguments += ["int32_t", "int32_t"] if call.kernel.turns else []
        prototypes[call.kernel.symbol] = f"HIDDEN void {call.kernel.symbol}({', '.join(arguments)});"
    parameters = f"HIDDEN extern const unsigned char {symbol}_params[];\n" if listing.constants else ""
    weights = _WEIGHTS.substitute(symbol=symbol, SYMBOL=symbol.upper())
    n_inputs, n_outputs = len(listing.inputs), len(listing.outputs)
    parted = any(call.kernel.turns for build in listing.builds for call in build.calls)
    return _SOURCE.substitute(
        symbol=symbol,
        header=f"{symbol}_packed.h" if unpacked else f"{symbol}.h",
        function=f"{symbol}_run_unpacked" if unpacked else f"{symbol}_run",
        first="const void *weights, " if unpacked else "",
        weights=weights if unpacked else "",
        share=f'#include "{symbol}_threads.h"\n' if parted else "",
        auxv="#include <sys/auxv.h>\n" if listing.variants else "",
        prototypes="\n".join(prototypes[name] for name in sorted(prototypes)),
        parameters="" if unpacked else parameters,
        variant=_variant(symbol, listing.variants) if listing.variants else "",
        parts=parts(symbol, listing, unpacked=unpacked) if parted else "",
        take=take(symbol, listing, unpacked=unpacked) if parted else "",
        give_back=f"    {symbol}_give_back(threads);\n" if parted else "",
        arena=_ARENA.substitute(SYMBOL=symbol.upper()) if listing.arena_bytes else _NO_ARENA,
        null_checks=" || ".join(
            [f"inputs[{i}] == NULL" for i in range(n_inputs)]
            + [f"outputs[{i}] == NULL" for i in range(n_outputs)]
        ),
        body="\n".join(_body(symbol, listing)),
    )


def _body(symbol: str, listing: Listing) -> list[str]:
    """Return the lines that run the program, by the build that the CPU has the extensions for."""
    base, *others = listing.builds
    if not others:
        return [f"    {line}" for line in _calls(symbol, base, 0, listing.threads)]
    lines = ["    switch (variant()) {"]
    for number, build in enumerate(others, 1):
        lines += [
            f"    case {number}:",
            *(f"        {line}" for line in _calls(symbol, build, number, listing.threads)),
            "        break;",
        ]
    return [
        *lines,
        "    default:",
        *(f"        {line}" for line in _calls(symbol, base, 0, listing.threads)),
        "    }",
    ]


def _calls(symbol: str, build: CallList, number: int, threads: int) -> list[str]:
    lines = []
    for at, call in enumerate(build.calls):
        if call.kernel.turns:
            lines.append(share(symbol, f"part_{number}_{at}", call, threads))
            continue
        arguments = [expression(symbol, place) for place in (*call.inputs, *call.outputs)]
        lines.append(f"{call.kernel.symbol}({', '.join(arguments)});")
    for copy in build.copies:
        places = [expression(symbol, place) for place in (copy.output, copy.source)]
        lines.append(f"memcpy({', '.join(places)}, {copy.n_bytes}u);")
    return lines


def _variant(symbol: str, variants: Sequence[Variant]) -> str:
    """Return the C functions that say which build the CPU has the extensions for."""
    tests = [
        f"    if ({' && '.join(_TESTS[v] for v in variants[:n])})\n        return {n};"
        for n in range(len(variants), 0, -1)
    ]
    names = "".join(f'    case {n}:\n        return "{v}";\n' for n, v in enumerate(variants, 1))
    return _VARIANT.substitute(symbol=symbol, tests="\n".join(tests), names=names, base=BASE)


def write_block(name: str, data: bytes, folder: Path, target: Target, suffix: str = ".bin") -> Path:
    """Write constants into a file of a name, and the assembler file that includes it under it; return the latter.

    It is written for the target's assembler.
    """
    (folder / f"{name}{suffix}").write_bytes(data)
    source = folder / f"{name}.S"
    text = (_APPLE_BLOCK if target.is_apple else _BLOCK).substitute(
        name=name, suffix=suffix, n_bytes=len(data), alignment=ALIGNMENT, sha256=digest.of_bytes(data)
    )
    source.write_text(text, encoding="utf-8")
    return source


def describe(what: str, tensors: Sequence[TensorInfo]) -> str:
    """Return the lines of a header's comment that say what inputs or outputs are."""
    lines = []
    for i, tensor in enumerate(tensors):
        shape = " x ".join(map(str, tensor.shape)) or "scalar"
        lines.append(f" *   {what}[{i}]  {_c_text(tensor.name)}: {_C_TYPES[tensor.dtype]}, shape {shape}")
        if tensor.scale is not None:
            lines.append(
                f" *       inside the program INT8: value = {tensor.scale!r} * (q - {tensor.zero_point})"
            )
    return "\n".join(lines)


def _c_text(name: str) -> str:
    """Return a name from an ONNX file in a form that can't end a C comment."""
    return re.sub(r"[^A-Za-z0-9_.:/-]", "_", name).replace("*/", "__").replace("/*", "__")


def defines(symbol: str, what: str, tensors: Sequence[TensorInfo]) -> list[str]:
    """Return the lines of a header that give types and sizes of inputs or outputs."""
    prefix = f"{symbol.upper()}_{what}"
    lines = [f"#define {prefix}_COUNT {len(tensors)}"]
    for i, tensor in enumerate(tensors):
        elements = 1
        for extent in tensor.shape:
            elements *= extent
        lines += [
            f"#define {prefix}_{i}_TYPE {_C_TYPES[tensor.dtype]}",
            f"#define {prefix}_{i}_ELEMENTS {elements}u",
            f"#define {prefix}_{i}_BYTES {tensor.n_bytes}u",
        ]
    sizes = ", ".join(f"{prefix}_{i}_BYTES" for i in range(len(tensors)))
    return [*lines, f"#define {prefix}_SIZES {{{sizes}}} /* bytes of each */"]


_HEADER = Template("""\
/* $symbol: a neural network compiled by armlet $version. Written by a program: do not edit.
 *
 * Link $linked; nothing else is needed.
 *
$inputs
$outputs
 */
#ifndef ${SYMBOL}_H
#define ${SYMBOL}_H

#include <stdint.h>

#define ${SYMBOL}_COMPILER "armlet $version"

/* Working memory for one call: the caller provides it, aligned, and may reuse it once the call is over. */
#define ${SYMBOL}_ARENA_BYTES ${arena_bytes}u
#define ${SYMBOL}_ARENA_ALIGN ${alignment}u

$tensors

#if defined(__GNUC__)
#define ${SYMBOL}_API __attribute__((visibility("default")))
#else
#define ${SYMBOL}_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Runs the network once, on one sample.
 *
 * inputs   ${SYMBOL}_INPUT_COUNT pointers, each to that input's values, row-major; only read.
 * outputs  ${SYMBOL}_OUTPUT_COUNT pointers, each to room for that output's values. Outputs must not overlap
 *          each other, an input or the arena.
 * arena    ${SYMBOL}_ARENA_BYTES bytes aligned to ${SYMBOL}_ARENA_ALIGN; may be NULL if that is 0. What it holds
 *          before and after a call is of no meaning.
 *
 * Inputs and outputs need the alignment of their type only. Returns 0 if it ran, 1 if a pointer is NULL, 2 if the
 * arena is not aligned. Takes nothing from the heap$state: any number of threads may call it at the same
 * time, each with outputs and an arena of its own.
 */
${SYMBOL}_API int ${symbol}_run(const void *const inputs[], void *const outputs[], void *arena);
$variant$threads
#ifdef __cplusplus
}
#endif

#endif
""")

_SOURCE = Template("""\
/* Entry of $symbol. Written by a program: do not edit. */
#include "$header"
$share
#include <stddef.h>
#include <string.h>
$auxv
#if defined(__GNUC__)
#define HIDDEN __attribute__((visibility("hidden")))
#else
#define HIDDEN
#endif

$prototypes
$parameters$variant$parts
int ${function}(${first}const void *const inputs[], void *const outputs[], void *arena)
{
${weights}    if (inputs == NULL || outputs == NULL)
        return 1;
    if ($null_checks)
        return 1;
$arena
$take$body
$give_back    return 0;
}
""")

_VARIANT_HEADER = Template("""\

/* The library has $n builds of its kernels: $builds.
 * Each call takes the last one whose instructions the CPU has, all with the same results; this says which. */
#define ${SYMBOL}_VARIANT_COUNT ${n}
${SYMBOL}_API const char *${symbol}_variant(void);
""")

_VARIANT = Template("""\

/* Which build of the kernels: its last extension is one that Linux tells of, and so are those before it. */
static int variant(void)
{
$tests
    return 0;
}

const char *${symbol}_variant(void)
{
    switch (variant()) {
$names    default:
        return "$base";
    }
}
""")

_ARENA = Template("""\
    if (arena == NULL)
        return 1;
    if ((uintptr_t)arena % ${SYMBOL}_ARENA_ALIGN != 0)
        return 2;
    unsigned char *const base = (unsigned char *)arena;
""")

_WEIGHTS = Template("""\
    if (weights == NULL)
        return 1;
    if ((uintptr_t)weights % ${SYMBOL}_WEIGHTS_ALIGN != 0)
        return 2;
    const unsigned char *const ${symbol}_params = (const unsigned char *)weights;
""")

_NO_ARENA = """\
    (void)arena;
"""

_BLOCK_HEAD = """\
/* Constants of a program: $name. Written by a program: do not edit.
 * Their SHA-256 stands here for zig, which takes what it compiled before where this file is the same:
 * $sha256 */
"""

_BLOCK = Template(
    _BLOCK_HEAD
    + """\
    .section .rodata.${name},"a",%progbits
    .balign $alignment
    .globl ${name}
    .hidden ${name}
    .type ${name}, %object
    .size ${name}, $n_bytes
${name}:
    .incbin "${name}${suffix}"
    .section .note.GNU-stack,"",%progbits
"""
)

_APPLE_BLOCK = Template(
    _BLOCK_HEAD
    + """\
    .section __TEXT,__const
    .balign $alignment
    .globl _${name}
    .private_extern _${name}
_${name}:
    .incbin "${name}${suffix}"
    .subsections_via_symbols
"""
)
