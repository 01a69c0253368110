"""Long short-term memory networks over whole sequences of one length or of many."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from armlet.artifacts import InputSpec
from armlet.models.families import FAMILIES, frames_of, n_classes_of, parse_options
from armlet.models.recurrent import RecurrentNetwork, stacked


@dataclass(frozen=True, slots=True)
class LstmOptions:
    """Shape of a network of long short-term memory.

    Attributes:
        hidden: units of each layer, for each direction.
        projection: width that the hidden state is projected to, 0 for none.
        readout: see `RecurrentNetwork`.
    """

    hidden: tuple[int, ...] = (64,)
    bidirectional: bool = False
    projection: int = 0
    dropout: float = 0.0
    readout: Literal["last", "mean"] = "last"


@FAMILIES.register("lstm")
def build_lstm(options: str, inputs: tuple[InputSpec, ...], output_shape: tuple[int, ...]) -> nn.Module:
    """Build an LSTM network: [N, T, C] and, where lengths differ, [N] -> [N, n_outputs]."""
    chosen = parse_options(LstmOptions, options)
    _, n_channels = frames_of("a lstm", inputs)
    stack, width = stacked(
        "lstm", n_channels, chosen.hidden, bidirectional=chosen.bidirectional, projection=chosen.projection
    )
    n_outputs = n_classes_of("a lstm", output_shape)
    return RecurrentNetwork(stack, width, n_outputs, chosen.dropout, chosen.readout)
