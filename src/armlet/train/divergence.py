"""Says what first stopped being finite, where a loss did: samples, weights, answers or gradients, or only training."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from armlet.data.splits import Samples, not_finite
from armlet.train.job import TrainingJob
from armlet.train.losses import task_loss
from armlet.train.objectives import answer_of

_ROWS = 256
"""Samples of one batch that is looked at."""


def cause_of(job: TrainingJob) -> str:
    """Return what is not finite before the first step, in words; where nothing is, that the steps are at fault.

    In this order: training and validation samples; the first weights; what the network answers with them, with the
    layer whose value comes first; the gradients of the task's loss, of the first batch.
    """
    parts: tuple[tuple[str, Samples], ...] = (
        ("training", job.data.train), ("validation", job.data.validation),
    )  # fmt: skip
    for split, samples in parts:
        for what, array in (
            *((f"input {i}", x) for i, x in enumerate(samples.inputs)),
            ("target", samples.targets),
        ):
            if said := not_finite(array):
                return f"the {split} samples are at fault: {what} is {said}"
    if wrong := _names_of_not_finite(dict(job.network.module.named_parameters())):
        return f"the first weights are at fault: {wrong} are not finite before any step"
    module = copy.deepcopy(job.network.module).cpu().eval()
    for split, samples in parts:
        if wrong := _answers(module, samples, split):
            return wrong
    if wrong := _gradients(module, job):
        return wrong
    return "samples, first weights, answers and gradients are finite, and the steps lead away: lower the learning rate"


def _names_of_not_finite(values: Mapping[str, Tensor]) -> str:
    return ", ".join(name for name, value in values.items() if not bool(torch.isfinite(value).all()))


def _batches(samples: Samples) -> Iterator[tuple[int, tuple[Tensor, ...]]]:
    for start in range(0, len(samples), _ROWS):
        yield start, tuple(torch.from_numpy(x[start : start + _ROWS]) for x in samples.inputs)


def _answers(module: nn.Module, samples: Samples, split: str) -> str:
    """Say which sample has an answer that is not finite, and where in the network that begins."""
    for start, inputs in _batches(samples):
        with torch.no_grad():
            answers = answer_of(module(*inputs))[0].numpy()
        if not_finite(answers):
            number = next(i for i, answer in enumerate(answers) if not np.isfinite(answer).all())
            one = tuple(x[number : number + 1] for x in inputs)
            return (
                f"the network is at fault: its answer to {split} sample {start + number} is not finite before any"
                f" step, though sample and weights are; it begins in {_first_layer(module, one)}"
            )
    return ""


def _first_layer(module: nn.Module, inputs: tuple[Tensor, ...]) -> str:
    """Return the innermost module that is first to give a value that is not finite."""
    found: list[str] = []

    def hook(name: str) -> object:
        def look(layer: nn.Module, _: object, value: object) -> None:
            parts = value if isinstance(value, tuple) else (value,)
            floats = [p for p in parts if isinstance(p, Tensor) and p.is_floating_point()]
            if not all(bool(torch.isfinite(p).all()) for p in floats):
                found.append(f"{name} ({type(layer).__name__})" if name else f"{type(layer).__name__} itself")

        return look

    handles = [part.register_forward_hook(hook(name)) for name, part in module.named_modules()]
    try:
        with torch.no_grad():
            module(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else "a value between its layers"


def _gradients(module: nn.Module, job: TrainingJob) -> str:
    """Say which weights have a gradient of the task's loss that is not finite, though the loss is."""
    task, samples = job.scorer.task.kind, job.data.train
    if task == "generation" or job.plan.mask is not None:  # the loss is another one
        return ""
    for start, inputs in _batches(samples):
        targets = torch.from_numpy(samples.targets[start : start + _ROWS])
        with torch.enable_grad():
            loss = task_loss(task, answer_of(module(*inputs))[0].float(), targets, job.plan.options)
            named = dict(module.named_parameters())
            found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
        if not math.isfinite(value := float(loss.detach())):
            return f"the loss is at fault: it is {value} of finite answers before any step"
        slopes = {name: slope for name, slope in zip(named, found, strict=True) if slope is not None}
        if wrong := _names_of_not_finite(slopes):
            return (
                f"the network is at fault: the gradients of {wrong} are not finite before any step, though its answers"
                " are; a root, a norm or a division at zero has none"
            )
    return ""
