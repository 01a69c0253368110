"""torch's own LSTM, GRU and RNN as armlet's layers, which are pruned, quantised and compiled as one operator each."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from armlet.models.recurrent import GATES, TORCH_ORDER, Cell, Recurrent


class TorchRecurrent(nn.Module):
    """What a `torch.nn.LSTM`, `GRU` or `RNN` computes, and answers in the same form.

    inputs [N, T, I], or [T, N, I] as the layer was made -> outputs [N, T, D × H] and the last states [L × D, N, H]; in
    the place of an lstm's cell states stands None. A state dict of torch's layer is read, too. `input_size`,
    `hidden_size`, `num_layers`, `bidirectional`, `batch_first` and `dropout` are torch's.

    Args:
        source: a layer without projection, whose weights are copied.
    """

    def __init__(self, source: nn.RNNBase) -> None:
        super().__init__()
        self.cell = _cell_of(source)
        self.input_size, self.num_layers, self.bidirectional = (
            source.input_size, source.num_layers, source.bidirectional
        )  # fmt: skip
        self.dropout, self.batch_first = source.dropout, source.batch_first
        directions = 2 if source.bidirectional else 1
        widths = [source.input_size, *[directions * source.hidden_size] * (source.num_layers - 1)]
        direction = "bidirectional" if source.bidirectional else "forward"
        self.layers = nn.ModuleList(
            [Recurrent(self.cell, width, source.hidden_size, direction) for width in widths]  # type: ignore[arg-type]
        )
        self.register_load_state_dict_pre_hook(_read_torchs_names)  # type: ignore[no-untyped-call]
        self.load_state_dict(source.state_dict())

    @property
    def hidden_size(self) -> int:
        """Units of each direction of the last layer."""
        return self.layers[-1].get_parameter("weight").shape[1] // GATES[self.cell]

    def forward(
        self, inputs: Tensor, state: object = None
    ) -> tuple[Tensor, Tensor] | tuple[Tensor, tuple[Tensor, None]]:
        """Run all layers over all frames.

        Raises:
            TypeError: there is a state to begin with.
        """
        if state is not None:
            raise TypeError("recurrent layers begin with a state of zeros here: leave the initial state out")
        frames, states = inputs if self.batch_first else inputs.transpose(0, 1), []
        for number, layer in enumerate(self.layers):
            if number:
                frames = functional.dropout(frames, self.dropout, self.training)
            frames, last = layer(frames)
            # Slices and a stack are what channels are followed through; of a view they would be one block.
            directions = 2 if self.bidirectional else 1
            width = last.shape[1] // directions
            states += [last[:, d * width : (d + 1) * width] for d in range(directions)]
        hidden, outputs = torch.stack(states), frames if self.batch_first else frames.transpose(0, 1)
        return (outputs, (hidden, None)) if self.cell == "lstm" else (outputs, hidden)


def _cell_of(source: nn.RNNBase) -> Cell:
    match source:
        case nn.LSTM():
            return "lstm"
        case nn.GRU():
            return "gru"
        case _:
            return "rnn_relu" if source.nonlinearity == "relu" else "rnn_tanh"


def _read_torchs_names(module: TorchRecurrent, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Replace the tensors of torch's layer in a state dict by those of armlet's layers; biases left out are zeros."""
    for number, layer in enumerate(module.layers):
        if not isinstance(layer, Recurrent) or f"{prefix}weight_ih_l{number}" not in state:
            continue
        ends = [f"_l{number}{reverse}" for reverse in ("", "_reverse")[: layer.weight.shape[0]]]
        found = {
            name: torch.stack(
                [_in_onnx_order(_taken(state, prefix + name + end, layer), layer.cell) for end in ends]
            )
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        }
        own = f"{prefix}layers.{number}."
        state[f"{own}weight"], state[f"{own}recurrent_weight"] = found["weight_ih"], found["weight_hh"]
        state[f"{own}bias"] = torch.cat([found["bias_ih"], found["bias_hh"]], dim=1)


def _taken(state: dict[str, Tensor], name: str, layer: Recurrent) -> Tensor:
    return state.pop(name, torch.zeros(GATES[layer.cell] * layer.hidden))


def _in_onnx_order(values: Tensor, cell: Cell) -> Tensor:
    """Return gates [G × H, ...] of torch's order in ONNX's."""
    order = TORCH_ORDER[cell]
    gates = values.chunk(len(order))
    return torch.cat([gates[order.index(position)] for position in range(len(order))])
