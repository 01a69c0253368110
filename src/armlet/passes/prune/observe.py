"""What the weights of a layer are multiplied with, seen while a network runs, as Hessians of its outputs' error.

1. Linear layer: every input row.
2. Convolution: every patch under the kernel (im2col), taps in the order (height, width, channel), one Hessian a group.
3. Recurrent layer: every valid frame for the input's weight; for the recurrent weight the state before every frame.

Not seen: the state before an lstm's projection, what a transposed convolution spreads, tokens of an embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from armlet.models.recurrent import Recurrent

_BATCH = 64


@dataclass(frozen=True, slots=True)
class Matrices:
    """A weight as the matrices that inputs are multiplied with.

    Attributes:
        values: [groups, outputs, inputs].
        hessians: float64 [groups, inputs, inputs].
    """

    values: Tensor
    hessians: Tensor


def layers_in_order(module: nn.Module, samples: Sequence[Tensor]) -> tuple[str, ...]:
    """Return the names of the layers whose inputs can be seen, in the order in which they first run."""
    names = {layer: name for name, layer in module.named_modules() if _is_seen(layer)}
    seen: dict[str, None] = {}
    hooks = [
        layer.register_forward_hook(lambda layer, inputs, output: seen.setdefault(names[layer]))
        for layer in names
    ]
    try:
        with torch.no_grad():
            module(*(x[:1] for x in samples))
    finally:
        for hook in hooks:
            hook.remove()
    return tuple(seen)


def observe(module: nn.Module, name: str, samples: Sequence[Tensor]) -> dict[str, Matrices]:
    """Return the matrices of a layer's weights, by the weight's name in the layer.

    Args:
        module: in eval mode.
        name: of a layer of `layers_in_order`.
        samples: [N, *shape] for each input of the module.
    """
    layer = module.get_submodule(name)
    sums: dict[str, Tensor] = {}

    def add(layer: nn.Module, inputs: tuple[Tensor, ...], output: object) -> None:
        for weight, rows in _inputs_of(layer, inputs, output).items():
            flat = rows.detach().double()
            found = flat.transpose(1, 2) @ flat
            sums[weight] = sums[weight] + found if weight in sums else found

    hook = layer.register_forward_hook(add)
    try:
        with torch.no_grad():
            for batch in zip(*(torch.split(x, _BATCH) for x in samples), strict=True):
                module(*batch)
    finally:
        hook.remove()
    return {weight: Matrices(_matrices(layer, weight), hessians) for weight, hessians in sums.items()}


def set_matrices(layer: nn.Module, weight: str, values: Tensor) -> None:
    """Write matrices [groups, outputs, inputs] back into a weight of a layer."""
    parameter = layer.get_parameter(weight)
    if isinstance(layer, nn.Conv1d | nn.Conv2d):
        last = (parameter.shape[0], *parameter.shape[2:], parameter.shape[1])
        values = values.reshape(last).movedim(-1, 1)
    with torch.no_grad():
        parameter.copy_(values.reshape(parameter.shape))


def _matrices(layer: nn.Module, weight: str) -> Tensor:
    values = layer.get_parameter(weight).detach()
    if isinstance(layer, nn.Conv1d | nn.Conv2d):
        values = values.movedim(1, -1)
        return values.reshape(layer.groups, values.shape[0] // layer.groups, -1)
    return values if values.dim() == 3 else values[None]


def _is_seen(layer: nn.Module) -> bool:
    padded = isinstance(layer, nn.Conv1d | nn.Conv2d) and layer.padding_mode != "zeros"
    return isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | Recurrent) and not padded


def _inputs_of(layer: nn.Module, inputs: tuple[Tensor, ...], output: object) -> dict[str, Tensor]:
    """Return the rows [groups, rows, inputs] that each weight of a layer is multiplied with in one call."""
    match layer:
        case nn.Linear():
            return {"weight": inputs[0].reshape(1, -1, inputs[0].shape[-1])}
        case nn.Conv1d() | nn.Conv2d():
            return {"weight": _patches(layer, inputs[0])}
        case Recurrent():
            return _frames_and_states(layer, inputs, output)
    return {}


def _patches(layer: nn.Conv1d | nn.Conv2d, pictures: Tensor) -> Tensor:
    if isinstance(layer, nn.Conv1d):  # a picture of height 1
        pictures = pictures[:, :, None]
    kernel, stride, dilation = (
        (1, *x) if isinstance(layer, nn.Conv1d) else x
        for x in (layer.kernel_size, layer.stride, layer.dilation)
    )
    # left, right of the width, then of the height; torch keeps them last dimension first
    pictures = functional.pad(pictures, layer._reversed_padding_repeated_twice)
    channels = pictures.shape[1] // layer.groups
    columns = functional.unfold(pictures, kernel, dilation, 0, stride)  # [N, C × taps, places]
    taps = kernel[0] * kernel[1]
    split = columns.reshape(len(columns), layer.groups, channels, taps, -1)
    return split.permute(1, 0, 4, 3, 2).reshape(layer.groups, -1, taps * channels)


def _frames_and_states(layer: Recurrent, inputs: tuple[Tensor, ...], output: object) -> dict[str, Tensor]:
    frames, length = inputs[0], inputs[1] if len(inputs) > 1 else None
    if not isinstance(output, tuple) or len(inputs) > 2:
        return {}
    n_directions = layer.weight.shape[0]
    states = output[0].unflatten(-1, (n_directions, -1))  # zero behind the length
    before = []
    for d in range(n_directions):
        backwards = layer.direction == "reverse" or d == 1
        # The state before the first frame is zero, and adds nothing.
        states_d = states[:, :, d]
        if backwards:
            before.append(states_d[:, 1:])
        else:
            kept = states_d[:, :-1]
            if length is not None:  # the last valid state is before no frame
                times = torch.arange(1, states.shape[1], device=frames.device)
                kept = torch.where((times < length[:, None])[:, :, None], kept, 0.0)
            before.append(kept)
    if length is not None:
        valid = torch.arange(frames.shape[1], device=frames.device) < length[:, None]
        frames = torch.where(valid[:, :, None], frames, 0.0)
    rows = frames.reshape(1, -1, frames.shape[2])
    return {
        "weight": rows.expand(n_directions, -1, -1),
        "recurrent_weight": torch.stack([x.reshape(-1, x.shape[-1]) for x in before]),
    }
