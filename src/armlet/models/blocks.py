"""Blocks that several convolutional families are made of.

Source: residual, He et al. 2015; depthwise separable, Howard et al. 2017; inverted residual, Sandler et al. 2018;
squeeze and excitation, Hu et al. 2017, with the hard sigmoid of Howard et al. 2019; stochastic
depth, Huang et al. 2016.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from armlet.artifacts import InputSpec
from armlet.errors import UsageError
from armlet.models.activations import ACTIVATIONS
from armlet.models.families import only_input

SMALL_PICTURE = 64  # pixels: below, a stem that halves would leave too little to see


def conv_norm(
    n_inputs: int,
    n_outputs: int,
    kernel: int = 3,
    stride: int = 1,
    groups: int = 1,
    activation: str | None = "relu",
) -> nn.Sequential:
    """Convolution, batch normalisation, activation: [N, n_inputs, H, W] -> [N, n_outputs, H/stride, W/stride]."""
    parts: OrderedDict[str, nn.Module] = OrderedDict(
        # No bias: batch normalisation follows and would subtract it again.
        conv=nn.Conv2d(n_inputs, n_outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        norm=nn.BatchNorm2d(n_outputs),
    )
    if activation is not None:
        parts["activation"] = ACTIVATIONS[activation]()
    return nn.Sequential(parts)


def skipped(branch: Tensor, share: float, *, training: bool) -> Tensor:
    """Drop the branches of a share of the samples in training, and scale the others so that the mean stays."""
    if not training or not share:
        return branch
    kept = torch.rand(len(branch), *[1] * (branch.dim() - 1), device=branch.device) >= share
    return branch * kept / (1 - share)


class SqueezeExcite(nn.Module):
    """Scale each channel by what all of them are on average: [N, C, H, W] -> [N, C, H, W]."""

    def __init__(self, n_channels: int, n_squeezed: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.squeeze = nn.Conv2d(n_channels, n_squeezed, 1)
        self.activation = nn.ReLU()
        self.excite = nn.Conv2d(n_squeezed, n_channels, 1)
        self.gate = nn.Hardsigmoid()

    def forward(self, inputs: Tensor) -> Tensor:
        """Compute the block."""
        scale: Tensor = self.gate(self.excite(self.activation(self.squeeze(self.pool(inputs)))))
        return inputs * scale


@dataclass(frozen=True, slots=True)
class InvertedRow:
    """One inverted residual block.

    Attributes:
        kernel: of the depthwise convolution.
        expanded: channels between the first and the last convolution.
        n_outputs: channels after it.
        stride: of the depthwise convolution.
        activation: after the first two convolutions.
        squeezed: channels within squeeze and excitation, 0 for none.
    """

    kernel: int
    expanded: int
    n_outputs: int
    stride: int
    activation: str
    squeezed: int = 0


class InvertedResidual(nn.Module):
    """Widen, filter each channel, narrow: [N, n_inputs, H, W] -> [N, row.n_outputs, H/stride, W/stride].

    Args:
        n_inputs: channels; where shapes agree the input is added.
        row: the block.
        dropped: share of samples that the block is skipped for in training.
    """

    def __init__(self, n_inputs: int, row: InvertedRow, dropped: float = 0.0) -> None:
        super().__init__()
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        if row.expanded != n_inputs:
            parts["expand"] = conv_norm(n_inputs, row.expanded, 1, activation=row.activation)
        parts["depthwise"] = conv_norm(
            row.expanded, row.expanded, row.kernel, row.stride, row.expanded, row.activation
        )
        if row.squeezed:
            parts["squeeze_excite"] = SqueezeExcite(row.expanded, row.squeezed)
        parts["project"] = conv_norm(row.expanded, row.n_outputs, 1, activation=None)
        self.branch = nn.Sequential(parts)
        self.adds, self.dropped = row.stride == 1 and n_inputs == row.n_outputs, dropped

    def forward(self, inputs: Tensor) -> Tensor:
        """Compute the block."""
        result: Tensor = self.branch(inputs)
        return inputs + skipped(result, self.dropped, training=self.training) if self.adds else result


def inverted_stages(n_inputs: int, rows: list[InvertedRow], dropped: float) -> nn.Sequential:
    """Return the blocks, named `block1`, ...; later ones are skipped more often, up to `dropped`."""
    blocks: OrderedDict[str, nn.Module] = OrderedDict()
    for number, row in enumerate(rows, 1):
        blocks[f"block{number}"] = InvertedResidual(n_inputs, row, dropped * number / len(rows))
        n_inputs = row.n_outputs
    return nn.Sequential(blocks)


def classifier(width: int, n_outputs: int, dropout: float) -> OrderedDict[str, nn.Module]:
    """Return the layers from feature maps [N, width, H, W] to answers [N, n_outputs], by name."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten())
    if dropout:
        layers["dropout"] = nn.Dropout(dropout)
    layers["classifier"] = nn.Linear(width, n_outputs)
    return layers


def picture_of(family: str, inputs: tuple[InputSpec, ...]) -> tuple[int, int, int]:
    """Return channels, height and width of a family's one input.

    Raises:
        UsageError: it is no picture.
    """
    shape = only_input(family, inputs).shape
    if len(shape) != 3:
        raise UsageError(f"{family} takes pictures of shape (channels, height, width), not {shape}")
    return shape[0], shape[1], shape[2]


def stem_stride(asked: int, picture: tuple[int, int, int]) -> int:
    """Return the stride of the first layer: the one asked for, or for 0 what suits the picture."""
    return asked or (1 if min(picture[1:]) < SMALL_PICTURE else 2)


def rounded(width: float, multiple: int = 8) -> int:
    """Return the nearest multiple, at least one, and never more than a tenth below (Sandler et al.'s code)."""
    nearest = max(multiple, int(width + multiple / 2) // multiple * multiple)
    return nearest if nearest >= 0.9 * width else nearest + multiple
