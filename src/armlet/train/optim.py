"""Optimisers, and learning rate schedules as pure functions of the step, so that resuming needs no state."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from lion_pytorch import Lion
from torch import Tensor, nn

from armlet.registry import Registry
from armlet.train.options import TrainOptions

ONE_CYCLE_WARM_UP = 0.25
ONE_CYCLE_START = 0.04

Schedule = Callable[[float, TrainOptions], float]

SCHEDULES: Registry[Schedule] = Registry("schedule")
"""Maps the share of the training that is done (0 to 1) to the share of the highest learning rate."""


def make_optimizer(module: nn.Module, options: TrainOptions) -> torch.optim.Optimizer:
    """Make the optimiser over the module's parameters; only weights of two or more dimensions are decayed.

    Source: Nesterov momentum, Sutskever et al. 2013; RMSProp, Tieleman and Hinton 2012; Adam, Kingma and Ba 2014;
    AdamW, Loshchilov and Hutter 2017; Lion, Chen et al. 2023.
    """
    parameters = list(module.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": options.weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    rate = options.learning_rate
    match options.optimizer:
        case "sgd":
            nesterov = options.momentum > 0
            return torch.optim.SGD(groups, rate, options.momentum, nesterov=nesterov)
        case "rmsprop":
            return torch.optim.RMSprop(groups, rate, momentum=options.momentum)
        case "adam":
            return torch.optim.Adam(groups, rate, options.betas)
        case "adamw":
            return torch.optim.AdamW(groups, rate, options.betas)
        case "lion":
            lion: torch.optim.Optimizer = Lion(
                [group for group in groups if group["params"]], rate, options.betas
            )
            return lion


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Use `rate` from the next step on."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def learning_rate_at(step: int, n_steps: int, options: TrainOptions) -> float:
    """Return the learning rate of a step, counted from 0, of a training of `n_steps`."""
    done, rising = step / n_steps, options.warm_up
    if done < rising:
        return options.learning_rate * (done + 1 / n_steps) / (rising + 1 / n_steps)
    return options.learning_rate * SCHEDULES[options.schedule]((done - rising) / (1 - rising), options)


@contextmanager
def climbed(parameters: Iterable[Tensor], radius: float) -> Iterator[None]:
    """Move the parameters by `radius` along their gradient, and back on leaving; the gradients are cleared.

    The gradient found up there leads to minima that are flat around (sharpness-aware minimisation, Foret et al. 2020).
    """
    moved = [p for p in parameters if p.grad is not None]
    gradients = [p.grad for p in moved if p.grad is not None]
    length = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients]))
    before = [p.detach().clone() for p in moved]
    with torch.no_grad():
        for parameter, gradient in zip(moved, gradients, strict=True):
            parameter.add_(gradient * (radius / (length + 1e-12)))
            parameter.grad = None
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(moved, before, strict=True):
                parameter.copy_(value)


@SCHEDULES.register("constant")
def constant(done: float, options: TrainOptions) -> float:
    """Stay at the highest rate."""
    return 1.0


@SCHEDULES.register("linear")
def linear(done: float, options: TrainOptions) -> float:
    """Fall from the highest rate to zero in a line."""
    return 1 - done


@SCHEDULES.register("cosine")
def cosine(done: float, options: TrainOptions) -> float:
    """Fall from the highest rate to zero along half a cosine (Loshchilov and Hutter 2016, no restarts)."""
    return (1 + math.cos(math.pi * done)) / 2


@SCHEDULES.register("one_cycle")
def one_cycle(done: float, options: TrainOptions) -> float:
    """Rise linearly over the first quarter, then fall to zero along half a cosine (Smith and Topin 2017)."""
    if done < ONE_CYCLE_WARM_UP:
        return ONE_CYCLE_START + (1 - ONE_CYCLE_START) * done / ONE_CYCLE_WARM_UP
    return cosine((done - ONE_CYCLE_WARM_UP) / (1 - ONE_CYCLE_WARM_UP), options)


@SCHEDULES.register("step")
def step(done: float, options: TrainOptions) -> float:
    """Multiply the rate by a factor after each share of the training."""
    return options.step_factor ** int(done / options.step_every + 1e-9)
