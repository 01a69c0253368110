"""Residual networks of basic blocks.

Source: He et al. 2015, "Deep Residual Learning for Image Recognition": section 4.2 for small pictures, table 1 for
ImageNet's. Depth 8 is the network of Banbury et al. 2021, "MLPerf Tiny Benchmark".
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from torch import Tensor, nn

from armlet.artifacts import InputSpec
from armlet.models.activations import ACTIVATIONS
from armlet.models.blocks import classifier, conv_norm, picture_of, skipped
from armlet.models.families import FAMILIES, n_classes_of, parse_options

IMAGENET_STAGES = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}


@dataclass(frozen=True, slots=True)
class ResnetOptions:
    """Shape of a residual network.

    Attributes:
        depth: 8, 20, 32, 44 or 56 for small pictures; 18 or 34 for ImageNet's.
        width: multiplies all channels.
        stochastic_depth: share of samples that the last block is skipped for in training; earlier ones less.
        dropout: share of pooled features dropped in training.
    """

    depth: int = 8
    width: float = 1.0
    activation: str = "relu"
    stochastic_depth: float = 0.0
    dropout: float = 0.0


class BasicBlock(nn.Module):
    """Adds a branch of two 3×3 convolutions to its input: [N, C, H, W] -> [N, C', H/stride, W/stride].

    Args:
        n_inputs: channels of the input.
        n_outputs: channels of the answer; where the shapes differ the shortcut is a 1×1 convolution.
        stride: of the first convolution.
        activation: after the first convolution and after the sum.
        dropped: share of samples that the branch is skipped for in training.
    """

    def __init__(self, n_inputs: int, n_outputs: int, stride: int, activation: str, dropped: float) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            OrderedDict(
                first=conv_norm(n_inputs, n_outputs, 3, stride, activation=activation),
                second=conv_norm(n_outputs, n_outputs, activation=None),
            )
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or n_inputs != n_outputs:
            self.shortcut = conv_norm(n_inputs, n_outputs, 1, stride, activation=None)
        self.activation, self.dropped = ACTIVATIONS[activation](), dropped

    def forward(self, inputs: Tensor) -> Tensor:
        """Compute the block."""
        branch = skipped(self.branch(inputs), self.dropped, training=self.training)
        result: Tensor = self.activation(branch + self.shortcut(inputs))
        return result


@FAMILIES.register("resnet")
def build_resnet(options: str, inputs: tuple[InputSpec, ...], output_shape: tuple[int, ...]) -> nn.Module:
    """Build a residual network: [N, C, H, W] -> [N, n_outputs]; layers `stem`, `stage1.block1`, ..., `classifier`."""
    chosen, n_outputs = parse_options(ResnetOptions, options), n_classes_of("a resnet", output_shape)
    n_inputs, large = picture_of("a resnet", inputs)[0], chosen.depth in IMAGENET_STAGES
    stages = IMAGENET_STAGES[chosen.depth] if large else ((chosen.depth - 2) // 6,) * 3
    widths = [round((64 if large else 16) * chosen.width) * 2**n for n in range(len(stages))]
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["stem"] = conv_norm(
        n_inputs, widths[0], *((7, 2) if large else (3, 1)), activation=chosen.activation
    )
    if large:
        layers["stem_pool"] = nn.MaxPool2d(3, 2, 1)
    before, done, n_blocks = widths[0], 0, sum(stages)
    for number, (n, width) in enumerate(zip(stages, widths, strict=True), 1):
        blocks: OrderedDict[str, nn.Module] = OrderedDict()
        for position in range(n):
            stride = 2 if number > 1 and position == 0 else 1
            done += 1
            dropped = chosen.stochastic_depth * done / n_blocks
            blocks[f"block{position + 1}"] = BasicBlock(before, width, stride, chosen.activation, dropped)
            before = width
        layers[f"stage{number}"] = nn.Sequential(blocks)
    return nn.Sequential(layers | classifier(before, n_outputs, chosen.dropout))
