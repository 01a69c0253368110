"""Kernels as sums of products of vectors: canonical polyadic decomposition (CP), in double precision.

Sources: Lebedev et al. 2015, "Speeding-up Convolutional Neural Networks Using Fine-tuned CP-Decomposition"; Kolda and
Bader 2009, "Tensor Decompositions and Applications", section 3.4 (alternating least squares); Phan et al. 2020, "Stable
Low-rank Tensor Decomposition for Compression of Convolutional Neural Network" (components that cancel).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass, field

import numpy as np

from armlet.passes.factorize.decompose import Array, unfolded
from armlet.passes.factorize.losses import Ranks

Components = tuple[Array, ...]
"""Four: [O, R], [I, R], [H, R] and [W, R]: their R outer products sum to a kernel [O, I, H, W]."""

_RIDGE = 3e-4
"""Of a kernel of norm 1. Keeps components from growing against each other: on trained kernels 0.2 % of the squared norm
more is lost than with a third of it, and the components are a third as large."""

_ITERATIONS = 500

_LEAST_CHANGE = 1e-6
"""Of the loss in one iteration, relative: below it the fit ends."""

_JITTER = 0.03
"""Of the orthogonal components: at those of some sparse kernels all parts are at rest, yet far from the best."""

_LARGEST = 25.0
"""Of the components' size: roundings between the factors then weigh five times (its root) what they else would."""

_STEPS = 12
"""Ranks that a budget chooses from, evenly up to the highest that saves."""


@dataclass(frozen=True, slots=True)
class Fit:
    """A sum of products of vectors that is near a kernel.

    Attributes:
        components: the vectors; of each product all four are of the same length.
        lost: share of the kernel's squared norm.
        size: sum of the components' squared norms, as a multiple of the kernel's; far above 1 they cancel.
    """

    components: Components
    lost: float
    size: float


def orthogonal(kernel: Array) -> tuple[Array, Components]:
    """Return a kernel as min(O, I) × H × W orthogonal components: lengths, the largest first, and vectors of length 1.

    By singular values along height and width (Tucker), then of each [O, I] slice.
    """
    outputs, inputs = kernel.shape[:2]
    down, across = (np.linalg.svd(unfolded(kernel, dim), full_matrices=False)[0] for dim in (2, 3))
    slices = np.einsum("oihw,hp,wq->pqoi", kernel, down, across, optimize=True).reshape(-1, outputs, inputs)
    left, values, right = np.linalg.svd(slices, full_matrices=False)
    order = np.argsort(-values, axis=None, kind="stable")
    part, at = np.divmod(order, values.shape[1])
    row, column = np.divmod(part, across.shape[1])
    return values.ravel()[order], (left[part, :, at].T, right[part, at].T, down[:, row], across[:, column])


def fit(kernel: Array, rank: int) -> Fit:
    """Return a near sum of `rank` components, by alternating least squares from the largest orthogonal ones.

    The nearest such sum may not exist, and is not found for certain; the same kernel always gives the same one.

    Args:
        kernel: [O, I, H, W].
        rank: at most min(O, I) × H × W, at which nothing is lost.
    """
    norm = float(np.linalg.norm(kernel)) or 1.0
    unit = kernel / norm
    lengths, vectors = orthogonal(unit)
    first, *others = (part[:, :rank] for part in vectors)
    start = _balanced((first * lengths[:rank], *others))
    at_start = float(np.square(lengths[rank:]).sum())
    rng, lost = np.random.default_rng(0), math.inf
    found = tuple(
        part + _JITTER * np.sqrt(np.square(part).mean()) * rng.normal(size=part.shape) for part in start
    )
    for _ in range(_ITERATIONS):
        before = lost
        found, lost = _improved(unit, found)
        if before - lost <= _LEAST_CHANGE * lost:
            break
    if lost >= at_start:
        found, lost = start, at_start
    size = float((np.square(found[0]).sum(axis=0) ** 4).sum())
    return Fit(tuple(part * norm**0.25 for part in found), lost, size)


def _improved(kernel: Array, parts: Components) -> tuple[Components, float]:
    """Return components of which each part in turn was solved for, and what they lose of the squared norm."""
    outputs, inputs, rows, columns = parts
    rank = outputs.shape[1]
    products = np.einsum("ir,hr,wr->ihwr", inputs, rows, columns).reshape(-1, rank)
    outputs = _solved(unfolded(kernel, 0) @ products, inputs, rows, columns)
    left = (outputs.T @ unfolded(kernel, 0)).reshape(rank, *kernel.shape[1:])
    inputs = _solved(np.einsum("rihw,hr,wr->ir", left, rows, columns, optimize=True), outputs, rows, columns)
    left = np.einsum("rihw,ir->rhw", left, inputs, optimize=True)
    rows = _solved(np.einsum("rhw,wr->hr", left, columns), outputs, inputs, columns)
    shared = np.einsum("rhw,hr->wr", left, rows)
    columns = _solved(shared, outputs, inputs, rows)
    norms = float(np.square(kernel).sum()), float(_gram(outputs, inputs, rows, columns).sum())
    lost = max(0.0, norms[0] + norms[1] - 2 * float((shared * columns).sum()))
    return _balanced((outputs, inputs, rows, columns)), lost


def _solved(products: Array, *others: Array) -> Array:
    """Return the part, [n, R], that with the others is nearest to a kernel, given its products with them."""
    ridge = _RIDGE * np.eye(products.shape[1])
    return np.asarray(np.linalg.solve(_gram(*others) + ridge, products.T).T, np.float64)


def _gram(*parts: Array) -> Array:
    """Return the inner products of all pairs of components made of these parts, [R, R]."""
    result: Array = np.prod([part.T @ part for part in parts], axis=0)
    return result


def _balanced(parts: Components) -> Components:
    """Return the same components with vectors that are equally long."""
    lengths = [np.linalg.norm(part, axis=0) for part in parts]
    shared = np.prod(lengths, axis=0) ** 0.25
    return tuple(part * (shared / np.maximum(n, 1e-30)) for part, n in zip(parts, lengths, strict=True))


@dataclass(frozen=True, slots=True)
class Fits:
    """Losses that fits measure, each when first asked for.

    Attributes:
        kernel: [O, I, H, W].
        highest: rank at which the factors cost less than the layer; no higher one is fitted but when asked for.
        fits: so far, by rank.
    """

    kernel: Array
    highest: int
    fits: dict[int, Fit] = field(default_factory=dict)

    def at(self, rank: int) -> Fit:
        """Return the fit of a rank."""
        if rank not in self.fits:
            self.fits[rank] = fit(self.kernel, rank)
        return self.fits[rank]

    @property
    def full(self) -> Ranks:
        """The rank of the orthogonal components, which lose nothing."""
        outputs, inputs, height, width = self.kernel.shape
        return (min(outputs, inputs) * height * width,)

    def kept(self, ranks: Ranks) -> float:
        """Return the share of the squared norm that the fit keeps; 0 where its components cancel."""
        return 1 - self.at(ranks[0]).lost if self.usable(ranks) else 0.0

    def ranks_for(self, energy: float) -> Ranks:
        """Return the least rank that keeps this share, found by halving, or the full one if none that saves does."""
        ranks = range(1, self.highest + 1)
        least = bisect_left(ranks, energy, key=lambda rank: self.kept((rank,)))
        return (ranks[least],) if least < len(ranks) else self.full

    def ladder(self) -> list[Ranks]:
        """Return some ranks, evenly up to the highest that saves."""
        ranks = {1, *(math.ceil(self.highest * step / _STEPS) for step in range(1, _STEPS + 1))}
        return [(rank,) for rank in sorted(ranks) if 1 <= rank <= self.highest and self.usable((rank,))]

    def usable(self, ranks: Ranks) -> bool:
        """Whether the components don't cancel: else float32 and INT8 would round what is left of them away."""
        return self.at(ranks[0]).size <= _LARGEST

    def unusable(self) -> dict[Ranks, str]:
        """Return the ranks of the fits so far whose components cancel."""
        return {
            (rank,): f"its components cancel: {found.size:.0f} times the kernel's squared norm"
            for rank, found in sorted(self.fits.items())
            if found.size > _LARGEST
        }
