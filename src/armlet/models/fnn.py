"""Multilayer perceptrons for classification."""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal

from torch import nn

from armlet.artifacts import InputSpec
from armlet.models.activations import ACTIVATIONS
from armlet.models.families import FAMILIES, n_classes_of, only_input, parse_options


@dataclass(frozen=True, slots=True)
class FnnOptions:
    """Shape of a perceptron.

    Attributes:
        hidden: units of each hidden layer.
        norm: between linear layer and activation: "batch" is batch normalisation (Ioffe and Szegedy 2015), which costs
            nothing once compiled; "layer" is layer normalisation (Ba et al. 2016), for batches of few samples.
        dropout: share of hidden units dropped in training.
    """

    hidden: tuple[int, ...] = (128, 128)
    activation: str = "relu"
    norm: Literal["none", "batch", "layer"] = "batch"
    dropout: float = 0.0


@FAMILIES.register("fnn")
def build_fnn(options: str, inputs: tuple[InputSpec, ...], output_shape: tuple[int, ...]) -> nn.Module:
    """Build a perceptron: [N, *shape] -> [N, n_outputs].

    Layers are named `layer1.linear`, `layer1.norm`, ..., `classifier`.
    """
    chosen = parse_options(FnnOptions, options)
    input_shape, n_outputs = only_input("a fnn", inputs).shape, n_classes_of("a fnn", output_shape)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if len(input_shape) > 1:
        layers["flatten"] = nn.Flatten()
    width = math.prod(input_shape)
    for number, units in enumerate(chosen.hidden, start=1):
        layers[f"layer{number}"] = _layer(width, units, chosen)
        width = units
    layers["classifier"] = nn.Linear(width, n_outputs)
    return nn.Sequential(layers)


def _layer(n_inputs: int, n_units: int, options: FnnOptions) -> nn.Sequential:
    """[N, n_inputs] -> [N, n_units]."""
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    # A bias right before batch normalisation would be subtracted again.
    parts["linear"] = nn.Linear(n_inputs, n_units, bias=options.norm != "batch")
    if options.norm == "batch":
        parts["norm"] = nn.BatchNorm1d(n_units)
    elif options.norm == "layer":
        parts["norm"] = nn.LayerNorm(n_units)
    parts["activation"] = ACTIVATIONS[options.activation]()
    if options.dropout:
        parts["dropout"] = nn.Dropout(options.dropout)
    return nn.Sequential(parts)
