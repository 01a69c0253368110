"""Which weights of a network may become zero, and which of them do: by magnitude, or N of each M.

Sources: magnitude pruning, Han et al. 2015, "Learning both Weights and Connections"; N:M patterns, Mishra et al. 2021,
"Accelerating Sparse Deep Neural Networks".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from armlet.models.recurrent import Recurrent

Scope = Literal["layer", "global"]


@dataclass(frozen=True, slots=True)
class WeightTensor:
    """The weight of a convolution, of a linear or recurrent layer, or of an embedding.

    Attributes:
        parameter: its name.
        layer: name of the module that has it.
        input_axis: dimension of the inputs, which N:M patterns count along; of an embedding that of a token's values.
    """

    parameter: str
    layer: str
    input_axis: int


@dataclass(frozen=True, slots=True)
class Pattern:
    """At most `n` of each `m` weights that follow each other along the inputs are not zero."""

    n: int
    m: int

    @property
    def sparsity(self) -> float:
        """Share of zeros."""
        return 1 - self.n / self.m


def weight_tensors(module: nn.Module) -> tuple[WeightTensor, ...]:
    """Return every weight of a module that is multiplied with its inputs, each once, in the module's order.

    Attention has linear layers. Biases, normalisations and positions are not weights of this kind.
    """
    found: dict[int, WeightTensor] = {}
    for layer_name, layer in module.named_modules():
        for name, axis in _input_axes(layer).items():
            parameter = getattr(layer, name)
            if parameter is not None:
                full = f"{layer_name}.{name}" if layer_name else name
                found.setdefault(id(parameter), WeightTensor(full, layer_name, axis))
    return tuple(found.values())


def _input_axes(layer: nn.Module) -> dict[str, int]:
    match layer:
        case Recurrent():
            return {"weight": 2, "recurrent_weight": 2, "projection_weight": 2}
        case nn.ConvTranspose1d() | nn.ConvTranspose2d():
            return {"weight": 0}
        case nn.Conv1d() | nn.Conv2d() | nn.Linear() | nn.Embedding():
            return {"weight": 1}
    return {}


def magnitude_masks(weights: Mapping[str, Tensor], sparsity: float, scope: Scope) -> dict[str, Tensor]:
    """Return for each weight which of its values stay: those of the greatest magnitude.

    Args:
        weights: by name.
        sparsity: share of the values that goes, from 0 to below 1, rounded down to a whole number of them.
        scope: whether values are ranked within their weight, or over all; each weight keeps its greatest value.

    Returns:
        bool tensors of the weights' shapes.
    """
    ranks = {name: weight.detach().abs().flatten() for name, weight in weights.items()}
    if scope == "layer":
        kept = {name: ~_lowest(v, n_zeros_of(v.numel(), sparsity)) for name, v in ranks.items()}
    else:
        for values in ranks.values():
            values[values.argmax()] = math.inf  # a layer of zeros alone would answer nothing
        sizes = [values.numel() for values in ranks.values()]
        n_gone = min(n_zeros_of(sum(sizes), sparsity), sum(sizes) - len(sizes))
        gone = torch.split(_lowest(torch.cat([*ranks.values()]), n_gone), sizes)
        kept = {name: ~part for name, part in zip(ranks, gone, strict=True)}
    return {name: kept[name].reshape(weight.shape) for name, weight in weights.items()}


def pattern_mask(weight: Tensor, pattern: Pattern, axis: int) -> Tensor:
    """Return which values of a weight stay: of each `m` along `axis` the `n` of the greatest magnitude.

    Raises:
        ValueError: the weight does not divide into groups of `m`.
    """
    if not fits(weight, pattern, axis):
        raise ValueError(f"{weight.shape[axis]} inputs do not divide into groups of {pattern.m}")
    groups = torch.unflatten(weight.detach().abs().movedim(axis, -1), -1, (-1, pattern.m))
    order = groups.argsort(dim=-1, descending=True, stable=True)[..., : pattern.n]
    mask = torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, order, True)
    return mask.flatten(-2).movedim(-1, axis)


def fits(weight: Tensor, pattern: Pattern, axis: int) -> bool:
    """Whether a weight divides into groups of `m` along an axis."""
    return weight.shape[axis] % pattern.m == 0


def n_zeros_of(n: int, sparsity: float) -> int:
    """Return how many of `n` values a sparsity makes zero: rounded down, but for the error of the product."""
    return math.floor(sparsity * n + 1e-9)


def _lowest(values: Tensor, n: int) -> Tensor:
    """Return which `n` of some values are the lowest; of equal ones the first, on every machine."""
    gone = torch.zeros_like(values, dtype=torch.bool)
    gone[values.argsort(stable=True)[:n]] = True
    return gone
