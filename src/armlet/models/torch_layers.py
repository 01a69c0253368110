"""armlet's layers in the place of those of torch that hold several layers in one operator."""

from __future__ import annotations

import inspect

import torch
from torch import Tensor, nn

from armlet.models.attention import additive
from armlet.models.torch_attention import TorchAttention
from armlet.models.torch_recurrent import TorchRecurrent

_AROUND = (
    nn.TransformerEncoder | nn.TransformerEncoderLayer | nn.TransformerDecoder | nn.TransformerDecoderLayer
)


_TAKEN = nn.RNN, nn.LSTM, nn.GRU, nn.MultiheadAttention


def with_own_layers(module: nn.Module) -> nn.Module:
    """Return a module in which armlet's layers stand for torch's recurrent ones and for its attention.

    A recurrent layer with a projection, and attention that adds keys and values of its own or zeros, stay torch's.
    """
    taken: dict[nn.Module, nn.Module] = {}  # a layer under two names stays one
    for name, layer in list(module.named_modules(remove_duplicate=False)):
        own = taken.get(layer) or _own(layer)
        if own is not None:
            taken[layer] = own
            if not name:
                return own
            parent, _, child = name.rpartition(".")
            setattr(module.get_submodule(parent), child, own)
    for layer in module.modules():
        if isinstance(layer, nn.TransformerEncoder):
            layer.use_nested_tensor = False  # for it the encoder would read packed weights
        if isinstance(layer, _AROUND):
            layer.register_forward_pre_hook(_with_plain_masks, with_kwargs=True)
    return module


def _own(layer: nn.Module) -> nn.Module | None:
    """Return what stands for a layer, None if it stays: so does one that computes otherwise than torch's does."""
    if all(type(layer).forward is not cls.forward for cls in _TAKEN):
        return None
    match layer:
        case nn.RNNBase() if not layer.proj_size:
            return TorchRecurrent(layer)
        case nn.MultiheadAttention() if layer.bias_k is None and not layer.add_zero_attn:
            return TorchAttention(layer)
        case _:
            return None


def _with_plain_masks(
    layer: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]
) -> tuple[tuple[object, ...], dict[str, object]]:
    """Give torch's layers around attention masks of finite numbers, and say that none is causal where nobody says.

    They would make infinite ones of booleans, and look at a mask's values, which can't be traced. A causal mask is
    applied whether or not it is said to be one.
    """
    names = inspect.signature(layer.forward).parameters
    given = dict(zip(names, args, strict=False)) | kwargs
    for name in names:
        value = given.get(name)
        if name.endswith("is_causal"):
            given[name] = bool(value)
        elif isinstance(value, Tensor) and value.dtype == torch.bool:
            given[name] = additive(value, torch.float32)
    return (), given
