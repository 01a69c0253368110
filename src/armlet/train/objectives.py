"""What a training makes small, step by step: the network's own loss on labelled samples, with a teacher or without."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from armlet.data.splits import Samples
from armlet.metrics import Scorer
from armlet.train.augment import augment, mix
from armlet.train.distillation.student import plain, plain_state
from armlet.train.distillation.teaching import Teaching
from armlet.train.evaluation import predict
from armlet.train.losses import task_loss
from armlet.train.options import TrainOptions

NETWORK = "network"


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Samples of one step of one process.

    Attributes:
        step: counted from 0 over the whole training.
        labeled: bool [N], false where the target means nothing; None where all have one.
        teacher_outputs: float32 [N, teachers, *output_shape], where teachers were asked before the training.
    """

    step: int
    inputs: tuple[Tensor, ...]
    targets: Tensor
    labeled: Tensor | None = None
    teacher_outputs: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Validation:
    """How good a network is on the validation split; without a score where the loss is not finite."""

    loss: float
    metric: str = ""
    score: float = 0.0


Turn = tuple[str, Callable[[], Tensor]]
"""Which module takes a step, and what computes the loss that it makes small."""


class Objective(Protocol):
    """What a training makes small.

    Attributes:
        modules: what is trained, by name; `network` is what comes out.
        rates: share of the learning rate for a module that does not use the whole.
    """

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        """What is trained."""

    @property
    def rates(self) -> Mapping[str, float]:
        """Shares of the learning rate."""

    def turns(self, modules: Mapping[str, nn.Module], batch: Batch) -> Iterator[Turn]:
        """Give the turns of a step, in order; each loss is computed after the turn before it.

        Args:
            modules: those of the objective, as the loop wrapped them.
            batch: on their device.
        """

    def validate(self, modules: Mapping[str, nn.Module], samples: Samples) -> Validation:
        """Score the modules, in float32 and evaluation mode."""

    def result(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the state of the network that comes out, of the state of the module `network`."""


class Supervised:
    """The task's loss on labelled samples, mixed with what teachers say where there are any."""

    rates: Mapping[str, float] = {}

    def __init__(
        self,
        network: nn.Module,
        scorer: Scorer,
        options: TrainOptions,
        teaching: Teaching | None = None,
    ) -> None:
        self.modules: Mapping[str, nn.Module] = {NETWORK: teaching.student if teaching else network}
        self._scorer, self._options, self._teaching = scorer, options, teaching

    def turns(self, modules: Mapping[str, nn.Module], batch: Batch) -> Iterator[Turn]:
        """One turn, of the network."""
        inputs, targets = augment(self._options.augment, batch.inputs), batch.targets
        if self._options.mixup or self._options.cutmix:
            shares = targets
            if not targets.is_floating_point():
                shares = nn.functional.one_hot(targets, self._scorer.task.output_shape[0]).float()
            first, targets = mix(inputs[0], shares, self._options.mixup, self._options.cutmix)
            inputs = (first, *inputs[1:])
        yield NETWORK, lambda: self._loss(modules[NETWORK], inputs, targets, batch)

    def _loss(self, network: nn.Module, inputs: tuple[Tensor, ...], targets: Tensor, batch: Batch) -> Tensor:
        task = self._scorer.task.kind
        said = network(*inputs)
        outputs, penalty = answer_of(said.answer if self._teaching else said)
        taught = outputs if batch.labeled is None else outputs[batch.labeled]
        wanted = targets if batch.labeled is None else targets[batch.labeled]
        loss = penalty
        if len(taught):
            loss = loss + task_loss(task, taught.float(), wanted, self._options)
        if self._teaching is None:
            return loss
        classes = (
            targets.argmax(dim=1) if task == "classification" and targets.is_floating_point() else targets
        )
        known = classes if batch.labeled is None else None
        return self._teaching.loss(said, loss, inputs, known, batch.teacher_outputs)

    def validate(self, modules: Mapping[str, nn.Module], samples: Samples) -> Validation:
        """Return the task's loss and main metric."""
        network, kind = plain(modules[NETWORK]), self._scorer.task.kind
        outputs = predict(network, on_device(samples.inputs, network)).cpu()
        loss = float(task_loss(kind, outputs, torch.from_numpy(samples.targets), self._options))
        if not math.isfinite(loss):
            return Validation(loss)
        score = self._scorer.score(outputs.numpy(), samples, "validation")
        return Validation(loss, score.metric, score.value)

    def result(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The network is the module, or a student's part of it."""
        return plain_state(state) if self._teaching else state


def answer_of(found: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return a network's answer and the penalty that it may add in training, zero where it adds none."""
    return found if isinstance(found, tuple) else (found, found.new_zeros(()))


def on_device(arrays: tuple[object, ...], module: nn.Module) -> tuple[Tensor, ...]:
    """Return arrays as tensors on the module's device; pictures with the channels last, as the loop has them."""
    device = next(module.parameters()).device
    tensors = [torch.as_tensor(x).to(device) for x in arrays]
    return tuple(x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x for x in tensors)
