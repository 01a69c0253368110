"""Which tile a kernel has: what its formula gives, or what a table says that was made by measuring.

A kernel that can be cut up in several ways asks `Tiles.choose` with the ways that there are, a short list, and with the
one that its formula gives. Whatever is chosen, integer results are the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from armlet.errors import UsageError
from armlet.spec.target import Target
from armlet.spec.tiles import read_table

if TYPE_CHECKING:
    import tvm

    from armlet.compile.kernels.loops import Vector

TABLES = Path(__file__).parent / "tables"
"""The tables that come with armlet, `<core>.json`."""
Choice: TypeAlias = tuple[int, int]
"""Pixels (or rows) and channels (or columns) of a tile."""


@dataclass(frozen=True, slots=True)
class Tunable:
    """A kernel whose tile can be chosen.

    Attributes:
        key: names operator, type, vector unit and shape: kernels of one key have the same tiles and the same costs.
        spec: of the kernel.
        vector: unit that it is written for.
        builder: makes its PrimFunc.
        formula: what is chosen without a table.
        candidates: every tile that may be chosen, `formula` among them.
    """

    key: str
    spec: Any
    vector: Vector
    builder: Callable[[Any, Vector], tvm.tirx.PrimFunc]
    formula: Choice
    candidates: tuple[Choice, ...]

    def build(self, choice: Choice) -> tvm.tirx.PrimFunc:
        """Return the kernel with a tile."""
        return self.builder(self.spec, replace(self.vector, tiles=Tiles({self.key: choice})))


@dataclass(frozen=True, slots=True)
class Tiles:
    """Tiles by the key of their kernel, and a record of the choices that were made.

    Attributes:
        table: the choices that are not left to the formula.
        made: for each kernel that asked, itself and what was chosen.
    """

    table: Mapping[str, Choice] = field(default_factory=dict)
    made: dict[str, tuple[Tunable, Choice]] = field(default_factory=dict)

    def choose(self, kernel: Tunable) -> Choice:
        """Return the tile of a kernel.

        Raises:
            UsageError: the table has one that the kernel can't have.
        """
        choice = self.table.get(kernel.key, kernel.formula)
        if choice not in kernel.candidates:
            legal = ", ".join(f"{rows} × {columns}" for rows, columns in kernel.candidates)
            raise UsageError(
                f"the table of tiles has {choice[0]} × {choice[1]} for {kernel.key}, which has {legal}: it is of"
                " another version; make it again with armlet tune"
            )
        self.made[kernel.key] = kernel, choice
        return choice


def shape_of(*extents: int) -> str:
    """Return extents as they stand in a key: 3x224x224."""
    return "x".join(map(str, extents))


def tiles_of(target: Target) -> Tiles:
    """Return the tiles that a target has, else those that come with armlet for its core, else none."""
    if target.tiles is None:
        return Tiles(_shipped(target.resolved_cpu))
    return Tiles({choice.kernel: (choice.tile[0], choice.tile[1]) for choice in target.tiles})


@cache
def _shipped(core: str) -> Mapping[str, Choice]:
    path = TABLES / f"{core}.json"
    return {k.kernel: k.tile for k in read_table(path).gaining} if path.is_file() else {}
