"""What a device route gives back, and how a program on it can fail. No torch, no tvm."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from armlet.errors import ArmletError


class ProgramFailed(ArmletError):
    """A program on a device crashed, was refused, ran too long, or wrote what it should not have."""


@dataclass(frozen=True, slots=True)
class Block:
    """A run of guest instructions that is entered only at its start.

    Attributes:
        address: as in the program's symbol table.
        code: its instructions, little-endian.
        executions: exact.
        memory_accesses, l1_misses, l2_misses: data accesses of all executions; 0 when not simulated.
    """

    address: int
    code: bytes
    executions: int
    memory_accesses: int = 0
    l1_misses: int = 0
    l2_misses: int = 0

    @property
    def n_instructions(self) -> int:
        """Instructions in one execution."""
        return len(self.code) // 4


@dataclass(frozen=True, slots=True)
class BlockCounts:
    """Exact counts of one inference under emulation.

    Attributes:
        blocks: in the order of first execution.
        caches_simulated: whether the blocks' memory counts mean anything.
        emulator: program, version and core.
    """

    blocks: tuple[Block, ...]
    caches_simulated: bool
    emulator: str

    @property
    def instructions(self) -> int:
        """Instructions executed."""
        return sum(block.n_instructions * block.executions for block in self.blocks)


def opencl_drivers() -> tuple[str, ...]:
    """Return the names of the OpenCL drivers that are installed here, without loading any."""
    folder = Path(os.environ.get("OCL_ICD_VENDORS", "/etc/OpenCL/vendors"))
    return tuple(sorted(path.stem for path in folder.glob("*.icd")))
