"""What every later training and pass must keep of a weight: its zeros, or which of its values are equal.

A constraint names a parameter and nothing more: the zeros are those that the parameter has. So it holds whatever
becomes of the network between two passes, such as fewer channels or folded normalisations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class WeightConstraint:
    """What is kept of one weight.

    Attributes:
        parameter: its name in the module.
        keeps: "zeros" keeps exact zeros; "values" keeps equal values equal, and zeros too.
    """

    parameter: str
    keeps: Literal["zeros", "values"]


def constrained(
    constraints: Iterable[WeightConstraint], names: Iterable[str], keeps: Literal["zeros", "values"]
) -> tuple[WeightConstraint, ...]:
    """Return the constraints with those of some more parameters, by name; "values" is never taken back."""
    by_name = {constraint.parameter: constraint for constraint in constraints}
    for name in names:
        if name not in by_name or keeps == "values":
            by_name[name] = WeightConstraint(name, keeps)
    return tuple(by_name[name] for name in sorted(by_name))


def broken_constraints(
    constraints: Iterable[WeightConstraint], before: nn.Module, after: nn.Module
) -> tuple[str, ...]:
    """Return what one module no longer keeps of what another had; empty when it keeps everything.

    Only weights whose shape stayed the same are compared. Folding a normalisation scales each output channel by a
    factor of its own, so each channel may have as many values as the whole weight had.
    """
    was, now = dict(before.named_parameters()), dict(after.named_parameters())
    problems = []
    for constraint in constraints:
        name = constraint.parameter
        if name not in now:
            problems.append(f"{name} is gone, whose {constraint.keeps} were to be kept")
        elif was[name].shape == now[name].shape:
            revived = int(((was[name] == 0) & (now[name] != 0)).sum())
            if revived:
                problems.append(f"{revived} zeros of {name}, which were to be kept, are no longer zero")
            elif constraint.keeps == "values" and _most_values(now[name]) > len(torch.unique(was[name])):
                problems.append(f"{name} has more different values than before, which were to be kept")
    return tuple(problems)


def _most_values(weight: Tensor) -> int:
    """Return how many values the output channel with the most of them has, whichever dimension they are in."""
    return min(max(len(torch.unique(row)) for row in weight.unbind(axis)) for axis in (0, 1))
