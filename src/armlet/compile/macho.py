"""Reads Mach-O object files, the form of Apple's systems: sections, symbols, what they take in memory.

Source: Apple's `mach-o/loader.h` and `mach-o/nlist.h`. Read are 64-bit little-endian objects, such as compilers make
of one source. Symbols are given as C names them, without the underscore that stands before each in the file.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from armlet.errors import ArmletError

MAGIC = bytes.fromhex("cffaedfe")
"""The first bytes of a 64-bit little-endian object (MH_MAGIC_64)."""
ARM64 = 0x0100000C
"""CPU_TYPE_ARM64."""

_HEADER = struct.Struct("<7I4x")  # mach_header_64
_SEGMENT = struct.Struct("<8x16s4Q2i2I")  # segment_command_64
_SECTION = struct.Struct("<16s16s2Q5I12x")  # section_64
_SYMBOL_TABLE = struct.Struct("<8x4I")  # symtab_command
_SYMBOL = struct.Struct("<I2BHQ")  # nlist_64
_LC_SYMTAB, _LC_SEGMENT_64, _LC_BUILD_VERSION = 0x02, 0x19, 0x32
_S_ATTR_DEBUG, _S_ATTR_INSTRUCTIONS = 0x02000000, 0x80000400
_N_STAB, _N_EXT, _N_TYPE, _N_SECT = 0xE0, 0x01, 0x0E, 0x0E


@dataclass(frozen=True, slots=True)
class Section:
    """One section; `name` is "segment,section", `alignment` in bytes."""

    name: str
    address: int
    size: int
    alignment: int
    flags: int

    @property
    def is_loaded(self) -> bool:
        """Whether it is part of what a program takes in memory."""
        return not self.flags & _S_ATTR_DEBUG

    @property
    def is_code(self) -> bool:
        """Whether it holds instructions, or what unwinds them."""
        return bool(self.flags & _S_ATTR_INSTRUCTIONS) or self.name.endswith(("_unwind", "__eh_frame"))


@dataclass(frozen=True, slots=True)
class Symbol:
    """One symbol; `section` counts from 1, and is 0 where the symbol is defined elsewhere."""

    name: str
    section: int
    address: int
    is_external: bool


@dataclass(frozen=True, slots=True)
class MachO:
    """What an object file holds; `platform` and `least_version` are those of its LC_BUILD_VERSION, 0 without one."""

    cpu_type: int
    platform: int
    least_version: tuple[int, int]
    sections: tuple[Section, ...]
    symbols: tuple[Symbol, ...]

    def symbol_bytes(self) -> dict[str, int]:
        """Return the bytes of each function that other objects can call, up to the next symbol, by its name."""
        found: dict[str, int] = {}
        for number, section in enumerate(self.sections, 1):
            own = [symbol for symbol in self.symbols if symbol.section == number]
            ends = sorted({symbol.address for symbol in own} | {section.address + section.size})
            if section.is_code:
                found |= {
                    symbol.name: next(end for end in ends if end > symbol.address) - symbol.address
                    for symbol in own
                    if symbol.is_external
                }
        return found


def is_macho(file: Path) -> bool:
    """Say whether a file is a 64-bit little-endian Mach-O object."""
    with file.open("rb") as stream:
        return stream.read(len(MAGIC)) == MAGIC


def read_macho(file: Path) -> MachO:
    """Read an object file.

    Raises:
        ArmletError: it is none, or is cut short.
    """
    data = file.read_bytes()
    if data[: len(MAGIC)] != MAGIC:
        raise ArmletError(f"{file} is no 64-bit Mach-O object")
    try:
        return _read(data)
    except (struct.error, ValueError) as error:
        raise ArmletError(f"{file} is no whole Mach-O object: {error}") from error


def _read(data: bytes) -> MachO:
    _, cpu_type, _, _, n_commands, _, _ = _HEADER.unpack_from(data)
    platform, version, at = 0, 0, _HEADER.size
    sections: list[Section] = []
    symbols: list[Symbol] = []
    for _ in range(n_commands):
        command, size = struct.unpack_from("<2I", data, at)
        if command == _LC_SEGMENT_64:
            sections += _sections(data, at)
        elif command == _LC_SYMTAB:
            symbols += _symbols(data, at)
        elif command == _LC_BUILD_VERSION:
            platform, version = struct.unpack_from("<8x2I", data, at)
        at += size
    return MachO(cpu_type, platform, (version >> 16, version >> 8 & 255), tuple(sections), tuple(symbols))


def _sections(data: bytes, at: int) -> Iterator[Section]:
    n_sections = _SEGMENT.unpack_from(data, at)[7]
    for number in range(n_sections):
        name, segment, address, size, _, power, _, _, flags = _SECTION.unpack_from(
            data, at + _SEGMENT.size + number * _SECTION.size
        )
        yield Section(f"{_text(segment)},{_text(name)}", address, size, 1 << power, flags)


def _symbols(data: bytes, at: int) -> Iterator[Symbol]:
    table, n_symbols, strings, n_bytes = _SYMBOL_TABLE.unpack_from(data, at)
    texts = data[strings : strings + n_bytes]
    for number in range(n_symbols):
        start, kind, section, _, address = _SYMBOL.unpack_from(data, table + number * _SYMBOL.size)
        if kind & _N_STAB:  # for debuggers
            continue
        name = texts[start : texts.index(b"\0", start)].decode().removeprefix("_")
        defined = kind & _N_TYPE == _N_SECT
        yield Symbol(name, section if defined else 0, address, bool(kind & _N_EXT))


def _text(field: bytes) -> str:
    return field.rstrip(b"\0").decode()
