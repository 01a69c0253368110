"""What one process does in each step: its share of the batch, the turns of the modules, the moving average."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from armlet.errors import ArmletError
from armlet.train.checkpoint import Learner
from armlet.train.distillation.student import plain
from armlet.train.group_lasso import Shrinker
from armlet.train.job import TrainingJob
from armlet.train.objectives import NETWORK, Batch, Objective, on_device
from armlet.train.optim import climbed, learning_rate_at, make_optimizer, set_learning_rate
from armlet.train.options import TrainOptions
from armlet.train.pruning import Keeper
from armlet.train.randomness import generator, seed_all, stream

REPORT_EVERY = 25  # steps between two progress notes: reading the loss waits for a GPU
_AVERAGE = "average"


class Steps:
    """The steps of one process: its share of each batch, and what moves on it.

    Args:
        learner: on its device.
        precision: "fp32" or "bf16".
    """

    def __init__(
        self,
        job: TrainingJob,
        objective: Objective,
        learner: Learner,
        accelerator: Accelerator,
        precision: str,
    ) -> None:
        options, data = job.plan.options, job.data
        self._plan, self._objective, self._learner = job.plan, objective, learner
        self._accelerator, self._precision = accelerator, precision
        self._n_samples, n_processes = len(data.train), accelerator.num_processes
        self._share = min(options.batch_size, self._n_samples) // n_processes
        # The last, incomplete batch of each epoch is left out.
        self.n_an_epoch = self._n_samples // (self._share * n_processes)
        # torchrun's processes each compute a share of the gradient.
        self._modules: dict[str, nn.Module] = {
            name: accelerator.prepare(learner.modules[name]) for name in learner.optimizers
        }
        if options.compile:
            for module in self._modules.values():
                module.compile()
        network = learner.modules[NETWORK]
        self._keeper = Keeper(
            plain(network),
            job.network.constraints,
            job.plan.pruning,
            options.epochs * self.n_an_epoch,
            options.critic_steps if job.scorer.task.kind == "generation" else 1,
        )
        self._shrinker = Shrinker(plain(network), job.plan.lasso)
        self._inputs = on_device(data.train.inputs, network)
        targets = data.train.targets if data.train.shares is None else data.train.shares
        others = (targets, data.labeled, data.teacher_outputs)
        self._targets, self._labeled, self._teacher_outputs = (
            None if x is None else torch.as_tensor(x).to(accelerator.device) for x in others
        )

    def run(self, epoch: int, report: Callable[[int, float], None]) -> tuple[Tensor, float]:
        """Take the steps of an epoch; return the mean loss of the network and the last learning rate."""
        plan, options, accelerator = self._plan, self._plan.options, self._accelerator
        rank, device = accelerator.process_index, accelerator.device
        seed_all(stream(plan.seed, epoch, rank), device)  # dropout, augmentation, noise
        order = torch.randperm(self._n_samples, generator=generator(stream(plan.seed, epoch))).to(device)
        loss_sum = torch.zeros((), device=device)
        rate, n_turns = 0.0, 0
        for module in self._modules.values():
            module.train()
        for step in range(self.n_an_epoch):
            total = (epoch - 1) * self.n_an_epoch + step
            rate = learning_rate_at(total, options.epochs * self.n_an_epoch, options)
            first = (step * accelerator.num_processes + rank) * self._share
            batch = self._batch(total, order[first : first + self._share])
            for name, loss_of in self._objective.turns(self._modules, batch):
                loss = self._turn(name, loss_of, rate * self._objective.rates.get(name, 1.0), total)
                if name == NETWORK:
                    loss_sum += loss
                    n_turns += 1
                    self._average()
            if (step + 1) % REPORT_EVERY == 0:
                report(REPORT_EVERY, float(loss_sum) / max(n_turns, 1))
        return loss_sum / max(n_turns, 1), rate

    def _turn(self, name: str, loss_of: Callable[[], Tensor], rate: float, step: int) -> Tensor:
        options, optimizer = self._plan.options, self._learner.optimizers[name]
        parameters = list(self._modules[name].parameters())
        optimizer.zero_grad()  # another module's turn may have left gradients
        loss = self._backward(name, loss_of)
        if options.sharpness:
            with climbed(parameters, options.sharpness):
                self._backward(name, loss_of)
        if options.gradient_clip is not None:
            self._accelerator.clip_grad_norm_(parameters, options.gradient_clip)
        set_learning_rate(optimizer, rate)
        with self._keeper.keeping(step) if name == NETWORK else nullcontext():
            optimizer.step()
            if name == NETWORK:
                self._shrinker.shrink(rate)
        return loss

    def _backward(self, name: str, loss_of: Callable[[], Tensor]) -> Tensor:
        device = self._accelerator.device.type
        with torch.autocast(device, torch.bfloat16, enabled=self._precision == "bf16"):
            loss = loss_of()
        self._accelerator.backward(loss)
        if name == NETWORK:
            self._keeper.gradients()
        return loss.detach()

    def _average(self) -> None:
        average = self._learner.modules.get(_AVERAGE)
        if isinstance(average, AveragedModel):
            average.update_parameters(self._learner.modules[NETWORK])
            self._keeper.impose(plain(average.module))

    def _batch(self, step: int, chosen: Tensor) -> Batch:
        targets, labeled, taught = (
            None if x is None else x[chosen] for x in (self._targets, self._labeled, self._teacher_outputs)
        )
        if targets is None:
            raise ArmletError("training samples without targets")
        return Batch(step, tuple(x[chosen] for x in self._inputs), targets, labeled, taught)


def make_learner(objective: Objective, options: TrainOptions) -> Learner:
    """Return the objective's modules, an optimiser for each, and the moving average where it is asked for."""
    modules = dict(objective.modules)
    optimizers = {name: make_optimizer(module, options) for name, module in modules.items()}
    if options.ema:
        modules[_AVERAGE] = AveragedModel(
            modules[NETWORK], avg_fn=_moving_average(options.ema), use_buffers=True
        )
    return Learner(modules, optimizers)


def _moving_average(decay: float) -> Callable[[Tensor, Tensor, Tensor | int], Tensor]:
    """Return an exponential moving average that forgets its first values faster, as they are far off."""

    def average(before: Tensor, now: Tensor, n_averaged: Tensor | int) -> Tensor:
        kept = min(decay, (1 + float(n_averaged)) / (10 + float(n_averaged)))
        return (before * kept + now * (1 - kept)).to(before.dtype)

    return average


def scored(learner: Learner) -> Mapping[str, nn.Module]:
    """Return the modules with the network's moving average in its place, where there is one."""
    average = learner.modules.get(_AVERAGE)
    if not isinstance(average, AveragedModel):
        return learner.modules
    return {**learner.modules, NETWORK: average.module}
