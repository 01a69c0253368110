"""How much each layer loses by being quantised alone, which says what is worth leaving float."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Module

from armlet.analysis.graph import Traced
from armlet.models.quantization import Quantization, quantized_graph
from armlet.passes.quantize.placement import Placement
from armlet.passes.quantize.ranges import Samples
from armlet.passes.quantize.simulation import layers_of

_MOST_SAMPLES = 128


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """What quantising one layer alone does to the network's answers.

    Attributes:
        layer: its name.
        error: mean squared change of the answers, as a share of their variance.
    """

    layer: str
    error: float


def sensitivities(
    traced: Traced, placement: Placement, quantization: Quantization, samples: Samples
) -> tuple[Sensitivity, ...]:
    """Return the sensitivity of each layer with integer weights, recurrent ones and embeddings too, largest first.

    Args:
        traced: the float graph.
        placement: what is quantised.
        quantization: of all layers.
        samples: calibration samples, [N, *shape] for each input; the first 128 are used.
    """
    some = tuple(x[:_MOST_SAMPLES] for x in samples)
    wanted = _answers(traced.runnable(), some)
    variance = float(wanted.var()) or 1.0
    found = []
    for name, alone in _alone(traced, placement, quantization):
        answers = _answers(quantized_graph(traced, alone), some)
        found.append(Sensitivity(name, float(((answers - wanted) ** 2).mean()) / variance))
    return tuple(sorted(found, key=lambda s: -s.error))


def _alone(
    traced: Traced, placement: Placement, quantization: Quantization
) -> Iterator[tuple[str, Quantization]]:
    """Give the name of each layer and the quantisation of what it takes, holds and gives."""
    parts: list[tuple[tuple[str, ...], tuple[str | None, ...]]] = []
    for layer in layers_of(traced, placement, quantization):
        results = [node.name for node in (layer.clamp, layer.node) if node is not None]
        parts.append(((layer.placed.input, *results), (layer.placed.weight, layer.placed.bias)))
    for recurrent in placement.recurrent:
        weights = recurrent.weight, recurrent.recurrent_weight
        parts.append(((recurrent.input, *recurrent.results), weights))
    parts += [((table.node,), (table.weight,)) for table in placement.tables]
    for nodes, parameters in parts:
        yield (
            (parameters[0] or "").rpartition(".")[0],
            Quantization(
                tuple(a for a in quantization.activations if a.node in nodes),
                tuple(p for p in quantization.parameters if p.parameter in parameters),
            ),
        )


def _answers(module: Module, samples: Samples) -> Tensor:
    with torch.no_grad():
        answers: Tensor = module(*samples)
    return answers
