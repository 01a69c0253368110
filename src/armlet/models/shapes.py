"""Fits a freshly built module to saved tensors, whose shapes may be pruned and whose norms may be folded.

Rules, by kind of module:

1. Convolution: channels from the weight's shape. Grouped (depthwise too): whole groups are gone where the
   inputs of each group stayed as many; else the number of groups stays.
2. Linear: features from the weight's shape.
3. Batch and instance normalisation: features from the tensors' shape; a batch normalisation becomes Identity where it
   has no tensors (it was folded).
4. Convolution and linear: a bias is added or removed as the tensors have one or none.
5. Layer and RMS normalisation, embedding, PReLU: features from the weight's shape.
6. Recurrent: units, inputs and projections from the weights' shapes.
7. A layer without a weight, beside tensors of factors (`layer.0.weight`, ...): a product of them takes its place.
8. Parameters that a network holds itself take the tensor's shape if it has as many dimensions.
9. Anything else must fit as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from armlet.errors import UsageError
from armlet.models.factors import Whole, factors_of, shapes_of_factors
from armlet.models.recurrent import GATES, Recurrent

_ChannelNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.InstanceNorm1d | nn.InstanceNorm2d


def fit_to_shapes(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Resize `module`'s layers in place so that `tensors` fit, then load them.

    Args:
        module: as the family builds it.
        tensors: the whole state: parameters and buffers by name. Copied, not shared.

    Raises:
        UsageError: tensors that can't be fitted, each named; the module is then half fitted.
    """
    problems: list[str] = []
    for name, layer in list(module.named_modules()):
        if isinstance(layer, Whole) and (shapes := shapes_of_factors(name, tensors)):
            _replace(module, name, factors_of(layer, shapes))
    for name, layer in list(module.named_modules()):
        own = {
            key.rpartition(".")[2]: value for key, value in tensors.items() if key.rpartition(".")[0] == name
        }
        try:
            if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d) and not own:
                _replace(module, name, nn.Identity())
            elif (fit := _fitting(layer)) is not None:
                fit(layer, own)
        except _Misfit as error:
            problems.append(f"{name}: {error}")
    problems += _differences(module, tensors)
    if problems:
        raise UsageError("the tensors don't fit the network:\n" + "\n".join(problems))
    module.load_state_dict(dict(tensors))


def _fitting(layer: nn.Module) -> _Fit | None:
    """Return what fits a layer of its kind, None for one that must fit as it is."""
    found = next((fit for kinds, fit in _FITS if isinstance(layer, kinds)), None)
    if found is None and not type(layer).__module__.startswith("torch.nn."):
        return _fit_parameters
    return found


class _Misfit(Exception):
    """Why the tensors of one layer can't be fitted."""


def _fit_conv(layer: nn.Conv1d | nn.Conv2d, own: Mapping[str, Tensor]) -> None:
    weight = _weight(own, n_dims=2 + len(layer.kernel_size))
    n_outputs, n_group_inputs, *kernel = weight.shape
    if tuple(kernel) != layer.kernel_size:
        raise _Misfit(f"kernel of {tuple(kernel)} where the architecture has {layer.kernel_size}")
    if layer.groups > 1:
        n_group_outputs = layer.out_channels // layer.groups
        if layer.in_channels // layer.groups == n_group_inputs:
            groups, rest = divmod(n_outputs, n_group_outputs)
        else:
            groups, rest = layer.groups, n_outputs % layer.groups
        if rest:
            raise _Misfit(f"{n_outputs} outputs don't make whole groups of {n_group_outputs}")
        layer.groups = groups
    layer.in_channels, layer.out_channels = n_group_inputs * layer.groups, n_outputs
    _set(layer, own)


def _fit_conv_transpose(layer: nn.ConvTranspose1d | nn.ConvTranspose2d, own: Mapping[str, Tensor]) -> None:
    weight = _weight(own, n_dims=2 + len(layer.kernel_size))
    if tuple(weight.shape[2:]) != layer.kernel_size:
        raise _Misfit(f"kernel of {tuple(weight.shape[2:])} where the architecture has {layer.kernel_size}")
    n_inputs, n_group_outputs = weight.shape[:2]
    if layer.groups > 1:
        n_group_inputs = layer.in_channels // layer.groups
        layer.groups, rest = divmod(n_inputs, n_group_inputs)
        if rest:
            raise _Misfit(f"{n_inputs} inputs don't make whole groups of {n_group_inputs}")
    layer.in_channels, layer.out_channels = n_inputs, n_group_outputs * layer.groups
    _set(layer, own, n_outputs=layer.out_channels)


def _fit_linear(layer: nn.Linear, own: Mapping[str, Tensor]) -> None:
    layer.out_features, layer.in_features = _weight(own, n_dims=2).shape
    _set(layer, own)


def _fit_recurrent(layer: Recurrent, own: Mapping[str, Tensor]) -> None:
    weight = _weight(own, n_dims=3)
    layer.hidden, rest = divmod(weight.shape[1], GATES[layer.cell])
    if rest:
        raise _Misfit(f"{weight.shape[1]} rows are not {GATES[layer.cell]} gates")
    for name in ("input_projection_weight", "projection_weight", "recurrent_factor_weight"):
        if name in own and getattr(layer, name) is None:
            setattr(layer, name, nn.Parameter(torch.zeros_like(own[name])))
    _fit_parameters(layer, own)


def _fit_parameters(layer: nn.Module, own: Mapping[str, Tensor]) -> None:
    for name, parameter in layer.named_parameters(recurse=False):
        if name in own and own[name].dim() == parameter.dim():
            setattr(layer, name, nn.Parameter(torch.zeros_like(own[name])))


def _fit_embedding(layer: nn.Embedding, own: Mapping[str, Tensor]) -> None:
    layer.num_embeddings, layer.embedding_dim = _weight(own, n_dims=2).shape
    layer.weight = nn.Parameter(torch.zeros_like(own["weight"]))


def _fit_slopes(layer: nn.PReLU, own: Mapping[str, Tensor]) -> None:
    layer.num_parameters = _weight(own, n_dims=1).shape[0]
    layer.weight = nn.Parameter(torch.zeros_like(own["weight"]))


def _fit_layer_norm(layer: nn.LayerNorm | nn.RMSNorm, own: Mapping[str, Tensor]) -> None:
    if not own:  # it has no parameters, so it says nothing
        return
    shape = tuple(_weight(own, n_dims=len(layer.normalized_shape)).shape)
    if "bias" in own and tuple(own["bias"].shape) != shape:
        raise _Misfit(f"bias of shape {tuple(own['bias'].shape)} beside a weight of shape {shape}")
    layer.normalized_shape = shape
    _fit_parameters(layer, own)


def _fit_batch_norm(layer: _ChannelNorm, own: Mapping[str, Tensor]) -> None:
    layer.num_features = _weight(own, n_dims=1).shape[0]
    _set(layer, own)
    for name in ("running_mean", "running_var"):
        if name in own:
            setattr(layer, name, torch.zeros_like(own[name]))


def _fit_instance_norm(layer: nn.InstanceNorm1d | nn.InstanceNorm2d, own: Mapping[str, Tensor]) -> None:
    if own:  # one without parameters says nothing
        _fit_batch_norm(layer, own)


_Fit = Callable[[Any, Mapping[str, Tensor]], None]
_FITS: tuple[tuple[tuple[type[nn.Module], ...], _Fit], ...] = (
    ((nn.Conv1d, nn.Conv2d), _fit_conv),
    ((nn.ConvTranspose1d, nn.ConvTranspose2d), _fit_conv_transpose),
    ((nn.Linear,), _fit_linear),
    ((nn.BatchNorm1d, nn.BatchNorm2d), _fit_batch_norm),
    ((nn.InstanceNorm1d, nn.InstanceNorm2d), _fit_instance_norm),
    ((nn.LayerNorm, nn.RMSNorm), _fit_layer_norm),
    ((nn.Embedding,), _fit_embedding),
    ((nn.PReLU,), _fit_slopes),
    ((Recurrent,), _fit_recurrent),
)


def _weight(own: Mapping[str, Tensor], n_dims: int) -> Tensor:
    if "weight" not in own:
        raise _Misfit("has no weight")
    if own["weight"].dim() != n_dims:
        raise _Misfit(f"weight of shape {tuple(own['weight'].shape)} where {n_dims} dimensions are meant")
    return own["weight"]


def _set(
    layer: nn.Conv1d | nn.Conv2d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.Linear | _ChannelNorm,
    own: Mapping[str, Tensor],
    n_outputs: int | None = None,
) -> None:
    layer.weight = nn.Parameter(torch.zeros_like(own["weight"]))
    n_outputs = n_outputs or own["weight"].shape[0]
    bias = own.get("bias")
    if bias is not None and tuple(bias.shape) != (n_outputs,):
        raise _Misfit(f"bias of shape {tuple(bias.shape)} beside a weight with {n_outputs} outputs")
    layer.bias = None if bias is None else nn.Parameter(torch.zeros_like(bias))


def _replace(module: nn.Module, name: str, by: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(module.get_submodule(parent), child, by)


def _differences(module: nn.Module, tensors: Mapping[str, Tensor]) -> list[str]:
    """Return what still differs between the module's state and `tensors`."""
    state = module.state_dict()
    found = [f"{name}: is missing" for name in state if name not in tensors]
    found += [f"{name}: the network has no such tensor" for name in tensors if name not in state]
    found += [
        f"{name}: shape {tuple(tensors[name].shape)} where {tuple(value.shape)} is meant"
        for name, value in state.items()
        if name in tensors and tensors[name].shape != value.shape
    ]
    return found
