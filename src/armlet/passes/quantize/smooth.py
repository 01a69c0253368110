"""SmoothQuant: moves the large channels of activations into the weights that read them.

Source: Xiao et al. 2023, "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models".
A channel of a layer normalisation is divided, and the weights of all linear layers that read it multiplied, by
s = max|x|^α / max|w|^(1-α): the network's answers stay, and one scale fits all channels of the activation better. The
same is done between two layers that only relu, pooling or flattening stand between.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

from armlet.analysis.graph import Traced, arguments, aten, layer_name
from armlet.passes.quantize.equalize import parameter_of
from armlet.passes.quantize.joints import input_ranges, joints, scale_inputs, scale_outputs
from armlet.passes.quantize.ranges import Samples, values_of

_LEAST = 1e-5


@dataclass(frozen=True, slots=True)
class _Place:
    """A value whose channels are rescaled: what makes it, and the layers that read it."""

    value: Node
    weight: Tensor
    bias: Tensor | None
    readers: tuple[Node, ...]
    copies: int = 1


def smooth(traced: Traced, samples: Samples, alpha: float) -> tuple[int, tuple[str, ...]]:
    """Rescale the channels of activations, in place.

    Args:
        traced: of the module whose parameters change.
        samples: calibration samples, [N, *shape] for each input.
        alpha: 0 leaves all to the activations' scale, 1 moves all of it into the weights.

    Returns:
        how many values were rescaled, and which layer normalisations were not, and why.
    """
    places, notes = _places(traced)
    if not places:
        return 0, notes
    names = tuple(place.value.name for place in places)
    largest = [torch.zeros(len(place.weight)).double() for place in places]
    for values in values_of(traced, names, samples):
        for position, (value, place) in enumerate(zip(values, places, strict=True)):
            channels = value.movedim(1, -1) if place.readers[0].target is not aten.linear.default else value
            rows = channels.reshape(-1, channels.shape[-1]).abs().double()
            found = rows.amax(dim=0).reshape(-1, place.copies).amax(dim=1)
            largest[position] = torch.maximum(largest[position], found)
    for place, found in zip(places, largest, strict=True):
        _rescale(traced, place, found, alpha)
    return len(places), notes


def _places(traced: Traced) -> tuple[tuple[_Place, ...], tuple[str, ...]]:
    found, notes = [], []
    for node in traced.nodes:
        if node.target is not aten.layer_norm.default:
            continue
        weight, bias = parameter_of(traced, node, 2), parameter_of(traced, node, 3)
        readers = tuple(node.users)
        if weight is None or weight.dim() != 1 or len(arguments(node)[2].users) > 1:
            notes.append(f"{layer_name(node)} is not smoothed: it has no weight of its own for each channel")
        elif any(r.target is not aten.linear.default or r.args[0] is not node for r in readers):
            notes.append(f"{layer_name(node)} is not smoothed: not only linear layers read it")
        else:
            found.append(_Place(node, weight, bias, readers))
    for joint in joints(traced)[0]:
        weight, bias = parameter_of(traced, joint.first, 1), parameter_of(traced, joint.first, 2)
        if weight is not None:
            found.append(_Place(joint.second.all_input_nodes[0], weight, bias, (joint.second,), joint.copies))
    return tuple(found), tuple(notes)


def _rescale(traced: Traced, place: _Place, largest: Tensor, alpha: float) -> None:
    weights = [parameter_of(traced, reader, 1) for reader in place.readers]
    ranges = [
        input_ranges(reader, weight.detach().double()).reshape(-1, place.copies).amax(dim=1)
        for reader, weight in zip(place.readers, weights, strict=True)
        if weight is not None
    ]
    read = torch.stack(ranges).amax(dim=0)
    factor = (largest.clamp(min=_LEAST) ** alpha / read.clamp(min=_LEAST) ** (1 - alpha)).clamp(min=_LEAST)
    scale_outputs(place.weight, place.bias, 1 / factor)
    for reader, weight in zip(place.readers, weights, strict=True):
        if weight is not None:
            scale_inputs(reader, weight, factor.repeat_interleave(place.copies))
