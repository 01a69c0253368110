"""Weights that become zero while a network is trained, more and more of them, and constraints that training keeps.

Source: Zhu and Gupta 2017, "To prune, or not to prune": the share of zeros after a share t of the way from begin to end
is s_end + (s_start - s_end) (1 - t)³. The gradient of a zero is zero, and after each step zeros are set to zero again.
Weights with shared values: Han et al. 2016, "Deep Compression", section 3.2; a shared value's gradient is the sum of
the gradients of all its weights.

Nothing of this has a state of its own: zeros are those that the weights have. So a training that was interrupted goes
on to the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from armlet.analysis.sparsity import Pattern, Scope, WeightTensor, magnitude_masks, pattern_mask
from armlet.models.constraints import WeightConstraint


@dataclass(frozen=True, slots=True)
class PruningSchedule:
    """How zeros become more while a network is trained.

    Attributes:
        weights: which become zero.
        sparsity: share of zeros at the end.
        scope: whether magnitudes are compared within each weight or over all.
        pattern: N of each M at the end; the schedule then lowers how many of each M stay, and `sparsity` is its own.
        start: share of zeros at `begin`.
        begin, end: shares of all steps, between which the zeros become more.
        every: steps between two choices of zeros.
    """

    weights: tuple[WeightTensor, ...]
    sparsity: float
    scope: Scope = "layer"
    pattern: Pattern | None = None
    start: float = 0.0
    begin: float = 0.0
    end: float = 0.75
    every: int = 20

    def masks(self, weights: Mapping[str, Tensor], sparsity: float) -> dict[str, Tensor]:
        """Return which values stay at a share of zeros on the way."""
        if self.pattern is None:
            return magnitude_masks(weights, sparsity, self.scope)
        n = math.ceil((1 - sparsity) * self.pattern.m - 1e-9)
        step = Pattern(n, self.pattern.m)
        return {w.parameter: pattern_mask(weights[w.parameter], step, w.input_axis) for w in self.weights}

    def sparsity_at(self, step: int, n_steps: int, turns_every: int = 1) -> float | None:
        """Return the share of zeros from a step on, counted from 0; None before the first choice.

        It changes only every `every` steps, and ends so early that the network still takes a step at or behind the end.
        """
        first = int(self.begin * n_steps)
        last = max(first, min(round(self.end * n_steps), n_steps - turns_every))
        if step < first:
            return None
        n_choices = max(1, (last - first) // self.every)
        done = 1.0 if last == first else min(1.0, (step - first) * n_choices // (last - first) / n_choices)
        return self.sparsity + (self.start - self.sparsity) * (1 - done) ** 3


class Keeper:
    """Keeps a module's zeros and shared values while it is trained, and makes more zeros where that is planned.

    Args:
        module: on its device, as it is at the start or as a checkpoint has it.
        constraints: of its weights.
        schedule: of further zeros, None for none.
        n_steps: of the whole training.
        turns_every: steps from one turn of the module to its next.
    """

    def __init__(
        self,
        module: nn.Module,
        constraints: Sequence[WeightConstraint],
        schedule: PruningSchedule | None = None,
        n_steps: int = 1,
        turns_every: int = 1,
    ) -> None:
        self._schedule, self._n_steps, self._turns_every = schedule, n_steps, turns_every
        self._reached: float | None = None
        pruned = () if schedule is None else tuple(w.parameter for w in schedule.weights)
        self._pruned = {name: module.get_parameter(name) for name in pruned}
        kept = {c.parameter: module.get_parameter(c.parameter) for c in constraints}
        self._zeros = {**self._pruned, **kept}
        self._shared = {
            c.parameter: _SharedValues(kept[c.parameter]) for c in constraints if c.keeps == "values"
        }

    @torch.no_grad()
    def gradients(self) -> None:
        """Make the gradients of zeros zero, and those of equal values equal: their sum."""
        for name, parameter in self._zeros.items():
            if parameter.grad is None:
                continue
            if name in self._shared:
                self._shared[name].add_up(parameter.grad)
            parameter.grad.masked_fill_(parameter == 0, 0.0)

    @contextmanager
    def keeping(self, step: int) -> Iterator[None]:
        """Keep what is kept over a step of the optimiser, and make the zeros that are due at this step."""
        zeros = {name: parameter.detach() == 0 for name, parameter in self._zeros.items()}
        yield
        with torch.no_grad():
            for name, parameter in self._zeros.items():
                if name in self._shared:
                    self._shared[name].make_equal(parameter)
                parameter.masked_fill_(zeros[name], 0.0)
            self._prune(step)

    @torch.no_grad()
    def impose(self, other: nn.Module) -> None:
        """Give another module of the same structure, such as a moving average, the same zeros and shared values."""
        for name, parameter in self._zeros.items():
            twin = other.get_parameter(name)
            if name in self._shared:
                self._shared[name].make_equal(twin)
            twin.masked_fill_(parameter == 0, 0.0)

    def _prune(self, step: int) -> None:
        if self._schedule is None:
            return
        sparsity = self._schedule.sparsity_at(step, self._n_steps, self._turns_every)
        if sparsity is None or sparsity == self._reached:
            return
        # To choose again at the same sparsity, as after an interruption, changes nothing: zeros are the least of all.
        for name, mask in self._schedule.masks(self._pruned, sparsity).items():
            self._pruned[name].masked_fill_(~mask, 0.0)
        self._reached = sparsity


class _SharedValues:
    """Which values of a weight are the same one."""

    def __init__(self, weight: Tensor) -> None:
        values, self._which = torch.unique(weight.detach().flatten(), return_inverse=True)
        places = torch.arange(self._which.numel(), device=weight.device)
        self._first = places.new_zeros(len(values)).scatter_reduce_(
            0, self._which, places, "amin", include_self=False
        )

    def add_up(self, gradient: Tensor) -> None:
        """Replace each gradient by the sum over all weights with the same value."""
        sums = gradient.new_zeros(len(self._first)).index_add_(0, self._which, gradient.flatten())
        gradient.copy_(sums[self._which].reshape(gradient.shape))

    def make_equal(self, weight: Tensor) -> None:
        """Replace each value by that of its first place: equal sums may be rounded differently in different places."""
        weight.copy_(weight.flatten()[self._first][self._which].reshape(weight.shape))
