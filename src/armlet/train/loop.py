"""The training loop: explicit, seeded, resumable after every epoch; accelerate carries device and processes.

Reproducible on a CPU: the same job gives the same bytes, whether or not it was interrupted. A GPU may round
differently from run to run, because not all of its kernels have a deterministic form.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from armlet.artifacts import Epoch
from armlet.data.splits import Samples
from armlet.errors import ArmletError
from armlet.models.network import Network
from armlet.progress import Progress
from armlet.scores import METRICS
from armlet.train.checkpoint import Resumed, resume, save_checkpoint
from armlet.train.evaluation import predict
from armlet.train.job import TrainingJob, TrainingPlan, TrainingRun
from armlet.train.losses import task_loss, teacher_loss
from armlet.train.optim import learning_rate_at, make_optimizer, set_learning_rate

_REPORT_EVERY = 25  # steps between two progress notes: reading the loss waits for a GPU


def run_training(job: TrainingJob, work: Path, progress: Progress) -> tuple[Network, TrainingRun]:
    """Train the job's network in this process, which may be one of several that torchrun started.

    Args:
        job: what to train, on what and how.
        work: folder of the checkpoint; a checkpoint of the same job is resumed.
        progress: counts steps.

    Raises:
        ArmletError: the loss is no longer a number.
    """
    plan, options = job.plan, job.plan.options
    # Precision is carried by torch.autocast below: accelerate fixes its own for the life of a process.
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision="no")
    device, n_processes, rank = accelerator.device, accelerator.num_processes, accelerator.process_index
    precision = _precision(plan, device)
    task, n_samples = job.scorer.task.kind, len(job.data.train)
    share = min(options.batch_size, n_samples) // n_processes
    n_steps = n_samples // (share * n_processes)  # the last, incomplete batch of each epoch is left out
    fingerprint = job.fingerprint(n_processes, precision)

    with _own_random_state(device), torch.enable_grad():
        module = _trainable(job.network.module, device)
        optimizer = make_optimizer(module, options)
        resumed = resume(work, fingerprint, module, optimizer)
        history = list(resumed.history) if resumed else []
        best = dict(resumed.best) if resumed else {}
        wrapped, optimizer = accelerator.prepare(module, optimizer)
        inputs, targets = _inputs(job.data.train, device), torch.from_numpy(job.data.train.targets).to(device)
        teacher_outputs = None if job.data.teacher_outputs is None else job.data.teacher_outputs.to(device)
        progress.start("train", options.epochs * n_steps)
        if history:
            resumed_note = f"resumed after epoch {history[-1].epoch}"
            progress.say(resumed_note)
            progress.advance(len(history) * n_steps, resumed_note)

        while len(history) < options.epochs and not _out_of_patience(history, options.patience):
            epoch = len(history) + 1
            started = time.monotonic()
            _seed(_stream(plan.seed, epoch, rank), device)  # dropout
            order = torch.randperm(n_samples, generator=_generator(_stream(plan.seed, epoch))).to(device)
            loss_sum = torch.zeros((), device=device)
            rate = 0.0
            wrapped.train()
            for step in range(n_steps):
                rate = learning_rate_at((epoch - 1) * n_steps + step, options.epochs * n_steps, options)
                set_learning_rate(optimizer, rate)
                first = (step * n_processes + rank) * share
                chosen = order[first : first + share]
                with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                    outputs, penalty = _answer(wrapped(*(x[chosen] for x in inputs)))
                loss = penalty + task_loss(task, outputs.float(), targets[chosen], options.label_smoothing)
                if teacher_outputs is not None and plan.distillation is not None:
                    alpha, temperature = plan.distillation.alpha, plan.distillation.temperature
                    soft = teacher_loss(task, outputs.float(), teacher_outputs[chosen], temperature)
                    loss = alpha * soft + (1 - alpha) * loss
                accelerator.backward(loss)
                if options.gradient_clip is not None:
                    accelerator.clip_grad_norm_(wrapped.parameters(), options.gradient_clip)
                optimizer.step()
                optimizer.zero_grad()
                loss_sum += loss.detach()
                if (step + 1) % _REPORT_EVERY == 0:
                    mean = float(loss_sum) / (step + 1)
                    progress.advance(_REPORT_EVERY, _note(epoch, options.epochs, mean, history))

            train_loss = float(accelerator.reduce(loss_sum, "mean")) / n_steps
            _require_finite(train_loss, "loss", epoch)
            # Only the main process's batch statistics count, so only it validates and the others learn of it.
            validated = _validate(module, job) if accelerator.is_main_process else None
            validation_loss, metric, validation_score = broadcast_object_list([validated])[0]
            _require_finite(validation_loss, "validation loss", epoch)
            seconds = time.monotonic() - started
            history.append(Epoch(epoch, train_loss, validation_loss, metric, validation_score, rate, seconds))
            if options.patience and _best_epoch(history) == epoch:
                best = _state(module)
            if accelerator.is_main_process:
                save_checkpoint(work, fingerprint, module, optimizer, Resumed(tuple(history), best))
            progress.advance(n_steps % _REPORT_EVERY, _note(epoch, options.epochs, train_loss, history))

        trained = copy.deepcopy(job.network.module)
        trained.load_state_dict(best or _state(module))
    run = TrainingRun(
        tuple(history),
        device.type if n_processes == 1 else f"{n_processes} × {device.type}",
        precision,
        sum(epoch.seconds for epoch in history),
        len(history) < options.epochs,
    )
    return Network(trained.eval(), job.network.architecture), run


def _answer(found: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor | float]:
    """Return a network's answer and the penalty that it may add in training."""
    return found if isinstance(found, tuple) else (found, 0.0)


def _precision(plan: TrainingPlan, device: torch.device) -> str:
    if plan.options.precision != "auto":
        return plan.options.precision
    return (
        "bf16"
        if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        else "fp32"
    )


def _trainable(module: nn.Module, device: torch.device) -> nn.Module:
    """Return a copy on the device, its pictures' channels last: that halves the time of a step on a CPU."""
    module = copy.deepcopy(module).to(device).requires_grad_(True)
    for parameter in module.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return module


def _validate(module: nn.Module, job: TrainingJob) -> tuple[float, str, float]:
    """Return loss, metric and score on the validation split, in float32."""
    module.eval()
    device, samples = next(module.parameters()).device, job.data.validation
    outputs = predict(module, _inputs(samples, device)).cpu()
    loss = float(task_loss(job.scorer.task.kind, outputs, torch.from_numpy(samples.targets)))
    if not math.isfinite(loss):
        return loss, "", 0.0  # such answers have no score; the loop ends
    score = job.scorer.score(outputs.numpy(), samples, "validation")
    return loss, score.metric, score.value


def _require_finite(loss: float, what: str, epoch: int) -> None:
    if not math.isfinite(loss):
        raise ArmletError(
            f"training diverged: the {what} is {loss} in epoch {epoch}; lower the learning rate"
        )


def _best_epoch(history: list[Epoch]) -> int:
    """Return the first epoch with the best validation score."""
    sign = 1 if METRICS[history[0].metric].higher_is_better else -1
    return max(history, key=lambda e: (sign * e.validation_score, -e.epoch)).epoch


def _out_of_patience(history: list[Epoch], patience: int) -> bool:
    return bool(patience and history) and len(history) - _best_epoch(history) >= patience


def _state(module: nn.Module) -> dict[str, Tensor]:
    """Return a copy of the module's state on the CPU, laid out plainly."""
    return {
        name: value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, value in module.state_dict().items()
    }


def _inputs(samples: Samples, device: torch.device) -> tuple[Tensor, ...]:
    """Return inputs on the device; pictures with the channels last, as `_trainable` has them."""
    inputs = [torch.from_numpy(x).to(device) for x in samples.inputs]
    return tuple(x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x for x in inputs)


def _note(epoch: int, n_epochs: int, loss: float, history: list[Epoch]) -> str:
    score = ""
    if history:
        metric = METRICS[history[-1].metric]
        score = f"  {metric.label} {metric.text(history[-1].validation_score)}"
    return f"epoch {epoch}/{n_epochs}  loss {loss:.3f}{score}"


def _stream(*key: int) -> int:
    """Return a seed for each purpose, so that no two share random numbers."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _seed(seed: int, device: torch.device) -> None:
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


@contextmanager
def _own_random_state(device: torch.device) -> Iterator[None]:
    """Leave the global random numbers and the determinism switch as they were."""
    was_deterministic = torch.are_deterministic_algorithms_enabled()
    warned_only = torch.is_deterministic_algorithms_warn_only_enabled()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.use_deterministic_algorithms(device.type == "cpu")
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(was_deterministic, warn_only=warned_only)
