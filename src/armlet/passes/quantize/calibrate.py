"""From a folded float network and calibration samples to its quantisation: scales, zero points, nothing else."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import numpy.typing as npt
import torch

from armlet.analysis.graph import Traced
from armlet.models.quantization import (
    WEIGHT_MAX,
    ActivationQuantization,
    ParameterQuantization,
    Quantization,
)
from armlet.passes.quantize.placement import Placement, WeightedLayer
from armlet.passes.quantize.ranges import activation_scale, min_max_ranges, percentile_ranges

# A channel far smaller than its neighbours gets a coarser scale than its own, so that multipliers stay in the
# range of fixed-point arithmetic; 2^-16 of the largest weight is far below one step of any other channel.
_LEAST_SHARE = 2.0**-16
# Half of an int32: the other half is left to the products that are added to the bias.
_BIAS_LIMIT = 2.0**30


def calibrate(
    traced: Traced,
    placement: Placement,
    samples: tuple[torch.Tensor, ...],
    percentile: float | None = None,
    one_scale: Collection[str] = (),
) -> Quantization:
    """Return the quantisation of a graph.

    Args:
        traced: the graph that `placement` was made for.
        placement: what is quantised.
        samples: [N, *shape] for each input.
        percentile: of the values of each activation that its range holds; None for all of them.
        one_scale: weights whose output channels all have the greatest of their scales, so that weights with few
            values become few integers.
    """
    observed = tuple(name for names in placement.shared for name in names)
    ranges = (
        min_max_ranges(traced, observed, samples)
        if percentile is None
        else percentile_ranges(traced, observed, samples, percentile)
    )
    found = dict(zip(observed, ranges, strict=True))
    activations = []
    for names in placement.shared:
        low, high = min(found[n][0] for n in names), max(found[n][1] for n in names)
        scale, zero_point = activation_scale(low, high)
        activations += [ActivationQuantization(name, scale, zero_point) for name in names]
    scale_of = {a.node: a.scale for a in activations}
    parameters = [
        p
        for layer in placement.layers
        for p in _layer(
            traced.program.state_dict, layer, scale_of[layer.input], one_scale=layer.weight in one_scale
        )
    ]
    return Quantization(tuple(activations), tuple(parameters))


def _layer(
    state: dict[str, torch.Tensor], layer: WeightedLayer, input_scale: float, *, one_scale: bool
) -> tuple[ParameterQuantization, ...]:
    weight = state[layer.weight].detach().numpy()
    bias = None if layer.bias is None else state[layer.bias].detach().numpy()
    scales = weight_scales(np.moveaxis(weight, layer.axis, 0), bias, input_scale)
    if one_scale:
        scales[:] = scales.max()
    quantized = ParameterQuantization(layer.weight, tuple(scales.tolist()), "int8", layer.axis)
    if layer.bias is None:
        return (quantized,)
    bias_scales = np.float32(input_scale) * scales
    return quantized, ParameterQuantization(layer.bias, tuple(bias_scales.tolist()), "int32")


def weight_scales(
    weight: npt.NDArray[np.float32], bias: npt.NDArray[np.float32] | None, input_scale: float
) -> npt.NDArray[np.float32]:
    """Return one scale for each output channel of a weight [O, ...].

    A scale is the largest |w| of the channel over 127, but never so small that the bias [O], in units of
    input_scale × scale, leaves the range of an int32, and never below 2^-16 of the layer's largest (1 where all
    weights are 0).
    """
    scales = np.abs(weight.astype(np.float64)).reshape(len(weight), -1).max(axis=1) / WEIGHT_MAX
    largest = scales.max()
    scales = np.maximum(scales, largest * _LEAST_SHARE if largest > 0 else 1.0)
    if bias is not None:
        scales = np.maximum(scales, np.abs(bias.astype(np.float64)) / (input_scale * _BIAS_LIMIT))
    rounded: npt.NDArray[np.float32] = scales.astype(np.float32)
    return rounded
