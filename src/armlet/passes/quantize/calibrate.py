"""From a folded float network and calibration samples to its quantisation: scales, zero points, nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from armlet.analysis.graph import Traced
from armlet.models.quantization import (
    ActivationQuantization,
    ParameterQuantization,
    Quantization,
    weight_limit,
)
from armlet.passes.quantize.observers import ObserverOptions, observe
from armlet.passes.quantize.placement import Placement, WeightedLayer
from armlet.passes.quantize.ranges import Range, activation_scale
from armlet.passes.quantize.simulation import weight_nodes

# A channel far smaller than its neighbours gets a coarser scale than its own, so that multipliers stay in the
# range of fixed-point arithmetic; 2^-16 of the largest weight is far below one step of any other channel.
_LEAST_SHARE = 2.0**-16
# Half of an int32: the other half is left to the products that are added to the bias.
_BIAS_LIMIT = 2.0**30
_SHARES = np.linspace(0.3, 1.0, 71)

Weights = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class NumberFormat:
    """What the integers are like.

    Attributes:
        symmetric: whether the zero point of activations is 0.
        per_channel: whether each output channel of a weight has a scale of its own, or all have one.
        weight_bits: of the integers of a weight: 8, or 4 for those from -7 to 7.
        weight_range: "max" holds the largest weight, "mse" has the least mean squared error.
        four_bits: names of weights that have 4 bits whatever the others have.
        one_scale: names of weights that have one scale whatever the others have, so that few values of theirs become
            few integers.
        group: inputs of a linear layer that share a scale; 0 for one scale for all inputs of an output channel.
    """

    symmetric: bool = False
    per_channel: bool = True
    weight_range: Literal["max", "mse"] = "max"
    weight_bits: Literal[8, 4] = 8
    four_bits: frozenset[str] = frozenset()
    one_scale: frozenset[str] = frozenset()
    group: int = 0

    def of(self, weight: str) -> NumberFormat:
        """Return what the integers of one weight are like."""
        return replace(
            self,
            weight_bits=4 if weight in self.four_bits else self.weight_bits,
            per_channel=self.per_channel and weight not in self.one_scale,
            group=0 if weight in self.one_scale else self.group,
        )

    def group_of(self, shape: tuple[int, ...]) -> int:
        """Return how many inputs of a weight share a scale: 0, for all, where it is no matrix of whole groups."""
        return self.group if self.group and len(shape) == 2 and shape[1] % self.group == 0 else 0


_OBSERVER, _NUMBERS = ObserverOptions(), NumberFormat()


def calibrate(
    traced: Traced,
    placement: Placement,
    samples: tuple[torch.Tensor, ...],
    observer: ObserverOptions = _OBSERVER,
    numbers: NumberFormat = _NUMBERS,
) -> Quantization:
    """Return the quantisation of a graph.

    Args:
        traced: the graph that `placement` was made for.
        placement: what is quantised.
        samples: [N, *shape] for each input.
        observer: how ranges come from them.
        numbers: what the integers are like.
    """
    observed = tuple(name for names in placement.shared for name in names)
    return quantization_of(traced, placement, observe(traced, observed, samples, observer), numbers)


def quantization_of(
    traced: Traced, placement: Placement, ranges: Mapping[str, Range], numbers: NumberFormat
) -> Quantization:
    """Return the quantisation that follows from the range of each quantised value, by the name of its node."""
    activations, state = [], traced.program.state_dict
    tables = {t.node: state[t.weight].detach().numpy() for t in placement.tables}
    for names in placement.shared:
        low, high = min(ranges[n][0] for n in names), max(ranges[n][1] for n in names)
        if looked_up := [tables[n] for n in names if n in tables]:
            high = max(-low, high, *(float(np.abs(table).max()) for table in looked_up))
            scale, zero_point = float(np.float32(high / weight_limit(8) or 1.0)), 0
        else:
            scale, zero_point = activation_scale(low, high, symmetric=numbers.symmetric)
        activations += [ActivationQuantization(name, scale, zero_point) for name in names]
    scale_of = {a.node: a.scale for a in activations}
    parameters = [
        p for layer in placement.layers for p in _layer(state, layer, scale_of[layer.input], numbers)
    ]
    parameters += [
        ParameterQuantization(t.weight, (scale_of[t.node],) * len(tables[t.node]), "int8")
        for t in placement.tables
    ]
    parameters += _recurrent_weights(state, placement, numbers)
    return Quantization(tuple(activations), tuple(parameters))


def weights_alone(traced: Traced, placement: Placement, numbers: NumberFormat) -> Quantization:
    """Return the quantisation of the weights of all layers that have integer ones; everything else stays float."""
    parameters, nodes = [], weight_nodes(traced)
    for layer in placement.layers:
        if layer.weight not in nodes:
            continue
        own = numbers.of(layer.weight)
        weight = np.moveaxis(traced.program.state_dict[layer.weight].detach().numpy(), layer.axis, 0)
        group = own.group_of(weight.shape)
        rows = weight.reshape(-1, group) if group else weight
        scales = tuple(weight_scales(rows, None, 1.0, own).tolist())
        parameters.append(
            ParameterQuantization(layer.weight, scales, "int8", layer.axis, own.weight_bits, group=group)
        )
    for table in placement.tables:
        own = replace(numbers.of(table.weight), weight_bits=8)
        scales = tuple(
            weight_scales(traced.program.state_dict[table.weight].detach().numpy(), None, 1.0, own).tolist()
        )
        parameters.append(ParameterQuantization(table.weight, scales, "int8"))
    parameters += _recurrent_weights(traced.program.state_dict, placement, numbers)
    return Quantization((), tuple(parameters))


def _layer(
    state: dict[str, torch.Tensor], layer: WeightedLayer, input_scale: float, numbers: NumberFormat
) -> tuple[ParameterQuantization, ...]:
    numbers = numbers.of(layer.weight)
    weight = state[layer.weight].detach().numpy()
    bias = None if layer.bias is None else state[layer.bias].detach().numpy()
    scales = weight_scales(np.moveaxis(weight, layer.axis, 0), bias, input_scale, numbers)
    quantized = ParameterQuantization(
        layer.weight, tuple(scales.tolist()), "int8", layer.axis, numbers.weight_bits
    )
    if layer.bias is None:
        return (quantized,)
    bias_scales = np.float32(input_scale) * scales
    return quantized, ParameterQuantization(layer.bias, tuple(bias_scales.tolist()), "int32")


def _recurrent_weights(
    state: dict[str, torch.Tensor], placement: Placement, numbers: NumberFormat
) -> Iterator[ParameterQuantization]:
    """Give the quantisation of recurrent layers' weights [D, rows, columns]: directions share the scale of a row."""
    for name in (name for r in placement.recurrent for name in (r.weight, r.recurrent_weight)):
        own = numbers.of(name)
        scales = weight_scales(np.moveaxis(state[name].detach().numpy(), 1, 0), None, 1.0, own)
        yield ParameterQuantization(name, tuple(scales.tolist()), "int8", 1, own.weight_bits)


def weight_scales(
    weight: Weights,
    bias: Weights | None,
    input_scale: float,
    numbers: NumberFormat = _NUMBERS,
) -> Weights:
    """Return one scale for each output channel of a weight [O, ...]; the same for all where there is but one.

    A scale is that of the channel's range, but never so small that the bias [O], in units of input_scale × scale,
    leaves the range of an int32, and never below 2^-16 of the layer's largest (1 where all weights are 0).
    """
    rows = weight.astype(np.float64).reshape(len(weight) if numbers.per_channel else 1, -1)
    scales = np.abs(rows).max(axis=1) / weight_limit(numbers.weight_bits)
    if numbers.weight_range == "mse":
        scales = _least_error(rows, scales, weight_limit(numbers.weight_bits))
    return limited_scales(np.broadcast_to(scales, len(weight)), bias, input_scale, numbers)


def limited_scales(
    scales: npt.NDArray[np.float64], bias: Weights | None, input_scale: float, numbers: NumberFormat
) -> Weights:
    """Return the scales [O] of a weight, none so small that the arithmetic can't hold it (see `weight_scales`)."""
    largest = scales.max()
    scales = np.maximum(scales, largest * _LEAST_SHARE if largest > 0 else 1.0)
    if bias is not None:
        scales = np.maximum(scales, np.abs(bias.astype(np.float64)) / (input_scale * _BIAS_LIMIT))
    if not numbers.per_channel:
        scales = np.full_like(scales, scales.max())
    rounded: Weights = scales.astype(np.float32)
    return rounded


def _least_error(
    rows: npt.NDArray[np.float64], widest: npt.NDArray[np.float64], limit: int
) -> npt.NDArray[np.float64]:
    """Return for each row the share of its widest scale with the least squared error; the widest of equals."""
    tried = [widest * share for share in _SHARES[::-1]]
    errors = []
    for scales in tried:
        steps = np.where(scales > 0, scales, 1.0)[:, None]
        found = np.clip(np.rint(rows / steps), -limit, limit) * steps
        errors.append(((found - rows) ** 2).sum(axis=1))
    best: npt.NDArray[np.float64] = np.stack(tried)[np.argmin(errors, axis=0), np.arange(len(rows))]
    return best
