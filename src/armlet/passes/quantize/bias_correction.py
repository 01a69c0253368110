"""Takes out of each layer's bias what quantisation adds to its outputs on average.

Source: Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction": the shift of each
channel's mean, either measured on calibration samples (appendix D) or computed from the weights' error and the mean of
the layer's inputs (section 4.2).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from armlet.models.quantization import dequantized_values, quantized_values
from armlet.passes.quantize.ranges import Samples
from armlet.passes.quantize.simulation import Layer, Simulation


def correct_biases(simulation: Simulation, samples: Samples) -> tuple[str, ...]:
    """Measure and take out the shift of each channel, first to last layer; what comes before is corrected already.

    Args:
        simulation: its layers get the corrected biases.
        samples: calibration samples, [N, *shape] for each input.

    Returns:
        names of the layers that have no bias to correct.
    """
    missing = []
    for layer in simulation.layers:
        bias = simulation.bias(layer)
        if bias is None:
            missing.append(layer.name)
            continue
        shift = torch.zeros(len(bias), dtype=torch.float64)
        for wanted, found in simulation.sums(layer, samples):
            shift += _channel_means((found - wanted).double()) * (len(found) / len(samples[0]))
        simulation.set_bias(layer, bias - shift.float())
    return tuple(missing)


def _channel_means(values: Tensor) -> Tensor:
    return values.mean(dim=(0, 2, 3)) if values.dim() == 4 else values.flatten(0, -2).mean(dim=0)


def correct_biases_by_means(simulation: Simulation, means: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Compute and take out the shift of each channel that the weights' error makes of the inputs' means.

    Args:
        simulation: its layers get the corrected biases.
        means: expected value of each input channel, [C], by the name of the node that a layer takes.

    Returns:
        names of the layers that have no bias to correct.
    """
    missing = []
    for layer in simulation.layers:
        bias = simulation.bias(layer)
        if bias is None:
            missing.append(layer.name)
            continue
        simulation.set_bias(layer, bias - _expected_shift(simulation, layer, means[layer.placed.input]))
    return tuple(missing)


def _expected_shift(simulation: Simulation, layer: Layer, means: Tensor) -> Tensor:
    weight = simulation.weight(layer)
    integers = quantized_values(weight.numpy(), layer.weight)
    error = (torch.from_numpy(dequantized_values(integers, layer.weight)) - weight).double()
    # A sum over the kernel's places: what the padding adds to pictures' edges is left out.
    by_input = error.flatten(2).sum(dim=2) if error.dim() > 2 else error
    if layer.weight.axis == 1:
        return (means.double() @ by_input).float()
    grouped = by_input.reshape(layer.groups, -1, by_input.shape[1])
    shift = grouped @ means.double().reshape(layer.groups, -1, 1)
    return shift.flatten().float()
