"""Learned rounding: each weight goes up or down as is best for what its layer puts out.

Source: Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training Quantization": every weight is its floor
plus a rectified sigmoid of a variable of its own, which is learned on the layer's outputs and drawn to 0 or 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from armlet.models.quantization import scales_over, weight_limit
from armlet.passes.quantize.ranges import Samples
from armlet.passes.quantize.simulation import Layer, Simulation

# The paper's: the sigmoid is stretched to reach 0 and 1, the pull grows as its exponent falls from 20 to 2, and it
# begins after a fifth of the steps.
_STRETCH = (-0.1, 1.1)
_EXPONENTS = (20.0, 2.0)
_WARM_UP = 0.2
_PULL = 0.01
_RATE = 0.01
_BATCH = 32


@dataclass(frozen=True, slots=True)
class Rounded:
    """What rounding did to one layer.

    Attributes:
        layer: its name.
        before: mean squared error of its outputs with weights rounded to the nearest.
        after: with those chosen.
    """

    layer: str
    before: float
    after: float


def adaround(
    simulation: Simulation, samples: Samples, n_steps: int, generator: torch.Generator
) -> tuple[Rounded, ...]:
    """Choose the rounding of every layer's weights, first to last; what comes before a layer is rounded already.

    Where the choice is no better than the nearest on the calibration samples, the nearest stays.

    Args:
        simulation: its layers get the chosen weights.
        samples: calibration samples, [N, *shape] for each input.
        n_steps: of the optimiser, for each layer.
        generator: draws the samples of each step.
    """
    return tuple(_adjust(simulation, layer, samples, n_steps, generator) for layer in simulation.layers)


def scales_of(layer: Layer, weight: Tensor) -> Tensor:
    """Return the scales of a layer's weight, of a shape that divides it."""
    return torch.from_numpy(scales_over(layer.weight, tuple(weight.shape)))


def _adjust(
    simulation: Simulation, layer: Layer, samples: Samples, n_steps: int, generator: torch.Generator
) -> Rounded:
    weight, bias = simulation.weight(layer), simulation.bias(layer)
    inputs = simulation.inputs(layer, samples)
    wanted = torch.cat([layer.clamped(reference) for reference, _ in simulation.sums(layer, samples)])
    scales, limit = scales_of(layer, weight), weight_limit(layer.weight.bits)
    floor = torch.floor(weight / scales)
    up = _learn(layer, (inputs, wanted), (floor, weight / scales - floor), bias, n_steps, generator)
    nearest = torch.clamp(torch.round(weight / scales), -limit, limit) * scales
    chosen = torch.clamp(floor + up, -limit, limit) * scales
    before, after = (_error(layer, inputs, wanted, w, bias) for w in (nearest, chosen))
    if after < before:
        simulation.set_weight(layer, chosen)
    return Rounded(layer.name, before, min(before, after))


def _learn(
    layer: Layer,
    data: tuple[Tensor, Tensor],
    split: tuple[Tensor, Tensor],
    bias: Tensor | None,
    n_steps: int,
    generator: torch.Generator,
) -> Tensor:
    """Return 0 or 1 for each weight: whether it is rounded up.

    Args:
        layer: whose weight it is.
        data: inputs and wanted outputs, [N, ...] each.
        split: the weight in units of its scales: floor and fraction.
        bias: of the layer.
        n_steps: of the optimiser.
        generator: draws the samples of each step.
    """
    (inputs, wanted), (floor, fraction) = data, split
    scales, limit = scales_of(layer, floor), weight_limit(layer.weight.bits)
    low, high = _STRETCH
    start = torch.logit((fraction - low) / (high - low))
    with torch.enable_grad():
        variables = start.clone().requires_grad_(True)
        optimizer = torch.optim.Adam([variables], _RATE)
        for step in range(n_steps):
            chosen = torch.randint(len(inputs), (min(_BATCH, len(inputs)),), generator=generator)
            share = (torch.sigmoid(variables) * (high - low) + low).clamp(0.0, 1.0)
            soft = torch.clamp(floor + share, -limit, limit) * scales
            found = layer.compute(inputs[chosen], soft, bias)
            loss = ((found - wanted[chosen]) ** 2).flatten(1).sum(dim=1).mean() / _places(layer, found)
            done = step / n_steps
            if done >= _WARM_UP:
                exponent = _exponent((done - _WARM_UP) / (1 - _WARM_UP))
                loss = loss + _PULL * (1 - (2 * share - 1).abs() ** exponent).sum()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return (variables.detach() >= 0).to(floor.dtype)


def _places(layer: Layer, outputs: Tensor) -> int:
    """Return at how many places each channel is computed: the paper's loss is a mean over them."""
    channel = 1 if outputs.dim() == 4 else -1
    return outputs[0].numel() // outputs.shape[channel]


def _exponent(done: float) -> float:
    first, last = _EXPONENTS
    return first + (last - first) * done


def _error(layer: Layer, inputs: Tensor, wanted: Tensor, weight: Tensor, bias: Tensor | None) -> float:
    with torch.no_grad():
        return float(((layer.compute(inputs, weight, bias) - wanted) ** 2).mean())
