"""Depthwise separable networks for keyword spotting and other small pictures.

Source: Zhang et al. 2017, "Hello Edge: Keyword Spotting on Microcontrollers"; the sizes of Banbury et al. 2021, "MLPerf
Tiny Benchmark".
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from torch import nn

from armlet.artifacts import InputSpec
from armlet.errors import UsageError
from armlet.models.activations import ACTIVATIONS
from armlet.models.blocks import classifier, conv_norm, picture_of
from armlet.models.families import FAMILIES, n_classes_of, parse_options


@dataclass(frozen=True, slots=True)
class DsCnnOptions:
    """Shape of a depthwise separable network.

    Attributes:
        channels: of all layers.
        depth: separable blocks.
        stem_kernel: height and width of the first layer's kernel; 10 × 4 suits spectrograms of 49 frames.
        stem_stride: of the first layer, both ways.
        dropout: share of pooled features dropped in training.
    """

    channels: int = 64
    depth: int = 4
    stem_kernel: tuple[int, int] = (10, 4)
    stem_stride: int = 2
    activation: str = "relu"
    dropout: float = 0.0


@FAMILIES.register("ds_cnn")
def build_ds_cnn(options: str, inputs: tuple[InputSpec, ...], output_shape: tuple[int, ...]) -> nn.Module:
    """Build the network: [N, C, H, W] -> [N, n_outputs]; layers `stem`, `block1.depthwise`, ..., `classifier`.

    Raises:
        UsageError: the picture is smaller than the first kernel.
    """
    chosen, n_outputs = parse_options(DsCnnOptions, options), n_classes_of("a ds_cnn", output_shape)
    n_inputs, *extents = picture_of("a ds_cnn", inputs)
    if any(extent < kernel for extent, kernel in zip(extents, chosen.stem_kernel, strict=True)):
        raise UsageError(
            f"pictures of {extents} are smaller than the stem's kernel {list(chosen.stem_kernel)}"
        )
    width = chosen.channels
    padding = (chosen.stem_kernel[0] - 1) // 2, (chosen.stem_kernel[1] - 1) // 2
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["stem"] = nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(n_inputs, width, chosen.stem_kernel, chosen.stem_stride, padding, bias=False),
            norm=nn.BatchNorm2d(width),
            activation=ACTIVATIONS[chosen.activation](),
        )
    )
    for number in range(1, chosen.depth + 1):
        layers[f"block{number}"] = nn.Sequential(
            OrderedDict(
                depthwise=conv_norm(width, width, groups=width, activation=chosen.activation),
                pointwise=conv_norm(width, width, 1, activation=chosen.activation),
            )
        )
    return nn.Sequential(layers | classifier(width, n_outputs, chosen.dropout))
