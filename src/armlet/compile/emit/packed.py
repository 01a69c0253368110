"""Writes the same program with packed constants: a library that is smaller to store, and unpacks them where it is told.

Files below `packed/`: `lib<symbol>_packed.a`, `<symbol>_packed.h`, and in `src/` what it is made of. The plain library
reads its constants where they lie; this one needs memory for them, once for all calls.
"""

from __future__ import annotations

import struct
from pathlib import Path

from armlet.artifacts import PackedProgram
from armlet.compile import link
from armlet.compile.emit.calls import CallList
from armlet.compile.emit.entry import render_source, write_parameters
from armlet.compile.emit.templates import RUNTIME, render
from armlet.compile.lowered import LoweredProgram
from armlet.compile.memory import ALIGNMENT
from armlet.errors import UsageError
from armlet.spec.target import Target

PACKED_FOLDER = "packed"


def pack_constants(calls: CallList) -> bytes:
    """Return the constants of a program, packed: each with its offset, count, bytes of a value, and values."""
    import numpy as np

    from armlet.analysis.storage import pack

    parts = []
    for tensor in calls.tensors:
        data = calls.constants[tensor.at : tensor.at + tensor.n_bytes]
        values = np.frombuffer(data, f"<u{tensor.item_bytes}")
        parts.append(struct.pack("<IIB", tensor.at, len(values), tensor.item_bytes) + pack(values))
    return b"".join(parts)


def emit_packed(
    program: LoweredProgram, target: Target, symbol: str, calls: CallList, folder: Path
) -> PackedProgram:
    """Write `packed/` below `folder`, which has the plain program already.

    Raises:
        UsageError: the program has no constants.
        ArmletError: a tool fails.
    """
    if not calls.constants:
        raise UsageError("a program without constants has nothing to pack: leave package out")
    place, lib, plain = folder / PACKED_FOLDER, folder / "lib", folder / "src"
    src = place / "src"
    src.mkdir(parents=True, exist_ok=True)
    data = pack_constants(calls)
    values = {
        "symbol": symbol,
        "SYMBOL": symbol.upper(),
        "weights_bytes": str(len(calls.constants)),
        "alignment": str(ALIGNMENT),
        "n_tensors": str(len(calls.tensors)),
    }
    header = render(RUNTIME / "packed.h.in", place, values)
    header = header.rename(header.with_name(f"{symbol}_packed.h"))
    unpack = render(RUNTIME / "unpack.c.in", src, values)
    entry = src / f"{symbol}_unpacked.c"
    entry.write_text(
        render_source(symbol, program.inputs, program.outputs, calls, unpacked=True), encoding="utf-8"
    )
    parameters = write_parameters(f"{symbol}_packed", data, src)
    objects = [plain / f"{symbol}_kernels.o"]
    for source in (entry, unpack, parameters):
        objects.append(place / f"{source.stem}.o")
        link.compile_object(target, source, objects[-1], lib, place)
    whole = place / f"{symbol}_packed.o"
    link.link_relocatable(target, objects, whole, [f"{symbol}_unpack", f"{symbol}_run_unpacked"])
    link.check_undefined(whole)
    link.archive(target, whole, place / f"lib{symbol}_packed.a")
    loaded = link.loaded_bytes(whole)
    for made in (whole, *objects[1:]):
        made.unlink()
    return PackedProgram(len(data), len(calls.constants), loaded.code, loaded.constants)
