"""The network that is trained, with what is trained beside it only to compare it with its teachers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from armlet.train.distillation.layers import observe, valid_frames

_PREFIX = "network."


class Said(NamedTuple):
    """What a student says in training.

    Attributes:
        answer: of the network; in training maybe a pair with its penalty.
        seen: the values of the observed layers, in the order of the student's layers.
        mapped: values mapped to a teacher's width, in the order of the links.
        own: logits [N, n_classes] of the classifiers behind inner layers.
    """

    answer: Tensor | tuple[Tensor, Tensor]
    seen: tuple[Tensor, ...]
    mapped: tuple[Tensor, ...]
    own: tuple[Tensor, ...]


class Student(nn.Module):
    """A network whose layers are observed: inputs -> `Said`.

    Args:
        network: what comes out of the training, on its device.
        layers: that are observed.
        links: the layer and the widths before and after of each map to a teacher's width.
        own: the layers that get a classifier, with their widths.
        n_classes: of those classifiers.
    """

    def __init__(
        self,
        network: nn.Module,
        layers: Sequence[str],
        links: Sequence[tuple[str, int, int]],
        own: Mapping[str, int],
        n_classes: int,
    ) -> None:
        super().__init__()
        self.network = network
        self._layers, self._links, self._own = tuple(layers), tuple(links), tuple(own)
        device = next(network.parameters()).device
        self.maps = nn.ModuleList([nn.Linear(before, after) for _, before, after in links]).to(device)
        self.classifiers = nn.ModuleList([nn.Linear(width, n_classes) for width in own.values()]).to(device)

    def forward(self, *inputs: Tensor) -> Said:
        """Answer, and say what the layers were."""
        if not self._layers:
            return Said(self.network(*inputs), (), (), ())
        answer, seen = observe(self.network, inputs, self._layers)
        mapped = [
            _along_channels(layer, seen[name])
            for layer, (name, *_) in zip(self.maps, self._links, strict=True)
        ]
        own = [
            layer(_pooled(seen[name], inputs))
            for layer, name in zip(self.classifiers, self._own, strict=True)
        ]
        return Said(answer, tuple(seen[name] for name in self._layers), tuple(mapped), tuple(own))


def plain(module: nn.Module) -> nn.Module:
    """Return the network of a student, or the network itself."""
    return module.network if isinstance(module, Student) else module


def plain_state(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return the part of a student's state that is the network's."""
    return {name.removeprefix(_PREFIX): x for name, x in state.items() if name.startswith(_PREFIX)}


def _along_channels(layer: nn.Module, values: Tensor) -> Tensor:
    """Apply a linear layer to the channels of rows, pictures or sequences."""
    if values.dim() != 4:
        mapped: Tensor = layer(values)
        return mapped
    mapped = layer(values.movedim(1, 3))
    return mapped.movedim(3, 1)


def _pooled(values: Tensor, inputs: Sequence[Tensor]) -> Tensor:
    """Return the mean of a layer's values over pixels or valid frames, [N, C]."""
    if values.dim() == 4:
        return values.mean(dim=(2, 3))
    if values.dim() == 2:
        return values
    valid = valid_frames(values, inputs)
    if valid is None:
        return values.mean(dim=1)
    kept = torch.where(valid[:, :, None], values, 0.0)
    return kept.sum(dim=1) / valid.sum(dim=1, keepdim=True).clamp(min=1)
