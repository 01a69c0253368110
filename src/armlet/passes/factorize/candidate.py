"""A layer that can be factorised: what each rank keeps and costs, and how it is done."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Node

from armlet.analysis.graph import arguments
from armlet.models.factors import Shape
from armlet.passes.factorize.decompose import Array, spectrum
from armlet.passes.factorize.losses import Losses, Ranks

Convolutions = Literal["tucker", "spatial", "cp", "none"]
Roots = Mapping[str, Array]
"""By the name of a weight: `root_of` the mean product of what it is multiplied with.

[n_in, n_in]; of a recurrent weight one for each direction, [D, hidden, hidden].
"""


@dataclass(frozen=True, slots=True)
class Costs:
    """Multiply-accumulates of one inference, and weights."""

    macs: int
    parameters: int


@dataclass(frozen=True, slots=True)
class Candidate:
    """A layer that can be factorised.

    Attributes:
        name: of its module.
        method: in words.
        losses: what each choice of ranks keeps.
        before: what its weights cost now.
        shapes: of the weights that take their place.
        positions: how often each of those is used in one inference.
        apply: puts the factors into a module.
        energy_of: whether the losses are those of weights or of results.
    """

    name: str
    method: str
    losses: Losses
    before: Costs
    shapes: Callable[[Ranks], Sequence[Shape]]
    positions: tuple[int, ...]
    apply: Callable[[nn.Module, Ranks], None]
    energy_of: str = "weights"

    @property
    def full(self) -> Ranks:
        """The ranks that lose nothing."""
        return self.losses.full

    def after(self, ranks: Ranks) -> Costs:
        """Return what the factors cost."""
        sizes = [int(np.prod(shape)) for shape in self.shapes(ranks)]
        macs = sum(size * n for size, n in zip(sizes, self.positions, strict=True))
        return Costs(macs, sum(sizes))

    def saves(self, ranks: Ranks) -> bool:
        """Whether the factors cost less, and nothing more."""
        after, before = self.after(ranks), self.before
        return (after.macs <= before.macs and after.parameters <= before.parameters) and after != before


def energies(matrix: Array, root: Array | None) -> Array:
    """Return the squared singular values of a matrix, or of its results on what it is multiplied with."""
    return spectrum(matrix if root is None else matrix @ root)


def energy_of(root: Array | None) -> str:
    """Return what the energies are of, in words."""
    return "weights" if root is None else "results"


def set_weight(layer: nn.Module, name: str, values: Array) -> None:
    """Give a layer a weight, with the type that its others have."""
    like = next(layer.parameters())
    setattr(layer, name, nn.Parameter(tensor_of(values, like)))


def tensor_of(values: Array, like: Tensor) -> Tensor:
    """Return values as a tensor of another one's type."""
    return torch.from_numpy(np.ascontiguousarray(values)).to(like.dtype)


def array_of(weight: Tensor) -> Array:
    """Return a weight in double precision."""
    return np.asarray(weight.detach().double().cpu().numpy(), np.float64)


def source_of(node: Node) -> Node:
    """Return the node whose value a layer takes."""
    source = arguments(node)[0]
    if not isinstance(source, Node):
        raise TypeError(f"{node} has no value before it")
    return source
