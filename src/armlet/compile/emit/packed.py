"""Writes the same program with packed constants: a library that is smaller to store, and unpacks them where it is told.

Files below `packed/`: `lib<symbol>_packed.a`, `<symbol>_packed.h`, and in `src/` what it is made of. The plain library
reads its constants where they lie; this one needs memory for them, once for all calls.
"""

from __future__ import annotations

import struct
from pathlib import Path
from tempfile import TemporaryDirectory

from armlet.artifacts import PackedProgram
from armlet.compile import link, symbols
from armlet.compile.emit.calls import Listing
from armlet.compile.emit.entry import entries, render_source, write_block
from armlet.compile.emit.templates import render
from armlet.compile.memory import ALIGNMENT
from armlet.errors import UsageError
from armlet.spec.target import Target

PACKED_FOLDER = "packed"


def pack_constants(listing: Listing) -> bytes:
    """Return the constants of a program, packed: each with its offset, count, bytes of a value, and values."""
    import numpy as np

    from armlet.analysis.storage import pack

    parts = []
    for tensor in listing.tensors:
        data = listing.constants[tensor.at : tensor.at + tensor.n_bytes]
        values = np.frombuffer(data, f"<u{tensor.item_bytes}")
        parts.append(struct.pack("<IIB", tensor.at, len(values), tensor.item_bytes) + pack(values))
    return b"".join(parts)


def emit_packed(target: Target, symbol: str, listing: Listing, folder: Path) -> PackedProgram:
    """Write `packed/` below `folder`, which has the plain program already.

    Raises:
        UsageError: the program has no constants.
        ArmletError: a tool fails.
    """
    if not listing.constants:
        raise UsageError("a program without constants has nothing to pack: leave package out")
    place, lib, plain = folder / PACKED_FOLDER, folder / "lib", folder / "src"
    src = place / "src"
    src.mkdir(parents=True, exist_ok=True)
    data = pack_constants(listing)
    values = {
        "symbol": symbol,
        "SYMBOL": symbol.upper(),
        "weights_bytes": str(len(listing.constants)),
        "alignment": str(ALIGNMENT),
        "n_tensors": str(len(listing.tensors)),
        "libraries": " ".join(link.libraries(listing.threads)),
    }
    header = render(link.RUNTIME / "packed.h.in", place, values)
    header = header.rename(header.with_name(f"{symbol}_packed.h"))
    unpack = render(link.RUNTIME / "unpack.c.in", src, values)
    entry = src / f"{symbol}_unpacked.c"
    entry.write_text(render_source(symbol, listing, unpacked=True), encoding="utf-8")
    parameters = write_block(f"{symbol}_packed_params", data, src, target)
    roots = [f"{symbol}_unpack", *entries(symbol, listing, "run_unpacked")]
    with TemporaryDirectory(prefix="armlet-link-") as scratch:
        work = Path(scratch)
        objects = sorted(plain.glob(f"{symbol}_*kernels.o"))
        for source in (entry, unpack, parameters):
            objects.append(work / f"{source.stem}.o")
            link.compile_object(target, source, objects[-1], lib, place, plain)
        if listing.threads > 1:
            objects.append(work / f"{symbol}_threads.o")
            link.compile_threads(target, plain / f"{symbol}_threads.c", objects[-1], lib)
        members = link.link_relocatable(target, objects, work / f"{symbol}_packed.o", roots)
        extensions, threads = bool(listing.variants), listing.threads > 1
        symbols.check_undefined(target, *members, extensions=extensions, threads=threads)
        link.archive(target, members, place / f"lib{symbol}_packed.a")
        loaded = link.loaded_bytes(*members)
    return PackedProgram(len(data), len(listing.constants), loaded.code, loaded.constants)
