"""Optimisers, and learning rate schedules as pure functions of the step, so that resuming needs no state."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from armlet.registry import Registry
from armlet.train.options import TrainOptions

ONE_CYCLE_WARM_UP = 0.25
ONE_CYCLE_START = 0.04

SCHEDULES: Registry[Callable[[float], float]] = Registry("schedule")
"""Maps the share of the training that is done (0 to 1) to the share of the highest learning rate."""


def make_optimizer(module: nn.Module, options: TrainOptions) -> torch.optim.Optimizer:
    """Make the optimiser over the module's parameters; only weights of two or more dimensions are decayed.

    Source: Nesterov momentum, Sutskever et al. 2013; Adam, Kingma and Ba 2014; AdamW, Loshchilov and Hutter 2017.
    """
    parameters = list(module.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": options.weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    match options.optimizer:
        case "sgd":
            nesterov = options.momentum > 0
            return torch.optim.SGD(groups, options.learning_rate, options.momentum, nesterov=nesterov)
        case "adam":
            return torch.optim.Adam(groups, options.learning_rate)
        case "adamw":
            return torch.optim.AdamW(groups, options.learning_rate)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Use `rate` from the next step on."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def learning_rate_at(step: int, n_steps: int, options: TrainOptions) -> float:
    """Return the learning rate of a step, counted from 0, of a training of `n_steps`."""
    return options.learning_rate * SCHEDULES[options.schedule](step / n_steps)


@SCHEDULES.register("constant")
def constant(done: float) -> float:
    """Stay at the highest rate."""
    return 1.0


@SCHEDULES.register("cosine")
def cosine(done: float) -> float:
    """Fall from the highest rate to zero along half a cosine (Loshchilov and Hutter 2016, no restarts)."""
    return (1 + math.cos(math.pi * done)) / 2


@SCHEDULES.register("one_cycle")
def one_cycle(done: float) -> float:
    """Rise linearly over the first quarter, then fall to zero along half a cosine (Smith and Topin 2017)."""
    if done < ONE_CYCLE_WARM_UP:
        return ONE_CYCLE_START + (1 - ONE_CYCLE_START) * done / ONE_CYCLE_WARM_UP
    return cosine((done - ONE_CYCLE_WARM_UP) / (1 - ONE_CYCLE_WARM_UP))
