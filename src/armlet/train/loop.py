"""The training loop: explicit, seeded, resumable after every epoch; accelerate carries device and processes.

Reproducible on a CPU: the same job gives the same bytes, whether or not it was interrupted. A GPU may round
differently from run to run, because not all of its kernels have a deterministic form.
"""

from __future__ import annotations

import copy
import math
import time
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from armlet.analysis.graph import arguments, aten, example_inputs
from armlet.artifacts import Epoch, InputSpec
from armlet.errors import ArmletError
from armlet.models.network import Network, executable
from armlet.progress import Progress
from armlet.scores import METRICS
from armlet.train.adversarial import Adversarial
from armlet.train.checkpoint import Learner, Resumed, resume, save_checkpoint
from armlet.train.distillation.teaching import Teaching
from armlet.train.divergence import cause_of
from armlet.train.job import TrainingJob, TrainingPlan, TrainingRun
from armlet.train.masked import MaskedReconstruction
from armlet.train.objectives import NETWORK, Objective, Supervised, Validation
from armlet.train.randomness import own_random_state, stream
from armlet.train.steps import REPORT_EVERY, Steps, make_learner, scored


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
    # A masked encoder is trained without its head, whose gradients the other processes would wait for.
    partial = DistributedDataParallelKwargs(find_unused_parameters=plan.mask is not None)
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(), mixed_precision="no", kwargs_handlers=[partial]
    )
    device, n_processes = accelerator.device, accelerator.num_processes
    precision = _precision(plan, device)
    fingerprint = job.fingerprint(n_processes, precision)

    with own_random_state(device), torch.enable_grad():
        objective = _objective(job, device)
        learner = make_learner(objective, options)
        resumed = resume(work, fingerprint, learner)
        history = list(resumed.history) if resumed else []
        best = dict(resumed.best) if resumed else {}
        steps = Steps(job, objective, learner, accelerator, precision)
        progress.start("train", options.epochs * steps.n_an_epoch)
        if history:
            resumed_note = f"resumed after epoch {history[-1].epoch}"
            progress.say(resumed_note)
            progress.advance(len(history) * steps.n_an_epoch, resumed_note)

        while len(history) < options.epochs and not _out_of_patience(history, options.patience):
            epoch, started = len(history) + 1, time.monotonic()
            mean, rate = steps.run(
                epoch,
                lambda n, loss: progress.advance(n, _note(len(history) + 1, options.epochs, loss, history)),
            )
            train_loss = float(accelerator.reduce(mean, "mean"))
            _require_finite(train_loss, "loss", epoch, job)
            # Only the main process's batch statistics count, so only it validates and the others learn of it.
            validated = _validate(objective, learner, job) if accelerator.is_main_process else None
            found = broadcast_object_list([validated])[0]
            _require_finite(found.loss, "validation loss", epoch, job)
            seconds = time.monotonic() - started
            history.append(Epoch(epoch, train_loss, found.loss, found.metric, found.score, rate, seconds))
            if options.patience and _best_epoch(history) == epoch:
                best = _state(scored(learner)[NETWORK])
            if accelerator.is_main_process:
                save_checkpoint(work, fingerprint, learner, Resumed(tuple(history), best))
            progress.advance(
                steps.n_an_epoch % REPORT_EVERY, _note(epoch, options.epochs, train_loss, history)
            )

        trained = copy.deepcopy(job.network.module)
        trained.load_state_dict(objective.result(best or _state(scored(learner)[NETWORK])))
    run = TrainingRun(
        tuple(history),
        device.type if n_processes == 1 else f"{n_processes} × {device.type}",
        precision,
        sum(epoch.seconds for epoch in history),
        len(history) < options.epochs,
    )
    return replace(job.network, module=trained.eval()), run


def _objective(job: TrainingJob, device: torch.device) -> Objective:
    """Return what the job makes small; its modules are copies on the device."""
    plan, architecture = job.plan, job.network.architecture
    network = _trainable(job.network.module, architecture.inputs, device)
    if plan.mask is not None:
        return MaskedReconstruction(network, architecture.inputs, plan.mask, plan.seed)
    teaching = _teaching(job, network, device)
    if job.scorer.task.kind == "generation":
        return Adversarial(network, architecture, job.scorer, plan.options, plan.seed, teaching)
    return Supervised(network, job.scorer, plan.options, teaching)


def _teaching(job: TrainingJob, network: nn.Module, device: torch.device) -> Teaching | None:
    """Return what the network learns from teachers, if it has any; the teachers are copies on the device."""
    plan = job.plan
    if plan.distillation is None:
        return None
    teachers = [copy.deepcopy(executable(teacher)).to(device).eval() for teacher in job.teachers]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(stream(plan.seed, 5))
        return Teaching(
            network, teachers, plan.distillation, job.scorer.task, job.network.architecture.inputs
        )


def _precision(plan: TrainingPlan, device: torch.device) -> str:
    if plan.options.precision != "auto":
        return plan.options.precision
    return (
        "bf16"
        if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        else "fp32"
    )


def _trainable(module: nn.Module, inputs: tuple[InputSpec, ...], device: torch.device) -> nn.Module:
    """Return a copy on the device, its pictures' channels last: that halves the time of a step on a CPU.

    Not so where a module of the user's own takes views that need channels first.
    """
    plain = copy.deepcopy(module).to(device).requires_grad_(True)
    pictures = any(parameter.dim() == 4 for parameter in plain.parameters())
    if not pictures or any(_overruns(layer) for layer in plain.modules()):
        return plain
    module = copy.deepcopy(plain)
    for parameter in module.parameters():
        if parameter.dim() == 4:
            parameter.data = _channels_last(parameter.data)
    try:
        with torch.no_grad():
            module.eval()(*example_inputs(inputs, 2, device))
    except RuntimeError:
        return plain
    return module


def _channels_last(weight: Tensor) -> Tensor:
    """Return a convolution's weight [N, C, H, W] with the strides of channels last, also where C is 1.

    Of one channel `contiguous` keeps any strides; torch then lays the first layer's results out plainly, and all that
    follows up to the next convolution takes longer: about a quarter of the whole step.
    """
    _, channels, height, width = weight.shape
    strides = (channels * height * width, 1, width * channels, channels)
    laid_out = torch.empty_strided(weight.shape, strides, dtype=weight.dtype, device=weight.device)
    return laid_out.copy_(weight)


def _overruns(layer: nn.Module) -> bool:
    """Whether oneDNN's gradient of a layer with channels last writes behind its buffer (torch 2.13, on AVX2).

    A 1×1 convolution that strides, of fewer than 8 channels: the process dies in some later call.
    """
    if isinstance(layer, GraphModule):
        return any(_node_overruns(node) for node in layer.graph.nodes)
    return (
        isinstance(layer, nn.Conv2d)
        and layer.kernel_size == (1, 1)
        and layer.stride != (1, 1)
        and layer.in_channels < 8
    )


def _node_overruns(node: Node) -> bool:
    if node.target is not aten.conv2d.default or not isinstance(node.args[1], Node):
        return False
    shape, strides = node.args[1].meta["val"].shape, [*arguments(node)[3:4], [1, 1]][0]
    return strides != [1, 1] and tuple(shape[2:]) == (1, 1) and shape[1] < 8


def _validate(objective: Objective, learner: Learner, job: TrainingJob) -> Validation:
    """Score what would come out now on the validation split."""
    modules = scored(learner)
    for module in modules.values():
        module.eval()
    with torch.no_grad():
        return objective.validate(modules, job.data.validation)


def _require_finite(loss: float, what: str, epoch: int, job: TrainingJob) -> None:
    if not math.isfinite(loss):
        raise ArmletError(f"training diverged: the {what} is {loss} in epoch {epoch}; {cause_of(job)}")


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


def _note(epoch: int, n_epochs: int, loss: float, history: list[Epoch]) -> str:
    score = ""
    if history:
        metric = METRICS[history[-1].metric]
        score = f"  {metric.label} {metric.text(history[-1].validation_score)}"
    return f"epoch {epoch}/{n_epochs}  loss {loss:.3f}{score}"
