"""Recurrent networks of simple cells, Elman's and gated ones, over whole sequences of one length or of many."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from armlet.artifacts import InputSpec
from armlet.models.families import FAMILIES, frames_of, n_classes_of, parse_options
from armlet.models.recurrent import Cell, RecurrentNetwork, stacked

_CELLS: dict[str, Cell] = {"elman": "rnn_tanh", "elman_relu": "rnn_relu", "gru": "gru"}


@dataclass(frozen=True, slots=True)
class RnnOptions:
    """Shape of a recurrent network.

    Attributes:
        cell: "elman" (tanh), "elman_relu" or "gru".
        hidden: units of each layer, for each direction.
        readout: see `RecurrentNetwork`.
    """

    cell: str = "gru"
    hidden: tuple[int, ...] = (64,)
    bidirectional: bool = False
    dropout: float = 0.0
    readout: Literal["last", "mean"] = "last"


@FAMILIES.register("rnn")
def build_rnn(options: str, inputs: tuple[InputSpec, ...], output_shape: tuple[int, ...]) -> nn.Module:
    """Build a recurrent network: [N, T, C] and, where lengths differ, [N] -> [N, n_outputs]."""
    chosen = parse_options(RnnOptions, options)
    _, n_channels = frames_of("a rnn", inputs)
    stack, width = stacked(_CELLS[chosen.cell], n_channels, chosen.hidden, bidirectional=chosen.bidirectional)
    n_outputs = n_classes_of("a rnn", output_shape)
    return RecurrentNetwork(stack, width, n_outputs, chosen.dropout, chosen.readout)
