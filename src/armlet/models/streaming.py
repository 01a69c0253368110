"""A network that takes the next few frames and its state, made of one that takes whole sequences.

Input -> Output: a network over [N, T, ...] -> one over ([N, F, ...], [N, S]) that answers as the first does for the
frames so far, and gives the state for its next call. A quantised network is quantised at the same values.

Limits: recurrent networks of one direction, and causal transformers.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.fx import Node

from armlet.analysis.graph import Traced, arguments, aten, module_name, operator_name, trace, value_name
from armlet.artifacts import InputSpec
from armlet.errors import UnsupportedOperator, UsageError
from armlet.models.network import Network
from armlet.models.quantization import Quantization
from armlet.models.recurrent import STEP_OPERATOR

STATE = "state"
_PREFIX = "network."
_MOVES = frozenset(
    {
        "view",
        "reshape",
        "flatten",
        "transpose",
        "permute",
        "squeeze",
        "unsqueeze",
        "cat",
        "contiguous",
        "clone",
    }
)
"""Operators whose values lie on the scale of their input."""
_WEIGHTS = {aten.linear.default: 1, aten.layer_norm.default: 2}
"""Operators of layers, and which argument is the weight."""


class Streamed(Protocol):
    """A module that can be run step by step.

    Attributes:
        why_not_streamed: empty where it can.
        most_frames: that a stream may have, None for any number.
        state_size: numbers of the state.
        part: frames that make one token, 1 where every frame counts.
    """

    why_not_streamed: str
    most_frames: int | None
    state_size: int
    part: int

    def step(self, inputs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Take the next frames and the state; give the answer so far and the state."""


class Stepper(nn.Module):
    """One step of a network: ([N, F, ...], [N, S]) -> (answer, [N, S])."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Take one step."""
        return cast("Streamed", self.network).step(inputs, state)


@dataclass(frozen=True, slots=True)
class StreamForm:
    """A network as a step.

    Attributes:
        network: its module is a `Stepper`, its inputs are the frames and the state.
        frames: that each step takes.
        most_frames: that a stream may have, None for any number.
    """

    network: Network
    frames: int
    most_frames: int | None

    @property
    def start(self) -> Tensor:
        """The state before the first frame, [1, S]."""
        return torch.zeros(1, *self.network.architecture.inputs[1].shape)


def stream_form(network: Network, frames: int) -> StreamForm:
    """Return a network's step, which takes `frames` frames, or tokens of text.

    Raises:
        UsageError: the network can't be run step by step, or not with so many frames.
        UnsupportedOperator: it is quantised at values that its step does not have.
    """
    module = network.module
    if not hasattr(module, "step"):
        raise UsageError(f"a {network.architecture.kind} can't be streamed: it takes no sequences")
    streamed, first = cast("Streamed", module), network.architecture.inputs[0]
    if streamed.why_not_streamed:
        raise UsageError(f"this {network.architecture.kind} can't be streamed: {streamed.why_not_streamed}")
    if frames % streamed.part or frames > first.shape[0]:
        raise UsageError(
            f"steps of {frames} frames are not whole tokens of {streamed.part}, or longer than a sequence"
        )
    if len(network.architecture.inputs) == 1 and first.shape[0] % frames:
        raise UsageError(f"sequences of {first.shape[0]} frames can't be taken {frames} at a time")
    inputs = (replace(first, shape=(frames, *first.shape[1:])), InputSpec(STATE, (streamed.state_size,)))
    stepper = Stepper(module).eval()
    quantization = network.quantization
    if quantization is not None:
        whole, step = trace(module, network.architecture.inputs), trace(stepper, inputs)
        quantization = _moved(quantization, whole, step)
    architecture = replace(network.architecture, inputs=inputs)
    return StreamForm(Network(stepper, architecture, quantization), frames, streamed.most_frames)


def _moved(quantization: Quantization, whole: Traced, step: Traced) -> Quantization:
    """Return a quantisation of the whole network's values as one of the step's."""
    nodes = {value_name(node): node for node in (*whole.inputs, *whole.nodes)}
    in_step = dict(_keys(step, _PREFIX))
    twins = {node: in_step[key] for key, node in _keys(whole, "") if key in in_step}
    activations = []
    for activation in quantization.activations:
        node = nodes[activation.node]
        if (twin := twins.get(node)) is not None:
            activations.append(replace(activation, node=value_name(twin)))
        elif not (operator_name(node) in _MOVES or _is_only_moved(node) or _is_hidden(node, quantization)):
            raise UnsupportedOperator(f"the step has no value like {activation.node}, which is quantised")
    parameters = tuple(replace(p, parameter=_PREFIX + p.parameter) for p in quantization.parameters)
    return Quantization(tuple(activations), parameters)


def _is_only_moved(node: Node) -> bool:
    """Whether what reads a value lies on the same scale, and is quantised itself."""
    return all(operator_name(user) in _MOVES for user in node.users)


def _is_hidden(node: Node, quantization: Quantization) -> bool:
    """Whether a value is another, on its scale, but for what lies behind a length, of which a step knows nothing."""
    scales = {a.node: (a.scale, a.zero_point) for a in quantization.activations}
    return operator_name(node) == "mul" and scales[value_name(node)] in (
        scales.get(value_name(n)) for n in node.all_input_nodes
    )


_Key = tuple[str, str, int]


def _keys(traced: Traced, prefix: str) -> Iterator[tuple[_Key, Node]]:
    """Return values with what each is known by in both graphs.

    1. The result of a layer, and what a layer takes, is known by the layer's weight.
    2. An input is known by its name.
    3. Anything else is known by its module, its operator, and how many of those came before it; but not outside of all
       modules, where the two graphs differ.
    """
    counts: Counter[tuple[str, str]] = Counter()
    for node in (*traced.inputs, *traced.nodes):
        place = (module_name(node).removeprefix(prefix), operator_name(node))
        readers = (_weight(user, traced) for user in node.users if arguments(user)[0] is node)
        if own := _weight(node, traced):
            yield (own.removeprefix(prefix), "from", 0), node
        elif into := next(filter(None, readers), ""):
            yield (into.removeprefix(prefix), "into", 0), node
        elif (place[0] or node.op == "placeholder") and not _is_state(node):
            yield (*place, counts[place]), node
        counts[place] += 1


def _is_state(node: Node) -> bool:
    """Whether a value is the state behind a recurrent layer's step, which goes on in float."""
    source = arguments(node)[0] if node.target is operator.getitem and arguments(node)[1] == 1 else None
    return isinstance(source, Node) and source.target is STEP_OPERATOR.default


def _weight(node: Node, traced: Traced) -> str:
    """Return the name of a layer's weight, empty for other nodes."""
    position = _WEIGHTS.get(node.target)  # type: ignore[call-overload]  # targets of other kinds are in no table
    return "" if position is None else traced.tensor_name(arguments(node)[position]) or ""
