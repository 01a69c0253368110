"""One recurrent layer as one operator, which stays one node from torch's graph through ONNX to the compiled kernel.

In training the layer runs torch's own kernels, in evaluation the operator `armlet::recurrent` that wraps them: torch
exports its own recurrent modules unrolled, or not at all. Weights lie as the ONNX operators LSTM, GRU and RNN take
them.
Frames at or behind a sequence's length change nothing: their outputs are zero, and the last state is the one after the
last valid frame; the reverse direction starts there.

Sources: Elman 1990; Hochreiter and Schmidhuber 1997; Cho et al. 2014, with the reset gate after the product; recurrent
projection, Sak et al. 2014; Schuster and Paliwal 1997 (bidirectional).
"""

from __future__ import annotations

import math
import warnings
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Cell = Literal["lstm", "gru", "rnn_tanh", "rnn_relu"]
Direction = Literal["forward", "reverse", "bidirectional"]

GATES: dict[str, int] = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
# Position in ONNX's order (lstm: i o f c, gru: z r h) of each gate in torch's (lstm: i f g o, gru: r z n).
TORCH_ORDER = {"lstm": (0, 2, 3, 1), "gru": (1, 0, 2), "rnn_tanh": (0,), "rnn_relu": (0,)}


class Recurrent(nn.Module):
    """A recurrent layer: [N, T, inputs], [N] lengths or None -> outputs [N, T, D × R], last states [N, D × R].

    R is `projection` where that is not 0, else `hidden`; D is 2 where bidirectional, else 1. With a state [N, S] from
    the frames before, a forward layer goes on from there, and gives the state [N, S] behind the last frame instead of
    the last states: what is before the projection, and behind it an lstm's cell state.

    Attributes:
        weight: [D, gates × hidden, inputs], gates in ONNX's order.
        recurrent_weight: [D, gates × hidden, R].
        bias: [D, 2 × gates × hidden]: of the input's share, then of the recurrent product.
        projection_weight: [1, R, hidden]; only with a projection.
        input_projection_weight: [P, inputs], which each frame is multiplied with first, so that `weight` has P
            columns; only of a factorised layer.
        recurrent_factor_weight: [D, F, hidden], which `recurrent_weight` [D, gates × hidden, F] is multiplied with;
            only of a factorised layer without projection.
    """

    def __init__(
        self, cell: Cell, n_inputs: int, hidden: int, direction: Direction = "forward", projection: int = 0
    ) -> None:
        super().__init__()
        if projection and (cell != "lstm" or direction == "bidirectional" or projection >= hidden):
            raise ValueError(
                "a projection is of one direction of an lstm, and narrower than its hidden state"
            )
        self.cell, self.direction, self.hidden = cell, direction, hidden
        directions, rows = 2 if direction == "bidirectional" else 1, GATES[cell] * hidden
        bound = 1 / math.sqrt(hidden)  # torch's own initialisation

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))

        self.weight = parameter(directions, rows, n_inputs)
        self.recurrent_weight = parameter(directions, rows, projection or hidden)
        self.bias = parameter(directions, 2 * rows)
        self.projection_weight = parameter(1, projection, hidden) if projection else None
        self.input_projection_weight: nn.Parameter | None = None
        self.recurrent_factor_weight: nn.Parameter | None = None

    @property
    def state_size(self) -> int:
        """Numbers of a state, S."""
        return self.weight.shape[1] // GATES[self.cell] * (2 if self.cell == "lstm" else 1)

    def forward(
        self, inputs: Tensor, length: Tensor | None = None, state: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Run the layer over all frames, from the state on where one is given."""
        if self.input_projection_weight is not None:
            inputs = functional.linear(inputs, self.input_projection_weight)
        projects = self.recurrent_factor_weight is None
        narrow = self.projection_weight if projects else self.recurrent_factor_weight
        weights = (self.weight, self.recurrent_weight, self.bias, narrow)
        outputs: Tensor
        states: Tensor
        if state is not None:
            outputs, states = _step_operator(inputs, state, *weights, self.cell, projects)
            return outputs, states
        run = run_layer if self.training else _operator
        outputs, states = run(inputs, length, *weights, self.cell, self.direction, projects)
        return outputs, states

    def extra_repr(self) -> str:
        """Say what a person needs to know; sizes are those of the weights."""
        _, rows, n_inputs = self.weight.shape
        projection = (
            "" if self.projection_weight is None else f", projection={self.projection_weight.shape[1]}"
        )
        if self.input_projection_weight is not None:
            n_inputs = self.input_projection_weight.shape[1]
            projection += f", input_projection={self.input_projection_weight.shape[0]}"
        if self.recurrent_factor_weight is not None:
            projection += f", recurrent_factor={self.recurrent_factor_weight.shape[1]}"
        return f"{self.cell}, {n_inputs}, {rows // GATES[self.cell]}, direction={self.direction}{projection}"


def run_layer(  # noqa: PLR0913 - the operator's schema has no structures
    inputs: Tensor,
    length: Tensor | None,
    weight: Tensor,
    recurrent_weight: Tensor,
    bias: Tensor,
    projection_weight: Tensor | None,
    cell: str,
    direction: str,
    projects: bool,
) -> tuple[Tensor, Tensor]:
    """Compute a layer with torch's kernels, one direction after the other.

    The projection is of what the layer answers with, too, or with `projects` false of the recurrent product alone.
    """
    if not projects and projection_weight is not None:
        recurrent_weight, projection_weight = recurrent_weight @ projection_weight, None
    outputs, states = [], []
    for d in range(weight.shape[0]):
        backwards = direction == "reverse" or d == 1
        frames = _flipped(inputs, length) if backwards else inputs
        found = _one_direction(frames, (weight[d], recurrent_weight[d], bias[d]), projection_weight, cell)
        if length is None:
            states.append(found[:, -1])
        else:
            last = (length.long() - 1).clamp(min=0)[:, None, None].expand(-1, 1, found.shape[2])
            present = (length > 0)[:, None]
            states.append(torch.where(present, found.gather(1, last)[:, 0], 0.0))
            valid = torch.arange(found.shape[1], device=found.device) < length[:, None]
            found = torch.where(valid[:, :, None], found, 0.0)
        outputs.append(_flipped(found, length) if backwards else found)
    return torch.cat(outputs, dim=2), torch.cat(states, dim=1)


def _one_direction(
    frames: Tensor, weights: tuple[Tensor, Tensor, Tensor], projection_weight: Tensor | None, cell: str
) -> Tensor:
    """Return the outputs of one direction, [N, T, R], the padding computed too."""
    order = TORCH_ORDER[cell]
    hidden = weights[0].shape[0] // len(order)

    def in_torch_order(values: Tensor) -> Tensor:
        gates = torch.split(values, hidden)
        return torch.cat([gates[i] for i in order])

    weight, recurrent_weight = in_torch_order(weights[0]), in_torch_order(weights[1])
    biases = [in_torch_order(b) for b in weights[2].chunk(2)]
    flat = [weight, recurrent_weight, *biases]
    start = frames.new_zeros(1, len(frames), recurrent_weight.shape[1])
    # Weights, layers, dropout, training, bidirectional, batch first: of one plain layer.
    options = (True, 1, 0.0, False, False, True)
    match cell:
        case "lstm":
            flat += [] if projection_weight is None else [projection_weight[0]]
            states = [start, frames.new_zeros(1, len(frames), hidden)]
            with (
                warnings.catch_warnings()
            ):  # a projection has no fast kernel on a CPU, and torch says so each time
                warnings.filterwarnings("ignore", message="LSTM with projections")
                result: Tensor = torch.lstm(frames, states, flat, *options)[0]
        case "gru":
            result = torch.gru(frames, start, flat, *options)[0]
        case "rnn_tanh":
            result = torch.rnn_tanh(frames, start, flat, *options)[0]
        case _:
            result = torch.rnn_relu(frames, start, flat, *options)[0]
    return result


def _flipped(frames: Tensor, length: Tensor | None) -> Tensor:
    """Return [N, T, C] with the valid frames of each sequence in reverse order; the padding stays behind them."""
    if length is None:
        return frames.flip(1)
    times = torch.arange(frames.shape[1], device=frames.device)
    source = length[:, None].long() - 1 - times
    source = torch.where(source >= 0, source, times)
    return frames.gather(1, source[:, :, None].expand(-1, -1, frames.shape[2]))


@torch.library.custom_op("armlet::recurrent", mutates_args=())
def _operator(  # noqa: PLR0913 - an operator's schema has no structures
    inputs: Tensor,
    length: Tensor | None,
    weight: Tensor,
    recurrent_weight: Tensor,
    bias: Tensor,
    projection_weight: Tensor | None,
    cell: str,
    direction: str,
    projects: bool,
) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        outputs, states = run_layer(
            inputs, length, weight, recurrent_weight, bias, projection_weight, cell, direction, projects
        )
    return outputs.contiguous(), states.contiguous()


@_operator.register_fake
def _fake(  # noqa: PLR0913 - an operator's schema has no structures
    inputs: Tensor,
    length: Tensor | None,
    weight: Tensor,
    recurrent_weight: Tensor,
    bias: Tensor,
    projection_weight: Tensor | None,
    cell: str,
    direction: str,
    projects: bool,
) -> tuple[Tensor, Tensor]:
    width = weight.shape[0] * _answer_width(recurrent_weight, projection_weight, projects=projects)
    return inputs.new_empty(*inputs.shape[:2], width), inputs.new_empty(inputs.shape[0], width)


@torch.library.custom_op("armlet::recurrent_step", mutates_args=())
def _step_operator(  # noqa: PLR0913 - an operator's schema has no structures
    inputs: Tensor,
    state: Tensor,
    weight: Tensor,
    recurrent_weight: Tensor,
    bias: Tensor,
    projection_weight: Tensor | None,
    cell: str,
    projects: bool,
) -> tuple[Tensor, Tensor]:
    inner, outer = bias[0].chunk(2)
    shares = inputs @ weight[0].T + inner
    hidden, memory = state.chunk(2, dim=1) if cell == "lstm" else (state, state[:, :0])
    outputs = []
    for share in shares.unbind(dim=1):
        before = hidden if projection_weight is None else hidden @ projection_weight[0].T
        hidden, memory = _cell(cell, share, before @ recurrent_weight[0].T + outer, (hidden, memory))
        outputs.append(hidden)
    found = torch.stack(outputs, dim=1)
    found = found if projection_weight is None or not projects else found @ projection_weight[0].T
    return found, torch.cat([hidden, memory], dim=1)


def _cell(cell: str, share: Tensor, product: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return hidden and cell state [N, hidden] behind one frame, from all gates' share of it and recurrent product."""
    hidden, memory = state
    if cell == "lstm":
        entry, output, forget, proposed = (share + product).chunk(4, dim=1)
        memory = forget.sigmoid() * memory + entry.sigmoid() * proposed.tanh()
        return output.sigmoid() * memory.tanh(), memory
    if cell == "gru":
        (update, reset, proposed), (update_h, reset_h, proposed_h) = (
            x.chunk(3, dim=1) for x in (share, product)
        )
        update = (update + update_h).sigmoid()
        proposed = (proposed + (reset + reset_h).sigmoid() * proposed_h).tanh()
        return proposed + update * (hidden - proposed), memory
    total = share + product
    return total.tanh() if cell == "rnn_tanh" else total.relu(), memory


@_step_operator.register_fake
def _fake_step(  # noqa: PLR0913 - an operator's schema has no structures
    inputs: Tensor,
    state: Tensor,
    weight: Tensor,
    recurrent_weight: Tensor,
    bias: Tensor,
    projection_weight: Tensor | None,
    cell: str,
    projects: bool,
) -> tuple[Tensor, Tensor]:
    width = _answer_width(recurrent_weight, projection_weight, projects=projects)
    return inputs.new_empty(*inputs.shape[:2], width), torch.empty_like(state)


def _answer_width(recurrent_weight: Tensor, projection_weight: Tensor | None, *, projects: bool) -> int:
    """Return the width of what one direction answers with."""
    if projection_weight is None or projects:
        return recurrent_weight.shape[2]
    return projection_weight.shape[2]


OPERATOR = torch.ops.armlet.recurrent
STEP_OPERATOR = torch.ops.armlet.recurrent_step


def recurrent_flops(
    inputs: tuple[int, ...],
    length: tuple[int, ...] | None,
    weight: tuple[int, ...],
    recurrent_weight: tuple[int, ...],
    bias: tuple[int, ...],
    projection_weight: tuple[int, ...] | None,
    *_: object,
    **__: object,
) -> int:
    """Return the floating point operations of the operator's products: two for each weight, frame and sample."""
    weights = [weight, recurrent_weight, *([projection_weight] if projection_weight else [])]
    return 2 * inputs[0] * inputs[1] * sum(math.prod(shape) for shape in weights)


class RecurrentNetwork(nn.Module):
    """Stacked recurrent layers, a readout over the frames, and a linear layer: [N, T, C], [N] -> [N, n_outputs].

    Args:
        stack: the layers, each of them one module or, for both directions with a projection, two side by side.
        width: of what a frame is after the last layer.
        n_outputs: of the answer.
        dropout: between layers and before the last one, in training.
        readout: "last" is the last state of each direction, "mean" the mean over the valid frames.
    """

    def __init__(
        self, stack: list[nn.ModuleList], width: int, n_outputs: int, dropout: float, readout: str
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(stack)
        self.dropout, self.readout, self.part = dropout, readout, 1
        self.classifier = nn.Linear(width, n_outputs)

    def encode(self, inputs: Tensor, length: Tensor | None = None) -> Tensor:
        """Return what each frame is after the last layer, [N, T, width]."""
        return self._run(inputs, length)[0]

    def _run(self, inputs: Tensor, length: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the outputs of the last layer [N, T, width] and its last states [N, width]."""
        read = inputs
        for number, directions in enumerate(self.layers):
            if number:
                inputs = functional.dropout(inputs, self.dropout, self.training)
            found = [layer(inputs, length) for layer in directions.children()]
            inputs = found[0][0] if len(found) == 1 else torch.cat([f[0] for f in found], dim=2)
            read = found[0][1] if len(found) == 1 else torch.cat([f[1] for f in found], dim=1)
        return inputs, read

    @property
    def why_not_streamed(self) -> str:
        """Why frames can't be taken as they come, empty if they can."""
        if any(layer.direction != "forward" for layer in self._layers()):
            return "it reads sequences backwards, too"
        return ""

    @property
    def most_frames(self) -> None:
        """A stream may be of any length."""
        return

    @property
    def state_size(self) -> int:
        """Numbers of the state that `step` carries."""
        readout = self.classifier.in_features + 1 if self.readout == "mean" else 0
        return sum(layer.state_size for layer in self._layers()) + readout

    def step(self, inputs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Take the next frames [N, F, C] and the state [N, S], zeros at first; give the answer so far and the state."""
        after, start = [], 0
        for layer in self._layers():
            end = start + layer.state_size
            inputs, states = layer(inputs, None, state[:, start:end])
            after.append(states)
            start = end
        if self.readout == "mean":
            total = state[:, start:-1] + inputs.sum(dim=1)
            seen = state[:, -1:] + inputs.shape[1]
            read, after = total / seen, [*after, total, seen]
        else:
            read = inputs[:, -1:].flatten(1)
        return self.classifier(read), torch.cat(after, dim=1)

    def _layers(self) -> list[Recurrent]:
        """Return the layers one on top of the other; of two directions side by side, both."""
        return [layer for layer in self.modules() if isinstance(layer, Recurrent)]

    def forward(self, inputs: Tensor, length: Tensor | None = None) -> Tensor:
        """Answer for whole sequences."""
        inputs, read = self._run(inputs, length)
        if self.readout == "mean":  # outputs behind the length are zero
            read = inputs.mean(dim=1)
            if length is not None:
                read = inputs.sum(dim=1) / length[:, None].to(inputs.dtype).clamp(min=1.0)
        answer: Tensor = self.classifier(functional.dropout(read, self.dropout, self.training))
        return answer


def stacked(
    cell: Cell, n_inputs: int, hidden: tuple[int, ...], *, bidirectional: bool, projection: int = 0
) -> tuple[list[nn.ModuleList], int]:
    """Return recurrent layers on top of each other, and the width of what comes out."""
    stack, width = [], n_inputs
    for units in hidden:
        directions: tuple[Direction, ...] = ("forward",)
        if bidirectional:
            directions = ("forward", "reverse") if projection else ("bidirectional",)
        stack.append(nn.ModuleList([Recurrent(cell, width, units, d, projection) for d in directions]))
        width = (projection or units) * (2 if bidirectional else 1)
    return stack, width
