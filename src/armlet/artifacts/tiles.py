"""What tuning leaves: a table of kernels with the tile that is best for each."""

from __future__ import annotations

from dataclasses import dataclass

TILES_VERSION = 1
"""Of tables: another number means that keys or tiles have another meaning."""


@dataclass(frozen=True, slots=True)
class TunedKernel:
    """One kernel of a table.

    Attributes:
        kernel: names operator, type, vector unit and shape.
        tile: pixels and channels, or rows and columns, that cost least when computed together.
        cost: of the kernel with it, in the table's unit.
        formula: the tile that the kernel has without a table, which `tile` is where no other gains.
        formula_cost: of the kernel with that one.
    """

    kernel: str
    tile: tuple[int, int]
    cost: float
    formula: tuple[int, int]
    formula_cost: float


@dataclass(frozen=True, slots=True)
class TileTable:
    """Tiles for one core.

    Attributes:
        core: LLVM's name of it.
        unit: of the costs: "cycles" where they are modelled, "ns" where they are measured.
        how: how the costs came about.
        kernels: in alphabetical order.
        version: `TILES_VERSION` of the armlet that made it.
    """

    core: str
    unit: str
    how: str
    kernels: tuple[TunedKernel, ...]
    version: int = TILES_VERSION

    @property
    def gaining(self) -> tuple[TunedKernel, ...]:
        """Those kernels whose tile is not the formula's; the others are left to it."""
        return tuple(kernel for kernel in self.kernels if kernel.tile != kernel.formula)
