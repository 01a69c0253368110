"""How much each channel of a group matters, by the criterion that the user names.

What a criterion looks at: *l1*, *l2* every weight that a channel has a slice of; *bn_scale* its normalisations' gains;
*taylor*, *hessian* gradients of the task's loss; *activation* the values that are read; *fpgm* how alike channels are.

Sources: magnitude, Li et al. 2017, "Pruning Filters for Efficient ConvNets", summed over all slices as Fang et al. 2023
do; gains, Liu et al. 2017, "Learning Efficient Convolutional Networks through Network Slimming"; first order, Molchanov
et al. 2019, "Importance Estimation for Neural Network Pruning", equation 8; second order, LeCun et al. 1990, "Optimal
Brain Damage", with the squared gradient for the curvature; He et al. 2019, "Filter Pruning via Geometric Median".
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from armlet.analysis.groups import ChannelGroup, Member
from armlet.artifacts import TaskKind
from armlet.data.splits import Samples
from armlet.models.network import Network
from armlet.models.recurrent import Recurrent
from armlet.passes.base import PreconditionFailed
from armlet.train import TrainOptions
from armlet.train.losses import task_loss
from armlet.train.objectives import answer_of

Scores = npt.NDArray[np.float64]

_BATCH = 64
_STREAM = 5  # each purpose of a seed draws from a stream of its own


@dataclass(frozen=True, slots=True)
class Evidence:
    """What importance is judged by.

    Attributes:
        samples: training samples.
        task: whose loss counts.
        seed: of the random criterion.
    """

    network: Network
    samples: Samples
    task: TaskKind
    seed: int


Criterion = Callable[[Sequence[ChannelGroup], Evidence], list[Scores]]


def importance(groups: Sequence[ChannelGroup], criterion: str, evidence: Evidence) -> list[Scores]:
    """Return how much each channel of each group matters, [n_channels] with a mean of 1.

    Raises:
        PreconditionFailed: the criterion does not fit a group or the task.
    """
    return [_normalised(scores) for scores in CRITERIA[criterion](groups, evidence)]


def _normalised(scores: Scores) -> Scores:
    mean = scores.mean()
    return scores / mean if mean > 0 else np.ones(len(scores))


def magnitude(groups: Sequence[ChannelGroup], tensors: Mapping[str, Tensor], order: int) -> list[Scores]:
    """Return the norm of each channel's slice of each weight, summed; biases and statistics don't count."""
    return [
        _sum(
            _of_channels(member, tensors[member.tensor], lambda rows: np.linalg.norm(rows, order))
            for member in group.weights
        )
        for group in groups
    ]


def gains(groups: Sequence[ChannelGroup], evidence: Evidence) -> list[Scores]:
    """Return the absolute gains of each channel's batch normalisations, summed."""
    tensors, found = evidence.network.module.state_dict(), []
    for group in groups:
        norms = [
            m for m in group.members if isinstance(_module_of(m, evidence), nn.BatchNorm1d | nn.BatchNorm2d)
        ]
        members = [m for m in norms if m.tensor.endswith(".weight")]
        if not members:
            raise PreconditionFailed(
                f"prune_channels: importance bn_scale: the {group.unit} of {group.name} have no batch normalisation; "
                "exclude them, or choose another importance"
            )
        found.append(
            _sum(_of_channels(m, tensors[m.tensor], lambda rows: np.abs(rows).sum()) for m in members)
        )
    return found


def first_order(groups: Sequence[ChannelGroup], evidence: Evidence) -> list[Scores]:
    """Return the squared first-order change of the loss without each channel, a mean over batches."""
    totals = [np.zeros(group.n_channels) for group in groups]
    for tensors, gradients in _gradients(evidence):
        for group, total in zip(groups, totals, strict=True):
            change = _sum(
                _of_channels(m, tensors[m.tensor] * gradients[m.tensor], np.sum)
                for m in group.members
                if not m.reads and m.tensor in gradients
            )
            total += change**2
    return totals


def second_order(groups: Sequence[ChannelGroup], evidence: Evidence) -> list[Scores]:
    """Return half of curvature × weight², summed over all of a channel's slices."""
    totals = [np.zeros(group.n_channels) for group in groups]
    for tensors, gradients in _gradients(evidence):
        for group, total in zip(groups, totals, strict=True):
            total += _sum(
                _of_channels(m, (tensors[m.tensor] * gradients[m.tensor]) ** 2 / 2, np.sum)
                for m in group.members
                if m.tensor in gradients
            )
    return totals


def geometric_median(groups: Sequence[ChannelGroup], evidence: Evidence) -> list[Scores]:
    """Return each channel's summed distance to all others, in the weights that compute it: the least is replaceable."""
    tensors, found = evidence.network.module.state_dict(), []
    for group in groups:
        parts = [_rows(m, tensors[m.tensor]) for m in group.weights if not m.reads]
        rows = torch.tensor(
            np.stack([np.concatenate([part[c] for part in parts]) for c in range(group.n_channels)])
        )
        found.append(torch.cdist(rows, rows).sum(dim=1).numpy())
    return found


def activation(groups: Sequence[ChannelGroup], evidence: Evidence) -> list[Scores]:
    """Return the mean absolute value of what is read of each channel."""
    means = _read_values(groups, evidence)
    found = []
    for group in groups:
        readers = [m for m in group.members if m.reads and m.tensor in means]
        if not readers:
            raise PreconditionFailed(
                f"prune_channels: importance activation: nothing outside reads the {group.unit} of {group.name}; "
                "exclude them, or choose another importance"
            )
        found.append(_sum(_of_channels(m, means[m.tensor], np.sum, dim=0) for m in readers))
    return found


def chance(groups: Sequence[ChannelGroup], evidence: Evidence) -> list[Scores]:
    """Return random scores, to compare other criteria with."""
    rng = np.random.default_rng((evidence.seed, _STREAM))
    return [rng.random(group.n_channels) for group in groups]


def _norm(order: int) -> Criterion:
    return lambda groups, evidence: magnitude(groups, evidence.network.module.state_dict(), order)


CRITERIA: Mapping[str, Criterion] = {
    "l1": _norm(1),
    "l2": _norm(2),
    "bn_scale": gains,
    "taylor": first_order,
    "hessian": second_order,
    "fpgm": geometric_median,
    "activation": activation,
    "random": chance,
}


def _module_of(member: Member, evidence: Evidence) -> nn.Module:
    return evidence.network.module.get_submodule(member.tensor.rpartition(".")[0])


def _rows(member: Member, tensor: Tensor, dim: int | None = None) -> list[npt.NDArray[np.float64]]:
    """Return each channel's slice of a tensor, as one row."""
    values = np.moveaxis(tensor.detach().double().numpy(), member.dim if dim is None else dim, 0)
    return [values[list(indices)].ravel() for indices in member.indices]


def _of_channels(
    member: Member,
    tensor: Tensor,
    measure: Callable[[npt.NDArray[np.float64]], np.floating],
    dim: int | None = None,
) -> Scores:
    return np.array([measure(row) if row.size else 0.0 for row in _rows(member, tensor, dim)])


def _sum(parts: Iterator[Scores]) -> Scores:
    total: Scores = np.sum(list(parts), axis=0)
    return total


def _batches(evidence: Evidence) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
    samples = evidence.samples
    for first in range(0, len(samples), _BATCH):
        part = samples.take(slice(first, first + _BATCH))
        targets = part.targets if part.shares is None else part.shares
        yield tuple(map(torch.from_numpy, part.inputs)), torch.from_numpy(targets)


def _gradients(evidence: Evidence) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """Give the parameters and their gradients of the task's mean loss, for each batch."""
    if evidence.task == "generation":
        raise PreconditionFailed(
            "prune_channels: a generator has no loss without its critic: importance taylor and hessian need one"
        )
    module = copy.deepcopy(evidence.network.module)
    for layer in module.modules():
        if isinstance(layer, Recurrent):
            layer.train()  # in evaluation it is one operator without a gradient
    parameters = dict(module.named_parameters())
    for inputs, targets in _batches(evidence):
        module.zero_grad()
        answer, _ = answer_of(module(*inputs))
        task_loss(evidence.task, answer, targets, TrainOptions()).backward()  # type: ignore[no-untyped-call]
        gradients = {name: p.grad for name, p in parameters.items() if p.grad is not None}
        yield {name: p.detach() for name, p in parameters.items()}, gradients


def _read_values(groups: Sequence[ChannelGroup], evidence: Evidence) -> dict[str, Tensor]:
    """Return the mean absolute value of each position that the layers read, by the name of the reading weight."""
    module = evidence.network.module
    totals: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def watch(tensor: str, dim: int) -> Callable[..., None]:
        def look(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            values = inputs[0].detach().double().abs()
            over = [d for d in range(values.dim()) if d != dim % values.dim()]
            totals[tensor] = totals.get(tensor, torch.zeros(())) + values.sum(dim=over)
            counts[tensor] = counts.get(tensor, 0) + values.numel() // values.shape[dim]

        return look

    hooks = []
    for member in {m for group in groups for m in group.members if m.reads}:
        layer = module.get_submodule(member.tensor.rpartition(".")[0])
        if member.tensor.endswith(".weight"):  # others read what is inside of their layer
            dim = (
                1
                if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.ConvTranspose1d | nn.ConvTranspose2d)
                else -1
            )
            hooks.append(layer.register_forward_pre_hook(watch(member.tensor, dim)))
    try:
        with torch.no_grad():
            for inputs, _ in _batches(evidence):
                module(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return {tensor: total / counts[tensor] for tensor, total in totals.items()}
