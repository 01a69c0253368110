"""Deep convolutional generators, and the critics that train them.

Source: Radford, Metz and Chintala 2015, "DCGAN"; spectral normalisation, Miyato et al. 2018; deviation within a batch,
Karras et al. 2017, section 3.
"""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from armlet.artifacts import InputSpec
from armlet.errors import UsageError
from armlet.models.activations import ACTIVATIONS
from armlet.models.families import FAMILIES, only_input, parse_options

_GROUP = 4  # pictures whose deviation is one number, as Karras et al. have it
_SLOPE = 0.2  # of the critic's leaky ReLU, as in DCGAN


@dataclass(frozen=True, slots=True)
class GanOptions:
    """Shape of a generator and of its critic.

    Attributes:
        channels: of the generator's feature maps, the smallest picture first; each stage doubles the picture.
        activation: of the generator, after each layer but the last.
        critic_channels: of the critic's feature maps; each stage halves the picture.
        critic_depth: convolutions of each of the critic's stages; the first halves the picture.
        spectral_norm: whether each layer of the critic changes no vector's length by more than 1.
        minibatch_std: whether the critic sees how much pictures differ from each other.
    """

    channels: tuple[int, ...] = (128, 64)
    activation: str = "relu"
    critic_channels: tuple[int, ...] = (64, 128)
    critic_depth: int = 1
    spectral_norm: bool = True
    minibatch_std: bool = False


@FAMILIES.register("gan")
def build_generator(options: str, inputs: tuple[InputSpec, ...], output_shape: tuple[int, ...]) -> nn.Module:
    """Build a generator: random numbers [N, latent] -> pictures [N, C, H, W] from -1 to 1.

    Layers are named `project`, `stage1`, ..., `picture`.

    Raises:
        UsageError: the answer is no picture, or can't be halved once for each stage.
    """
    chosen, latent = parse_options(GanOptions, options), only_input("a gan", inputs).shape
    first = _smallest(output_shape, len(chosen.channels), "channels")
    n_first = chosen.channels[0] * math.prod(first)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["project"] = nn.Sequential(
        OrderedDict(
            # A bias right before batch normalisation would be subtracted again.
            linear=nn.Linear(math.prod(latent), n_first, bias=False),
            norm=nn.BatchNorm1d(n_first),
            activation=ACTIVATIONS[chosen.activation](),
            shape=nn.Unflatten(1, (-1, *first)),  # channels may be pruned
        )
    )
    for number, (before, width) in enumerate(itertools.pairwise(chosen.channels), 1):
        layers[f"stage{number}"] = nn.Sequential(
            OrderedDict(
                conv=nn.ConvTranspose2d(before, width, 4, 2, 1, bias=False),
                norm=nn.BatchNorm2d(width),
                activation=ACTIVATIONS[chosen.activation](),
            )
        )
    layers["picture"] = nn.ConvTranspose2d(chosen.channels[-1], output_shape[0], 4, 2, 1)
    layers["output"] = nn.Tanh()
    generator = nn.Sequential(layers)
    _initialise(generator)
    return generator


def build_critic(options: str, picture: tuple[int, ...]) -> nn.Module:
    """Build a generator's critic: pictures [N, C, H, W] -> [N, 1], higher for what looks real.

    Args:
        options: of the generator, as JSON.
        picture: (channels, height, width).

    Raises:
        UsageError: the picture can't be halved once for each stage.
    """
    chosen = parse_options(GanOptions, options)
    last = _smallest(picture, len(chosen.critic_channels), "critic_channels")
    layers: list[nn.Module] = []
    for before, width in itertools.pairwise((picture[0], *chosen.critic_channels)):
        layers += [nn.Conv2d(before, width, 4, 2, 1), nn.LeakyReLU(_SLOPE)]
        for _ in range(1, chosen.critic_depth):
            layers += [nn.Conv2d(width, width, 3, 1, 1), nn.LeakyReLU(_SLOPE)]
    width = chosen.critic_channels[-1]
    if chosen.minibatch_std:
        layers.append(MinibatchDeviation())
        width += 1
    layers += [nn.Flatten(), nn.Linear(width * math.prod(last), 1)]
    critic = nn.Sequential(*layers)
    _initialise(critic)
    if chosen.spectral_norm:
        for layer in critic:
            if isinstance(layer, nn.Conv2d | nn.Linear):
                spectral_norm(layer)
    return critic


class MinibatchDeviation(nn.Module):
    """Adds a channel, how much pictures of a small group differ: [N, C, H, W] -> [N, C + 1, H, W].

    Groups are of neighbours, so that real and generated pictures of one batch don't mix; a batch that can't be divided
    is one group.
    """

    def forward(self, maps: Tensor) -> Tensor:
        """Compute the layer."""
        n, *shape = maps.shape
        size = _GROUP if n % (2 * _GROUP) == 0 else n
        groups = maps.reshape(n // size, size, *shape)
        deviation = (groups.var(dim=1, correction=0) + 1e-8).sqrt().mean(dim=(1, 2, 3))
        channel = deviation.repeat_interleave(size)[:, None, None, None].expand(-1, 1, *shape[1:])
        return torch.cat([maps, channel], dim=1)


def _smallest(picture: tuple[int, ...], n_stages: int, key: str) -> tuple[int, int]:
    """Return height and width after halving once for each stage."""
    scale = 2**n_stages
    if len(picture) != 3 or any(extent % scale for extent in picture[1:]):
        raise UsageError(
            f"an answer of shape {list(picture)} is no picture that can be halved {n_stages} times ({key})"
        )
    return picture[1] // scale, picture[2] // scale


def _initialise(module: nn.Module) -> None:
    """Draw all weights from a narrow normal distribution (Radford et al. 2015, section 4)."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.normal_(layer.weight, 0.0, 0.02)
