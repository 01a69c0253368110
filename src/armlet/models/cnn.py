"""Small convolutional classifiers: stages of plain, residual or depthwise separable 3×3 blocks.

Source: plain, Simonyan and Zisserman 2014 (VGG); residual, He et al. 2015 (ResNet, basic block); separable,
Howard et al. 2017 (MobileNet); batch normalisation, Ioffe and Szegedy 2015; global average pooling, Lin et
al. 2013.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor, nn

from armlet.artifacts import InputSpec
from armlet.errors import UsageError
from armlet.models.activations import ACTIVATIONS
from armlet.models.families import FAMILIES, n_classes_of, only_input, parse_options
from armlet.registry import Registry


@dataclass(frozen=True, slots=True)
class CnnOptions:
    """Shape of a convolutional network.

    Attributes:
        channels: of each stage; every stage after the first halves height and width.
        block: "plain", "residual" or "separable"; the last two have a plain 3×3 stem before the first stage.
        depth: blocks in each stage, one number for all of them or one for each.
        downsample: "max_pool" halves before a stage's first block, "stride" in it.
        dropout: share of pooled features dropped in training, before the classifier.
    """

    channels: tuple[int, ...] = (16, 32, 64)
    block: str = "plain"
    depth: int | tuple[int, ...] = 1
    downsample: Literal["stride", "max_pool"] = "max_pool"
    activation: str = "relu"
    dropout: float = 0.0

    def depths(self) -> tuple[int, ...]:
        """Return the blocks of each stage."""
        return (self.depth,) * len(self.channels) if isinstance(self.depth, int) else self.depth


class Block(Protocol):
    """Makes one block: [N, n_inputs, H, W] -> [N, n_outputs, H/stride, W/stride]."""

    def __call__(self, n_inputs: int, n_outputs: int, stride: int, activation: str) -> nn.Module:
        """Make it, freshly initialised."""


BLOCKS: Registry[Block] = Registry("block")


@BLOCKS.register("plain")
def plain(n_inputs: int, n_outputs: int, stride: int, activation: str) -> nn.Module:
    """One 3×3 convolution with batch normalisation and activation."""
    return nn.Sequential(
        OrderedDict(
            conv=_conv3x3(n_inputs, n_outputs, stride),
            norm=nn.BatchNorm2d(n_outputs),
            activation=ACTIVATIONS[activation](),
        )
    )


@BLOCKS.register("separable")
def separable(n_inputs: int, n_outputs: int, stride: int, activation: str) -> nn.Module:
    """A depthwise 3×3 and a 1×1 convolution, each with batch normalisation and activation."""
    return nn.Sequential(
        OrderedDict(
            depthwise=_conv3x3(n_inputs, n_inputs, stride, groups=n_inputs),
            norm1=nn.BatchNorm2d(n_inputs),
            activation1=ACTIVATIONS[activation](),
            pointwise=nn.Conv2d(n_inputs, n_outputs, 1, bias=False),
            norm2=nn.BatchNorm2d(n_outputs),
            activation2=ACTIVATIONS[activation](),
        )
    )


@BLOCKS.register("residual")
class Residual(nn.Module):
    """Adds a branch to its input: [N, C, H, W] -> [N, C', H/stride, W/stride].

    Args:
        n_inputs, n_outputs: channels; where the shapes differ the shortcut is a 1×1 convolution.
    """

    def __init__(self, n_inputs: int, n_outputs: int, stride: int, activation: str) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            OrderedDict(
                conv1=_conv3x3(n_inputs, n_outputs, stride),
                norm1=nn.BatchNorm2d(n_outputs),
                activation1=ACTIVATIONS[activation](),
                conv2=_conv3x3(n_outputs, n_outputs),
                norm2=nn.BatchNorm2d(n_outputs),
            )
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or n_inputs != n_outputs:
            self.shortcut = nn.Sequential(
                OrderedDict(
                    conv=nn.Conv2d(n_inputs, n_outputs, 1, stride, bias=False), norm=nn.BatchNorm2d(n_outputs)
                )
            )
        self.activation = ACTIVATIONS[activation]()

    def forward(self, inputs: Tensor) -> Tensor:
        """Compute the block."""
        result: Tensor = self.activation(self.branch(inputs) + self.shortcut(inputs))
        return result


@FAMILIES.register("cnn")
def build_cnn(options: str, inputs: tuple[InputSpec, ...], output_shape: tuple[int, ...]) -> nn.Module:
    """Build a convolutional network: [N, C, H, W] -> [N, n_outputs] logits.

    Layers are named `stem`, `stage1.block1.conv`, ..., `classifier`.

    Raises:
        UsageError: the input is not a picture, or too small to be halved once for each stage after the first; or not
            every stage has its depth.
    """
    chosen = parse_options(CnnOptions, options)
    input_shape, n_outputs = only_input("a cnn", inputs).shape, n_classes_of("a cnn", output_shape)
    if len(input_shape) != 3:
        raise UsageError(f"a cnn takes pictures of shape (channels, height, width), not {input_shape}")
    n_halvings = len(chosen.channels) - 1
    if min(input_shape[1:]) < 2**n_halvings:
        raise UsageError(
            f"pictures of {input_shape[1:]} can't be halved {n_halvings} times; use fewer stages"
        )
    depths = chosen.depths()
    if len(depths) != len(chosen.channels):
        raise UsageError(f"{len(depths)} depths don't fit {len(chosen.channels)} stages of channels")
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    width = input_shape[0]
    if chosen.block != "plain":
        layers["stem"] = plain(width, chosen.channels[0], 1, chosen.activation)
        width = chosen.channels[0]
    for number, (n_channels, depth) in enumerate(zip(chosen.channels, depths, strict=True), start=1):
        layers[f"stage{number}"] = _stage(width, n_channels, chosen, depth, halve=number > 1)
        width = n_channels
    layers["pool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    if chosen.dropout:
        layers["dropout"] = nn.Dropout(chosen.dropout)
    layers["classifier"] = nn.Linear(width, n_outputs)
    return nn.Sequential(layers)


def _stage(n_inputs: int, n_channels: int, options: CnnOptions, depth: int, *, halve: bool) -> nn.Sequential:
    """[N, n_inputs, H, W] -> [N, n_channels, H, W], or half of H and W."""
    block = BLOCKS[options.block]
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    if halve and options.downsample == "max_pool":
        parts["pool"] = nn.MaxPool2d(2)
    for number in range(1, depth + 1):
        first = number == 1
        stride = 2 if halve and first and options.downsample == "stride" else 1
        parts[f"block{number}"] = block(
            n_inputs if first else n_channels, n_channels, stride, options.activation
        )
    return nn.Sequential(parts)


def _conv3x3(n_inputs: int, n_outputs: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    # No bias: batch normalisation follows and would subtract it again.
    return nn.Conv2d(n_inputs, n_outputs, 3, stride, padding=1, groups=groups, bias=False)
