"""Folds each batch normalisation into the convolution or the linear layer before it.

Input -> Output: y = γ (W x + b - μ) / √(σ² + ε) + β becomes y = W' x + b' with W' = W γ / √(σ² + ε) and
b' = (b - μ) γ / √(σ² + ε) + β. The normalisation becomes an identity.

Rules, each of which must hold, for otherwise the normalisation stays:
1. its input is a convolution or a linear layer, and it is the only one to use that value;
2. both are modules that run once;
3. a linear layer's value has two dimensions, so that features are what is normalised.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.fx import Node

from armlet.analysis.graph import Traced, arguments, aten, layer_name, shape_of, trace
from armlet.artifacts import InputSpec

_FOLDABLE = (
    aten.conv1d.default,
    aten.conv2d.default,
    aten.conv2d.padding,
    aten.conv_transpose2d.input,
    aten.linear.default,
)
_Layer = nn.Conv1d | nn.Conv2d | nn.ConvTranspose2d | nn.Linear


@dataclass(frozen=True, slots=True)
class Moments:
    """Mean and standard deviation of a value's channels, float64 [C] each."""

    mean: torch.Tensor
    std: torch.Tensor


@dataclass(frozen=True, slots=True)
class Folded:
    """A module of its own after folding.

    Attributes:
        moments: mean and standard deviation of each output channel of the layers that took a normalisation in, by
            their names: what the normalisation makes of its statistics.
        notes: which normalisations stay, and why.
    """

    module: nn.Module
    moments: Mapping[str, Moments]
    notes: tuple[str, ...]

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers that took a normalisation in."""
        return tuple(self.moments)


def fold_batch_norm(module: nn.Module, inputs: Sequence[InputSpec]) -> Folded:
    """Return a copy of a module in eval mode with its batch normalisations folded; the module is not changed."""
    module = copy.deepcopy(module)
    traced = trace(module, inputs)
    moments, notes = {}, []
    for node in traced.nodes:
        if node.target is not aten.batch_norm.default:
            continue
        found = _find(node, module, traced)
        if isinstance(found, str):
            notes.append(f"batch normalisation {layer_name(node)} is not folded: {found}")
            continue
        moments[found.layer_name] = _moments(found.norm)
        _fold(found.layer, found.norm)
        module.set_submodule(found.norm_name, nn.Identity())
    return Folded(module, moments, tuple(notes))


@dataclass(frozen=True, slots=True)
class _Pair:
    """A layer and the normalisation that goes into it."""

    layer: _Layer
    norm: nn.BatchNorm1d | nn.BatchNorm2d
    layer_name: str
    norm_name: str


def _find(node: Node, module: nn.Module, traced: Traced) -> _Pair | str:
    """Return what is folded at a batch normalisation, or why it stays."""
    source, mean = arguments(node)[0], arguments(node)[3]
    if source.target not in _FOLDABLE or len(source.users) > 1:
        return "its input is not the value of one layer for it alone"
    weight = arguments(source)[1]
    names = traced.tensor_name(weight), traced.tensor_name(mean)
    if names[0] is None or names[1] is None:
        return "its layer's weight is computed, or it keeps no statistics"
    if len(weight.users) > 1 or len(mean.users) > 1:
        return "it or its layer runs more than once"
    if source.target is aten.linear.default and len(shape_of(source)) != 2:
        return "its input has more than two dimensions"
    layer_name, norm_name = (name.rpartition(".")[0] for name in names if name)
    layer, norm = module.get_submodule(layer_name), module.get_submodule(norm_name)
    if isinstance(layer, nn.ConvTranspose2d) and layer.groups > 1:
        return "a transposed convolution in groups is not folded"
    if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d) and isinstance(layer, _Layer):
        return _Pair(layer, norm, layer_name, norm_name)
    return "it or its layer is not a module of torch.nn"


def _moments(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> Moments:
    if norm.weight is None:
        return Moments(torch.zeros(norm.num_features).double(), torch.ones(norm.num_features).double())
    return Moments(norm.bias.detach().double(), norm.weight.detach().double().abs())


def _fold(layer: _Layer, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> None:
    # In double precision, so that folding rounds once.
    state = {name: value.double() for name, value in norm.state_dict().items()}
    with torch.no_grad():
        gain = state.get("weight", 1.0) / torch.sqrt(state["running_var"] + norm.eps)
        shift = (0.0 if layer.bias is None else layer.bias.double()) - state["running_mean"]
        shape = [1] * layer.weight.ndim
        shape[1 if isinstance(layer, nn.ConvTranspose2d) else 0] = -1
        weight = layer.weight.double() * gain.reshape(shape) + 0.0  # no -0.0 of a pruned weight
        bias = shift * gain + state.get("bias", 0.0)
        layer.bias = nn.Parameter(bias.to(layer.weight.dtype))
        layer.weight = nn.Parameter(weight.to(layer.weight.dtype))
