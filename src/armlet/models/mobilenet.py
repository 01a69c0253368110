"""Networks for phones: MobileNet in three generations, and EfficientNet-Lite.

Source: Howard et al. 2017 (v1, table 1); Sandler et al. 2018 (v2, table 2); Howard et al. 2019 (v3, table 2);
EfficientNet-Lite0, Tan and Le 2019 without squeeze and excitation and with ReLU6, as Liu 2020 published it.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal

from torch import nn

from armlet.artifacts import InputSpec
from armlet.models.activations import ACTIVATIONS
from armlet.models.blocks import (
    InvertedRow,
    classifier,
    conv_norm,
    inverted_stages,
    picture_of,
    rounded,
    stem_stride,
)
from armlet.models.families import FAMILIES, n_classes_of, parse_options

_V1 = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))
# Expansion, channels, blocks, stride of the first one, kernel.
_V2 = (
    (1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 32, 3, 2, 3), (6, 64, 4, 2, 3), (6, 96, 3, 1, 3), (6, 160, 3, 2, 3),
    (6, 320, 1, 1, 3),
)  # fmt: skip
_LITE0 = (
    (1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3), (6, 112, 3, 1, 5), (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)  # fmt: skip
# Kernel, expanded, channels, whether it squeezes, activation, stride.
_V3_SMALL = (
    (3, 16, 16, True, "relu", 2), (3, 72, 24, False, "relu", 2), (3, 88, 24, False, "relu", 1),
    (5, 96, 40, True, "hard_swish", 2), (5, 240, 40, True, "hard_swish", 1), (5, 240, 40, True, "hard_swish", 1),
    (5, 120, 48, True, "hard_swish", 1), (5, 144, 48, True, "hard_swish", 1), (5, 288, 96, True, "hard_swish", 2),
    (5, 576, 96, True, "hard_swish", 1), (5, 576, 96, True, "hard_swish", 1),
)  # fmt: skip
_V3_HIDDEN = 1024


@dataclass(frozen=True, slots=True)
class MobilenetOptions:
    """Shape of a MobileNet.

    Attributes:
        width: multiplies all channels.
        stem_stride: of the first layer; 0 is 1 for pictures below 64 pixels, else 2.
        stochastic_depth: share of samples that the last block is skipped for in training; earlier ones less.
        dropout: share of pooled features dropped in training.
    """

    version: Literal["v1", "v2", "v3_small"] = "v2"
    width: float = 1.0
    stem_stride: int = 0
    stochastic_depth: float = 0.0
    dropout: float = 0.0


@dataclass(frozen=True, slots=True)
class EfficientnetLiteOptions:
    """Shape of an EfficientNet-Lite0; see `MobilenetOptions`."""

    stem_stride: int = 0
    stochastic_depth: float = 0.0
    dropout: float = 0.0


@FAMILIES.register("mobilenet")
def build_mobilenet(options: str, inputs: tuple[InputSpec, ...], output_shape: tuple[int, ...]) -> nn.Module:
    """Build a MobileNet: [N, C, H, W] -> [N, n_outputs]; layers `stem`, `blocks.block1`, ..., `classifier`."""
    chosen, n_outputs = parse_options(MobilenetOptions, options), n_classes_of("a mobilenet", output_shape)
    picture = picture_of("a mobilenet", inputs)
    stride = stem_stride(chosen.stem_stride, picture)
    match chosen.version:
        case "v1":
            return _v1(chosen, picture[0], stride, n_outputs)
        case "v2":
            first, last = rounded(32 * chosen.width), rounded(1280 * max(1.0, chosen.width))
            rows = _expanded_rows(_V2, first, chosen.width, chosen.stochastic_depth)
            return _inverted(picture[0], stride, first, rows, "relu6", last, chosen, n_outputs)
        case "v3_small":
            return _v3_small(chosen, picture[0], stride, n_outputs)


@FAMILIES.register("efficientnet_lite")
def build_efficientnet_lite(
    options: str, inputs: tuple[InputSpec, ...], output_shape: tuple[int, ...]
) -> nn.Module:
    """Build an EfficientNet-Lite0: [N, C, H, W] -> [N, n_outputs]; layers as in a MobileNet."""
    chosen = parse_options(EfficientnetLiteOptions, options)
    picture, n_outputs = (
        picture_of("an efficientnet_lite", inputs),
        n_classes_of("an efficientnet_lite", output_shape),
    )
    rows = _expanded_rows(_LITE0, 32, 1.0, 0.0)
    stride = stem_stride(chosen.stem_stride, picture)
    return _inverted(picture[0], stride, 32, rows, "relu6", 1280, chosen, n_outputs)


def _v1(chosen: MobilenetOptions, n_inputs: int, stride: int, n_outputs: int) -> nn.Module:
    width = rounded(32 * chosen.width)
    layers: OrderedDict[str, nn.Module] = OrderedDict(stem=conv_norm(n_inputs, width, 3, stride))
    blocks: OrderedDict[str, nn.Module] = OrderedDict()
    for number, (channels, block_stride) in enumerate(_V1, 1):
        after = rounded(channels * chosen.width)
        blocks[f"block{number}"] = nn.Sequential(
            OrderedDict(
                depthwise=conv_norm(width, width, 3, block_stride, width),
                pointwise=conv_norm(width, after, 1),
            )
        )
        width = after
    layers["blocks"] = nn.Sequential(blocks)
    return nn.Sequential(layers | classifier(width, n_outputs, chosen.dropout))


def _v3_small(chosen: MobilenetOptions, n_inputs: int, stride: int, n_outputs: int) -> nn.Module:
    first = rounded(16 * chosen.width)
    rows = []
    for kernel, expanded, channels, squeezes, activation, row_stride in _V3_SMALL:
        wide = rounded(expanded * chosen.width)
        squeezed = rounded(wide / 4) if squeezes else 0
        rows.append(
            InvertedRow(kernel, wide, rounded(channels * chosen.width), row_stride, activation, squeezed)
        )
    last = 6 * rows[-1].n_outputs
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["stem"] = conv_norm(n_inputs, first, 3, stride, activation="hard_swish")
    layers["blocks"] = inverted_stages(first, rows, chosen.stochastic_depth)
    layers["head"] = conv_norm(rows[-1].n_outputs, last, 1, activation="hard_swish")
    layers["pool"], layers["flatten"] = nn.AdaptiveAvgPool2d(1), nn.Flatten()
    hidden = rounded(_V3_HIDDEN * chosen.width)
    layers["hidden"] = nn.Sequential(
        OrderedDict(linear=nn.Linear(last, hidden), activation=ACTIVATIONS["hard_swish"]())
    )
    if chosen.dropout:
        layers["dropout"] = nn.Dropout(chosen.dropout)
    layers["classifier"] = nn.Linear(hidden, n_outputs)
    return nn.Sequential(layers)


def _expanded_rows(
    table: tuple[tuple[int, int, int, int, int], ...], n_inputs: int, width: float, dropped: float
) -> list[InvertedRow]:
    rows = []
    for expansion, channels, n_blocks, stride, kernel in table:
        after = rounded(channels * width)
        for number in range(n_blocks):
            rows.append(
                InvertedRow(kernel, expansion * n_inputs, after, stride if number == 0 else 1, "relu6")
            )
            n_inputs = after
    return rows


def _inverted(  # noqa: PLR0913 - what the two networks differ in
    n_inputs: int,
    stride: int,
    first: int,
    rows: list[InvertedRow],
    activation: str,
    last: int,
    chosen: MobilenetOptions | EfficientnetLiteOptions,
    n_outputs: int,
) -> nn.Module:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["stem"] = conv_norm(n_inputs, first, 3, stride, activation=activation)
    layers["blocks"] = inverted_stages(first, rows, chosen.stochastic_depth)
    layers["head"] = conv_norm(rows[-1].n_outputs, last, 1, activation=activation)
    return nn.Sequential(layers | classifier(last, n_outputs, chosen.dropout))
