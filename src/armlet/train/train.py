"""Trains a network: checks the request, asks the teacher once, and runs the loop here or in several processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from armlet.artifacts import InputSpec, TaskKind
from armlet.data.splits import Samples, Splits
from armlet.errors import UsageError
from armlet.metrics import Scorer
from armlet.models.network import Network, executable
from armlet.progress import Progress
from armlet.registry import Registry
from armlet.train.adversarial import ADVERSARIAL_LOSSES
from armlet.train.augment import AUGMENTATIONS
from armlet.train.evaluation import predict
from armlet.train.job import TrainingData, TrainingJob, TrainingPlan, TrainingRun
from armlet.train.launch import launch
from armlet.train.loop import run_training
from armlet.train.losses import CLASS_LOSSES, NUMBER_LOSSES, DistillationOptions
from armlet.train.options import TrainOptions


def train_network(  # noqa: PLR0913 - what is trained, where it lies and who teaches have no common owner
    network: Network,
    splits: Splits,
    options: TrainOptions,
    scorer: Scorer,
    *,
    seed: int,
    work: Path,
    progress: Progress,
    teacher: Network | None = None,
    distillation: DistillationOptions | None = None,
    mask: float | None = None,
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
        teacher: its answers to the training inputs are learned too; needs `distillation`.
        distillation: how much; needs `teacher`.
        mask: share of each input that is hidden; the network then learns to fill it in, on the inputs without labels
            too, and not to answer the task.

    Raises:
        UsageError: a quantised network, an empty split, more processes than GPUs or samples of a batch, a batch too
            small to normalise, or options that don't fit the inputs or the task.
        ArmletError: training diverged, or a worker process failed.
    """
    if network.quantization is not None:
        raise UsageError(
            "a quantised network can't be trained; train before it is quantised, or with quantize_aware"
        )
    if (teacher is None) != (distillation is None):
        raise UsageError("teacher and distillation options go together: one of them is missing")
    for name, samples in (("training", splits.train), ("validation", splits.validation)):
        if len(samples) == 0:
            raise UsageError(f"the {name} split is empty; training needs both (data.validation above 0 %)")
    check_options(options, network.architecture.inputs, scorer.task.kind)
    n_processes = _n_processes(options, scorer.task.kind)
    data = _training_data(splits, teacher, use_unlabeled=mask is not None or _asks_unlabeled(distillation))
    _check_batch(network, min(options.batch_size, len(data.train)), n_processes)
    job = TrainingJob(network, data, TrainingPlan(options, seed, distillation, mask), scorer)
    work.mkdir(parents=True, exist_ok=True)
    if n_processes == 1:
        return run_training(job, work, progress)
    return launch(job, n_processes, work, progress)


def _asks_unlabeled(distillation: DistillationOptions | None) -> bool:
    return distillation is not None and distillation.unlabeled


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
    if options.augment and task not in ("classification", "forecast"):
        raise UsageError(f"train.augment changes inputs alone, which would make answers to {task} wrong")
    if (options.mixup or options.cutmix) and (is_text or len(inputs) > 1 or task == "generation"):
        raise UsageError("train.mixup and train.cutmix are for rows, pictures and sequences of one length")
    if options.cutmix and (dims != 4 or task != "classification"):
        raise UsageError("train.cutmix is for the classification of pictures")


def _training_data(splits: Splits, teacher: Network | None, *, use_unlabeled: bool) -> TrainingData:
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
    # The inputs are the same in every epoch, so the teacher is asked once.
    asked = tuple(map(torch.from_numpy, samples.inputs))
    answers = None if teacher is None else predict(executable(teacher), asked).clone()
    return TrainingData(samples, splits.validation, labeled, answers)


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
