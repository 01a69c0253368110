"""Trains a network: checks the request, asks the teacher once, and runs the loop here or in several processes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from armlet.artifacts import InputSpec, TaskKind
from armlet.data.splits import Samples, Splits
from armlet.errors import Problem, UsageError
from armlet.metrics import Scorer
from armlet.models.network import Network, executable
from armlet.progress import Progress
from armlet.registry import Registry
from armlet.train.adversarial import ADVERSARIAL_LOSSES
from armlet.train.augment import AUGMENTATIONS
from armlet.train.distillation.options import ANSWERS, DistillationOptions, asks_in_each_step
from armlet.train.distillation.teaching import curriculum
from armlet.train.evaluation import predict
from armlet.train.group_lasso import GroupLasso
from armlet.train.job import TrainingData, TrainingJob, TrainingPlan, TrainingRun
from armlet.train.launch import launch
from armlet.train.loop import run_training
from armlet.train.losses import CLASS_LOSSES, NUMBER_LOSSES
from armlet.train.options import TrainOptions
from armlet.train.pruning import PruningSchedule


def train_network(  # noqa: PLR0913 - what is trained, where it lies and who teaches have no common owner
    network: Network,
    splits: Splits,
    options: TrainOptions,
    scorer: Scorer,
    *,
    seed: int,
    work: Path,
    progress: Progress,
    teachers: tuple[Network, ...] = (),
    distillation: DistillationOptions | None = None,
    mask: float | None = None,
    pruning: PruningSchedule | None = None,
    lasso: GroupLasso | None = None,
) -> tuple[Network, TrainingRun]:
    """Train a copy of `network` and return it; the one given stays as it is.

    Args:
        network: where training starts.
        splits: trains on `train`, validates on `validation` after each epoch, never looks at `test`.
        options: how.
        scorer: of the validation split.
        seed: decides the order of the samples, augmentation and dropout.
        work: private folder for checkpoints; a run that was killed goes on after its last whole epoch.
        progress: counts training steps.
        teachers: are learned from too; need `distillation`.
        distillation: what of them, and how much; needs `teachers`.
        mask: share of each input that is hidden; the network then learns to fill it in, on the inputs without labels
            too, and not to answer the task.
        pruning: which weights become zero meanwhile. Weights with constraints keep them.
        lasso: which channels shrink to zero meanwhile.

    Raises:
        UsageError: a quantised network, an empty split, more processes than GPUs or samples of a batch, a batch too
            small to normalise, or options that don't fit the inputs or the task.
        ArmletError: training diverged, or a worker process failed.
    """
    if network.quantization is not None:
        raise UsageError(
            "a quantised network can't be trained; train before it is quantised, or with quantize_aware"
        )
    if mask is not None and (pruning or network.constraints):
        raise UsageError("a pruned network, or one with shared values, can't be pre-trained")
    if pruning and options.patience:
        raise UsageError(
            "weights become zero until the end of training, so it can't stop early: set patience to 0"
        )
    if bool(teachers) != (distillation is not None):
        raise UsageError("teachers and distillation options go together: one of them is missing")
    for name, samples in (("training", splits.train), ("validation", splits.validation)):
        if len(samples) == 0:
            raise UsageError(f"the {name} split is empty; training needs both (data.validation above 0 %)")
    task = scorer.task.kind
    check_options(options, network.architecture.inputs, task)
    if distillation is not None and distillation.unlabeled and (options.mixup or options.cutmix):
        raise UsageError("train.mixup and train.cutmix need a label of every sample: set unlabeled to false")
    if distillation is not None and (
        problems := teaching_problems(network, teachers, distillation, options, task)
    ):
        raise UsageError(Problem(problem) for problem in problems)
    asked_always = distillation is not None and asks_in_each_step(distillation, options, task)
    n_processes = _n_processes(options, scorer.task.kind)
    use_unlabeled = mask is not None or (distillation is not None and distillation.unlabeled)
    data = _training_data(splits, () if asked_always else teachers, use_unlabeled=use_unlabeled)
    _check_batch(network, min(options.batch_size, len(data.train)), n_processes)
    plan = TrainingPlan(options, seed, distillation, mask, pruning, lasso)
    job = TrainingJob(network, data, plan, scorer, teachers if asked_always else ())
    work.mkdir(parents=True, exist_ok=True)
    if n_processes == 1:
        return run_training(job, work, progress)
    return launch(job, n_processes, work, progress)


def teaching_problems(
    student: Network,
    teachers: tuple[Network, ...],
    distillation: DistillationOptions,
    options: TrainOptions,
    task: TaskKind,
) -> tuple[str, ...]:
    """Return every reason why a student can't learn so from these teachers; empty when it can."""
    ours = student.architecture
    problems = tuple(
        f"a teacher maps {theirs.inputs} to {theirs.output_shape}, the student {ours.inputs} to {ours.output_shape}"
        for theirs in (teacher.architecture for teacher in teachers)
        if (theirs.inputs, theirs.output_shape) != (ours.inputs, ours.output_shape)
    )
    if problems:
        return problems
    modules = [executable(teacher) for teacher in teachers]
    problems = curriculum(distillation, task, ours.inputs, student.module, modules).problems
    of_layers = [t.kind for t in distillation.terms if t.kind not in ANSWERS]
    if options.compile and of_layers:
        problems += (f"{', '.join(of_layers)}: torch.compile can't follow layers that are observed",)
    if "relations" in of_layers and options.batch_size < 3:
        problems += ("relations: a batch needs three samples or more",)
    return problems


def check_options(options: TrainOptions, inputs: tuple[InputSpec, ...], task: TaskKind) -> None:
    """Check that the loss fits the task, and the augmentation fits what the network takes.

    Raises:
        UsageError: one does not.
    """
    tables: dict[str, Registry[Any]] = {"classification": CLASS_LOSSES, "generation": ADVERSARIAL_LOSSES}
    table = tables.get(task, NUMBER_LOSSES)
    if options.loss != "auto" and options.loss not in table:
        raise UsageError(f"train.loss {options.loss} is not for {task}; that takes {', '.join(table)}")
    dims, is_text = len(inputs[0].shape) + 1, inputs[0].dtype == "int32"
    fits = [n for n in AUGMENTATIONS if dims in AUGMENTATIONS[n].dims and AUGMENTATIONS[n].tokens == is_text]
    for name in options.augment:
        if name not in fits:
            raise UsageError(
                f"train.augment {name} does not fit inputs of shape {list(inputs[0].shape)};"
                f" these do: {', '.join(fits) or 'none'}"
            )
    if "rotate" in options.augment and inputs[0].shape[-1] % 3:
        raise UsageError(
            f"train.augment rotate turns channels by threes, and there are {inputs[0].shape[-1]}"
        )
    if len(inputs) > 1 and (timed := [name for name in options.augment if name in ("speed", "time_mask")]):
        raise UsageError(f"train.augment {' and '.join(timed)} is for sequences of one length")
    if options.augment and task not in ("classification", "forecast"):
        raise UsageError(f"train.augment changes inputs alone, which would make answers to {task} wrong")
    if (options.mixup or options.cutmix) and (is_text or len(inputs) > 1 or task == "generation"):
        raise UsageError("train.mixup and train.cutmix are for rows, pictures and sequences of one length")
    if options.cutmix and (dims != 4 or task != "classification"):
        raise UsageError("train.cutmix is for the classification of pictures")


def _training_data(splits: Splits, teachers: tuple[Network, ...], *, use_unlabeled: bool) -> TrainingData:
    samples, labeled = splits.train, None
    if use_unlabeled and splits.unlabeled:
        n = len(splits.unlabeled[0])
        inputs = tuple(np.concatenate(pair) for pair in zip(samples.inputs, splits.unlabeled, strict=True))
        nothing = np.zeros((n, *samples.targets.shape[1:]), samples.targets.dtype)
        labeled = torch.arange(len(samples) + n) < len(samples)
        shares = samples.shares
        if shares is not None:
            shares = np.concatenate([shares, np.zeros((n, shares.shape[1]), shares.dtype)])
        samples = Samples(inputs, np.concatenate([samples.targets, nothing]), shares=shares)
    # The inputs are the same in every epoch, so these teachers are asked once.
    asked = tuple(map(torch.from_numpy, samples.inputs))
    answers = [predict(executable(teacher), asked) for teacher in teachers]
    taught = torch.stack(answers, dim=1) if answers else None
    return TrainingData(samples, splits.validation, labeled, taught)


def _check_batch(network: Network, n_batch: int, n_processes: int) -> None:
    if n_batch < n_processes:
        raise UsageError(
            f"a batch of {n_batch} samples can't feed {n_processes} processes; set train.batch_size"
        )
    normalises = any(isinstance(module, nn.BatchNorm1d) for module in network.module.modules())
    if n_batch // n_processes == 1 and normalises:
        raise UsageError(
            "one sample a step and process is too few for batch normalisation; raise train.batch_size"
        )


def _n_processes(options: TrainOptions, task: TaskKind) -> int:
    if (n_outside := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        # Each of them would run the whole recipe, and wait for the others where they wait for it.
        raise UsageError(
            f"this is one of {n_outside} processes that torchrun or accelerate launch started; armlet starts those of"
            f" a training by itself: start it alone, with --distributed {n_outside} or train.processes"
        )
    n_gpus = torch.cuda.device_count()
    if task == "generation":
        if options.processes not in ("auto", 1):
            raise UsageError("a generator and its critic train in one process; set train.processes to 1")
        return 1
    if options.processes == "auto":
        return max(1, n_gpus)
    if 0 < n_gpus < options.processes:
        raise UsageError(f"train.processes is {options.processes}, but this machine has {n_gpus} GPUs")
    return options.processes
