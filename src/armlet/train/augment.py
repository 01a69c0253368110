"""Random changes to training inputs that leave their answer as it is, by the names that users write.

They draw from torch's global random numbers, which the loop seeds anew for each epoch and process.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from armlet.registry import Registry

Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Augmentation:
    """One kind of change.

    Attributes:
        dims: axes of a batch that it fits: 2 rows [N, F] and tokens [N, T], 3 sequences [N, T, C], 4 pictures
            [N, C, H, W].
        apply: returns changed inputs of the same shape; each sample is changed on its own.
        tokens: whether it is for tokens, int32.
    """

    dims: tuple[int, ...]
    apply: Change
    tokens: bool = False


AUGMENTATIONS: Registry[Augmentation] = Registry("augmentation")


def augment(names: tuple[str, ...], inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return a batch with its first input changed; lengths stay as they are."""
    first = inputs[0]
    for name in names:
        first = AUGMENTATIONS[name].apply(first)
    return (first, *inputs[1:])


def mix(inputs: Tensor, targets: Tensor, mixup: float, cutmix: float) -> tuple[Tensor, Tensor]:
    """Mix each sample with another, and their targets alike: by values (mixup) or by a rectangle (cutmix).

    Where both are asked for each batch takes one of them by chance.

    Args:
        inputs: float32 [N, ...]; cutmix takes pictures only.
        targets: float32, shares of classes or answers.
        mixup: parameter of the beta distribution that the share of the first sample is drawn from; 0 is off.
        cutmix: the same, of the rectangle's share.

    Source: Zhang et al. 2017, "mixup"; Yun et al. 2019, "CutMix".
    """
    by_area = bool(cutmix) and (not mixup or float(torch.rand(())) < 0.5)
    alpha = torch.tensor(cutmix if by_area else mixup)
    share = float(torch.distributions.Beta(alpha, alpha).sample())
    other = torch.randperm(len(inputs), device=inputs.device)
    if not by_area:
        mixed = share * inputs + (1 - share) * inputs[other]
        return mixed, share * targets + (1 - share) * targets[other]
    height, width = inputs.shape[2:]
    side = (1 - share) ** 0.5
    top, left = (int(torch.randint(extent, ())) for extent in (height, width))
    rows = slice(max(0, top - int(height * side / 2)), top + int(height * side / 2))
    columns = slice(max(0, left - int(width * side / 2)), left + int(width * side / 2))
    mixed = inputs.clone()
    mixed[:, :, rows, columns] = inputs[other, :, rows, columns]
    share = 1 - mixed[0, 0, rows, columns].numel() / (height * width)
    return mixed, share * targets + (1 - share) * targets[other]


def _register(name: str, *dims: int, tokens: bool = False) -> Callable[[Change], Change]:
    def keep(apply: Change) -> Change:
        AUGMENTATIONS.register(name)(Augmentation(dims, apply, tokens))
        return apply

    return keep


@_register("flip", 4)
def flip(pictures: Tensor) -> Tensor:
    """Mirror half of the pictures left to right."""
    mirrored = _chance(pictures, 0.5)
    return torch.where(mirrored, pictures.flip(3), pictures)


@_register("shift", 4)
def shift(pictures: Tensor) -> Tensor:
    """Move each picture by up to a fourteenth of its extent each way; zeros come in (He et al. 2015, section 4.2)."""
    n, _, height, width = pictures.shape
    reach = max(1, height // 14), max(1, width // 14)
    padded = functional.pad(pictures, (reach[1], reach[1], reach[0], reach[0]))
    rows, columns = (
        torch.randint(2 * by + 1, (n, 1), device=pictures.device)
        + torch.arange(extent, device=pictures.device)
        for by, extent in zip(reach, (height, width), strict=True)
    )
    samples = torch.arange(n, device=pictures.device)[:, None, None]
    moved = padded.permute(0, 2, 3, 1)[samples, rows[:, :, None], columns[:, None, :]]
    return moved.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


@_register("erase", 4)
def erase(pictures: Tensor) -> Tensor:
    """Set a square of a quarter of each extent to zero, at a random place (DeVries and Taylor 2017, "Cutout")."""
    inside = _span(pictures, 2, 0.25)[:, None, :, None] & _span(pictures, 3, 0.25)[:, None, None, :]
    return pictures.masked_fill(inside, 0.0)


@_register("contrast", 4)
def contrast(pictures: Tensor) -> Tensor:
    """Multiply each picture by a number between 0.8 and 1.2."""
    return pictures * _uniform(pictures, 0.8, 1.2)


@_register("noise", 2, 3)
def noise(inputs: Tensor) -> Tensor:
    """Add normal noise, a twentieth of the batch's own deviation."""
    return inputs + 0.05 * inputs.std() * torch.randn_like(inputs)


@_register("scale", 2, 3)
def scale(inputs: Tensor) -> Tensor:
    """Multiply each sample by a number between 0.9 and 1.1."""
    return inputs * _uniform(inputs, 0.9, 1.1)


@_register("time_mask", 3)
def time_mask(sequences: Tensor) -> Tensor:
    """Set a tenth of the frames, in a row, to zero (Park et al. 2019, "SpecAugment")."""
    return sequences.masked_fill(_span(sequences, 1, 0.1)[:, :, None], 0.0)


@_register("channel_mask", 3)
def channel_mask(sequences: Tensor) -> Tensor:
    """Set one channel of each tenth sample to zero."""
    n, _, channels = sequences.shape
    chosen = torch.randint(channels, (n, 1, 1), device=sequences.device)
    lost = (torch.arange(channels, device=sequences.device) == chosen) & _chance(sequences, 0.1)
    return sequences.masked_fill(lost, 0.0)


@_register("rotate", 3)
def rotate(sequences: Tensor) -> Tensor:
    """Turn each three channels, such as x, y and z of a sensor, by one small random rotation (Um et al. 2017)."""
    n, n_frames, channels = sequences.shape
    x, y, z = (0.2 * torch.randn(3, n, 1, device=sequences.device)).unbind()
    zero = torch.zeros_like(x)
    skew = torch.cat([zero, -z, y, z, zero, -x, -y, x, zero], dim=1).reshape(n, 3, 3)
    turned = sequences.reshape(n, n_frames * channels // 3, 3) @ torch.linalg.matrix_exp(skew)
    result: Tensor = turned.reshape(sequences.shape)
    return result


@_register("speed", 3)
def speed(sequences: Tensor) -> Tensor:
    """Play each sequence from 0.85 to 1.15 times as fast, about its middle; the first and last frame are held."""
    n, n_frames, _ = sequences.shape
    middle = (n_frames - 1) / 2
    frames = torch.arange(n_frames, device=sequences.device) - middle
    places = (middle + frames * _uniform(sequences, 0.85, 1.15).reshape(n, 1)).clamp(0, n_frames - 1)
    below = places.floor().long().clamp(max=n_frames - 2)
    part = (places - below)[:, :, None]
    samples = torch.arange(n, device=sequences.device)[:, None]
    played: Tensor = (1 - part) * sequences[samples, below] + part * sequences[samples, below + 1]
    return played


@_register("token_drop", 2, tokens=True)
def token_drop(tokens: Tensor) -> Tensor:
    """Replace a tenth of the tokens by token 1, which stands for what is unknown."""
    lost = torch.rand(tokens.shape, device=tokens.device) < 0.1
    return tokens.masked_fill(lost & (tokens != 0), 1)


def _chance(inputs: Tensor, share: float) -> Tensor:
    """Return true for a share of the samples, [N, 1, ...]."""
    return torch.rand(_one_each(inputs), device=inputs.device) < share


def _uniform(inputs: Tensor, low: float, high: float) -> Tensor:
    """Return a number for each sample, [N, 1, ...]."""
    return low + (high - low) * torch.rand(_one_each(inputs), device=inputs.device)


def _span(inputs: Tensor, axis: int, share: float) -> Tensor:
    """Return true for a stretch of the axis at a random place, [N, extent]."""
    extent = inputs.shape[axis]
    length = max(1, round(extent * share))
    first = torch.randint(extent - length + 1, (len(inputs), 1), device=inputs.device)
    places = torch.arange(extent, device=inputs.device)
    return (places >= first) & (places < first + length)


def _one_each(inputs: Tensor) -> tuple[int, ...]:
    return (len(inputs), *([1] * (inputs.dim() - 1)))
