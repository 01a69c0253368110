"""A penalty on whole channels while a network is trained, so that those that matter least shrink to zero.

The loss gets strength × Σ √size × ‖channel‖₂ over all channels, each with its slices of all weights. Descent along
its gradient would not end at zeros, so the step is the proximal one: after each step of the optimiser the weights of a
channel are multiplied by max(0, 1 - rate × strength × √size / ‖channel‖₂). The optimiser does not see the penalty, as
it does not see AdamW's weight decay. A weight that lies in the slices of two channels is multiplied for each.

Sources: Yuan and Lin 2006, "Model selection and estimation in regression with grouped variables"; Wen et al. 2016,
"Learning Structured Sparsity in Deep Neural Networks"; the step, Parikh and Boyd 2014, "Proximal Algorithms", 6.5.4.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from armlet.analysis.groups import ChannelGroup, Member


@dataclass(frozen=True, slots=True)
class GroupLasso:
    """What shrinks, and how much.

    Attributes:
        groups: whose channels shrink, each as one.
        strength: of the penalty, beside the mean loss of a batch.
    """

    groups: tuple[ChannelGroup, ...]
    strength: float


@dataclass(frozen=True, slots=True, eq=False)
class _Slices:
    """A weight, and the channel [n] of each index along one of its dimensions; the group's size for none."""

    weight: Tensor
    dim: int
    channels: Tensor

    def rows(self) -> Tensor:
        """Return the weight as [n, values of one index]."""
        return self.weight.movedim(self.dim, 0).reshape(self.weight.shape[self.dim], -1)

    def scale(self, factors: Tensor) -> None:
        """Multiply each channel's slice by its factor."""
        shape = [-1 if dim == self.dim else 1 for dim in range(self.weight.ndim)]
        self.weight.mul_(factors[self.channels].reshape(shape))


class _Group:
    """The slices of a group's channels."""

    def __init__(self, module: nn.Module, group: ChannelGroup) -> None:
        self._n_channels = group.n_channels
        self._slices = [
            _slices(module.get_parameter(member.tensor).detach(), member) for member in group.weights
        ]
        self._sizes = self._per_channel(lambda rows: torch.full_like(rows[:, 0], rows.shape[1]))

    def shrink(self, step: float) -> None:
        """Multiply each channel by max(0, 1 - step × √size / ‖channel‖₂)."""
        norms = self._per_channel(lambda rows: rows.square().sum(1)).sqrt()
        # Of a channel that is zero, nothing is left to shrink.
        shares = step * self._sizes.sqrt() / norms.clamp(min=torch.finfo(norms.dtype).tiny)
        factors = (1 - shares).clamp(min=0.0)
        for part in self._slices:
            part.scale(torch.cat([factors, factors.new_ones(1)]))

    def _per_channel(self, value: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the sum of a value of each index's row over all slices of a channel, [n_channels]."""
        total = self._slices[0].weight.new_zeros(self._n_channels + 1)
        for part in self._slices:
            total.index_add_(0, part.channels, value(part.rows()))
        return total[:-1]


def _slices(weight: Tensor, member: Member) -> _Slices:
    channels = torch.full((weight.shape[member.dim],), len(member.indices), device=weight.device)
    for channel, indices in enumerate(member.indices):
        channels[list(indices)] = channel
    return _Slices(weight, member.dim, channels)


class Shrinker:
    """Takes the penalty's steps.

    Args:
        module: on its device; its parameters are changed where they are.
        lasso: of it; None does nothing.
    """

    def __init__(self, module: nn.Module, lasso: GroupLasso | None) -> None:
        self._strength = 0.0 if lasso is None else lasso.strength
        self._groups = [] if lasso is None else [_Group(module, group) for group in lasso.groups]

    @torch.no_grad()
    def shrink(self, rate: float) -> None:
        """Take one step at a learning rate."""
        for group in self._groups:
            group.shrink(rate * self._strength)
