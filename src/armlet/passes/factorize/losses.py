"""What ranks keep of a layer: read off singular values here; measured in `armlet.passes.factorize.canonical`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from armlet.passes.factorize.decompose import Array

Ranks = tuple[int, ...]


class Losses(Protocol):
    """What each choice of ranks keeps."""

    @property
    def full(self) -> Ranks:
        """The ranks that lose nothing."""

    def kept(self, ranks: Ranks) -> float:
        """Return the share of the squared norm that these ranks keep, or less."""

    def ranks_for(self, energy: float) -> Ranks:
        """Return low ranks that keep this share, each at least 1."""

    def ladder(self) -> list[Ranks]:
        """Return the ranks worth choosing from, the lowest first."""

    def usable(self, ranks: Ranks) -> bool:
        """Whether the factors of these ranks may be used."""

    def unusable(self) -> dict[Ranks, str]:
        """Return why factors of some of the ranks that were asked about may not be used."""


@dataclass(frozen=True, slots=True)
class Spectra:
    """Losses that singular values foretell.

    Attributes:
        spectra: for each rank, the squared singular values that it cuts, the largest first.
    """

    spectra: tuple[Array, ...]

    @property
    def full(self) -> Ranks:
        """The ranks that lose nothing."""
        return tuple(len(values) for values in self.spectra)

    def kept(self, ranks: Ranks) -> float:
        """Return the least share of the squared norm that the factors keep: each rank's losses add up."""
        lost = [float(values[rank:].sum()) for values, rank in zip(self.spectra, ranks, strict=True)]
        total = float(self.spectra[0].sum())
        return max(0.0, 1 - sum(lost) / total) if total else 1.0

    def ranks_for(self, energy: float) -> Ranks:
        """Return the least ranks of which each loses its equal part of what may be lost, and at least 1."""
        allowed = (1 - energy) * float(self.spectra[0].sum()) / len(self.spectra)
        tails = [np.append(values[::-1].cumsum()[::-1], 0.0) for values in self.spectra]
        # Half a rounding of the sum: at 100 % ranks without any energy go.
        slack = 1e-13 * float(self.spectra[0].sum())
        return tuple(max(1, int(np.argmax(tail <= allowed + slack))) for tail in tails)

    def ladder(self) -> list[Ranks]:
        """Return the ranks for every energy at which one of them changes, the lowest first."""
        total = float(self.spectra[0].sum())
        losses = {float(tail) for values in self.spectra for tail in values[::-1].cumsum()}
        found = {self.ranks_for(1 - len(self.spectra) * lost / total) for lost in losses} if total else set()
        return sorted({(1,) * len(self.spectra), *found})

    def usable(self, ranks: Ranks) -> bool:
        """All are: what is cut is orthogonal to what stays."""
        return True

    def unusable(self) -> dict[Ranks, str]:
        """Return nothing: all are usable."""
        return {}
