"""Autoencoders: dense ones for rows of numbers, convolutional ones for pictures, variational if asked for.

Sources: Hinton and Salakhutdinov 2006; denoising, Vincent et al. 2008; variational, Kingma and Welling 2013, with the
weight beta of Higgins et al. 2017; shortcuts between encoder and decoder, Ronneberger et al. 2015 (added, not joined).
"""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from armlet.artifacts import InputSpec
from armlet.errors import UsageError
from armlet.models.activations import ACTIVATIONS
from armlet.models.families import FAMILIES, only_input, parse_options


@dataclass(frozen=True, slots=True)
class AutoencoderOptions:
    """Shape of an autoencoder.

    Attributes:
        hidden: units of each layer of the encoder of rows; the decoder has them in reverse.
        channels: of each stage of the encoder of pictures, each after the first halving them; the decoder doubles.
        code: width of the code between encoder and decoder; 0 leaves pictures as feature maps.
        shortcuts: whether each stage of the decoder adds what the encoder had at that size.
        variational: whether the code is drawn from a normal distribution in training.
        beta: weight of the distribution's divergence from the standard one.
        output: what limits the answer: nothing, or a sigmoid for values from 0 to 1.
    """

    hidden: tuple[int, ...] = (32,)
    channels: tuple[int, ...] = (16, 32)
    code: int = 3
    activation: str = "relu"
    norm: Literal["none", "batch"] = "none"
    shortcuts: bool = False
    variational: bool = False
    beta: float = 1.0
    output: Literal["linear", "sigmoid"] = "linear"


class Autoencoder(nn.Module):
    """Encoder, code, decoder: [N, ...] -> [N, ...] of the same shape.

    In training a variational one answers with a pair: the reconstruction, and the divergence of the code's
    distribution, weighted with beta, for each value of the reconstruction.

    Args:
        encoder: gives [N, width].
        width: of what it gives.
        decoder: takes [N, width].
        options: code, and whether it is variational.
    """

    def __init__(
        self, encoder: nn.Module, width: int, decoder: nn.Module, options: AutoencoderOptions
    ) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.bottleneck = nn.Linear(width, options.code)
        self.spread = nn.Linear(width, options.code) if options.variational else None
        self.expand = nn.Sequential(
            OrderedDict(linear=nn.Linear(options.code, width), activation=ACTIVATIONS[options.activation]())
        )
        self.beta = options.beta
        # The graph of evaluation has no `spread`: what prunes the bottleneck must be told to prune it alike.
        self.shaped_alike = {"spread": "bottleneck"} if options.variational else {}

    def forward(self, inputs: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Reconstruct; in evaluation from the mean of the code."""
        features = self.encoder(inputs)
        code = self.bottleneck(features)
        if self.spread is None or not self.training:
            answer: Tensor = self.decoder(self.expand(code))
            return answer
        log_variance = self.spread(features)
        drawn = code + torch.randn_like(code) * (log_variance / 2).exp()
        answer = self.decoder(self.expand(drawn))
        divergence = normal_divergence(code, log_variance).mean() * self.beta / answer[0].numel()
        return answer, divergence


def normal_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return the Kullback-Leibler divergence of normal distributions from the standard one, [N] of [N, code]."""
    return (mean.square() + log_variance.exp() - 1 - log_variance).sum(dim=1) / 2


class Shortcuts(nn.Module):
    """Stages that halve a picture and stages that double it again, each adding what there was at its size.

    Args:
        down: stages, each after the first halving.
        up: stages, each doubling, one fewer.
        picture: of the last stage's feature maps.
    """

    def __init__(self, down: list[nn.Module], up: list[nn.Module], picture: nn.Module) -> None:
        super().__init__()
        self.down, self.up, self.picture = nn.ModuleList(down), nn.ModuleList(up), picture

    def forward(self, inputs: Tensor) -> Tensor:
        """Reconstruct: [N, C, H, W] -> [N, C, H, W]."""
        found = [inputs]
        for stage in self.down:
            found.append(stage(found[-1]))
        features = found.pop()
        for stage in self.up:
            features = stage(features) + found.pop()
        picture: Tensor = self.picture(features)
        return picture


def _part(layer: nn.Module, width: int, options: AutoencoderOptions) -> nn.Sequential:
    parts: OrderedDict[str, nn.Module] = OrderedDict(layer=layer)
    if options.norm == "batch":
        parts["norm"] = nn.BatchNorm1d(width) if isinstance(layer, nn.Linear) else nn.BatchNorm2d(width)
    parts["activation"] = ACTIVATIONS[options.activation]()
    return nn.Sequential(parts)


def _dense(widths: tuple[int, ...], options: AutoencoderOptions) -> nn.Sequential:
    """Return layers from the first width to the last."""
    pairs = itertools.pairwise(widths)
    return nn.Sequential(
        OrderedDict(
            (f"layer{n}", _part(nn.Linear(before, after), after, options))
            for n, (before, after) in enumerate(pairs, 1)
        )
    )


def _rows(shape: tuple[int, ...], options: AutoencoderOptions) -> nn.Module:
    n_values = math.prod(shape)
    encoder = _dense((n_values, *options.hidden), options)
    decoder = _dense(options.hidden[::-1], options)
    decoder.add_module("values", nn.Linear(options.hidden[0], n_values))
    if options.output == "sigmoid":
        decoder.add_module("output", nn.Sigmoid())
    if len(shape) > 1:
        encoder = nn.Sequential(OrderedDict(flatten=nn.Flatten(), dense=encoder))
        decoder.add_module("shape", nn.Unflatten(1, shape))
    return Autoencoder(encoder, options.hidden[-1], decoder, options)


def _pictures(shape: tuple[int, ...], options: AutoencoderOptions) -> nn.Module:
    widths = options.channels
    befores = (shape[0], *widths)
    down: list[nn.Module] = [
        _part(nn.Conv2d(before, width, 3, 2 if number else 1, 1), width, options)
        for number, (before, width) in enumerate(zip(befores, widths, strict=False))
    ]
    up: list[nn.Module] = [
        _part(nn.ConvTranspose2d(before, width, 4, 2, 1), width, options)
        for before, width in itertools.pairwise(widths[::-1])
    ]
    last: list[nn.Module] = [nn.Conv2d(widths[0], shape[0], 3, padding=1)]
    last += [nn.Sigmoid()] if options.output == "sigmoid" else []
    if options.shortcuts:
        return Shortcuts(down, up, nn.Sequential(*last))
    if not options.code:
        return nn.Sequential(*down, *up, *last)
    scale = 2 ** (len(widths) - 1)
    inner = (widths[-1], shape[1] // scale, shape[2] // scale)
    decoder = nn.Sequential(nn.Unflatten(1, (-1, *inner[1:])), *up, *last)  # channels may be pruned
    return Autoencoder(nn.Sequential(*down, nn.Flatten()), math.prod(inner), decoder, options)


@FAMILIES.register("autoencoder")
def build_autoencoder(
    options: str, inputs: tuple[InputSpec, ...], output_shape: tuple[int, ...]
) -> nn.Module:
    """Build an autoencoder: [N, ...] -> [N, ...].

    Raises:
        UsageError: input and output differ in shape, a picture can't be halved so often, shortcuts go past a
            code, or there is no code to draw.
    """
    chosen, shape = parse_options(AutoencoderOptions, options), only_input("an autoencoder", inputs).shape
    if chosen.variational and not chosen.code:
        raise UsageError("a variational autoencoder draws its code: use a code above 0")
    if shape != tuple(output_shape):
        raise UsageError(
            f"an autoencoder answers with its input's shape {list(shape)}, not {list(output_shape)}"
        )
    if len(shape) != 3:
        if not chosen.code:
            raise UsageError("an autoencoder of rows needs a code: only pictures can go without")
        return _rows(shape, chosen)
    halvings = 2 ** (len(chosen.channels) - 1)
    if any(extent % halvings for extent in shape[1:]):
        raise UsageError(
            f"pictures of {shape[1]}×{shape[2]} can't be halved {len(chosen.channels) - 1} times"
        )
    if chosen.shortcuts and chosen.code:
        raise UsageError("shortcuts would go past the code: use code: 0")
    return _pictures(shape, chosen)
