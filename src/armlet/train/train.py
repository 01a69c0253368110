"""Trains a network: checks the request, asks the teacher once, and runs the loop here or in several processes."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from armlet.data.splits import Splits
from armlet.errors import UsageError
from armlet.metrics import Scorer
from armlet.models.network import Network, executable
from armlet.progress import Progress
from armlet.train.evaluation import predict
from armlet.train.job import TrainingData, TrainingJob, TrainingPlan, TrainingRun
from armlet.train.launch import launch
from armlet.train.loop import run_training
from armlet.train.losses import DistillationOptions
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
) -> tuple[Network, TrainingRun]:
    """Train a copy of `network` and return it; the one given stays as it is.

    Args:
        network: where training starts.
        splits: trains on `train`, validates on `validation` after each epoch, never looks at `test`.
        options: how.
        scorer: of the validation split.
        seed: decides the order of the samples and dropout.
        work: private folder for checkpoints; a run that was killed goes on after its last whole epoch.
        progress: counts training steps.
        teacher: its answers to the training inputs are learned too; needs `distillation`.
        distillation: how much; needs `teacher`.

    Raises:
        UsageError: a quantised network, an empty split, more processes than GPUs or samples of a batch, or a batch
            too small to normalise.
        ArmletError: training diverged, or a worker process failed.
    """
    if network.quantization is not None:
        raise UsageError("a quantised network can't be trained; train before quantize_static")
    if (teacher is None) != (distillation is None):
        raise UsageError("teacher and distillation options go together: one of them is missing")
    for name, samples in (("training", splits.train), ("validation", splits.validation)):
        if len(samples) == 0:
            raise UsageError(f"the {name} split is empty; training needs both (data.validation above 0 %)")
    n_processes = _n_processes(options)
    _check_batch(network, min(options.batch_size, len(splits.train)), n_processes)
    inputs = tuple(map(torch.from_numpy, splits.train.inputs))
    data = TrainingData(
        splits.train,
        splits.validation,
        # The inputs are the same in every epoch, so the teacher is asked once.
        None if teacher is None else predict(executable(teacher), inputs).clone(),
    )
    job = TrainingJob(network, data, TrainingPlan(options, seed, distillation), scorer)
    work.mkdir(parents=True, exist_ok=True)
    if n_processes == 1:
        return run_training(job, work, progress)
    return launch(job, n_processes, work, progress)


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


def _n_processes(options: TrainOptions) -> int:
    n_gpus = torch.cuda.device_count()
    if options.processes == "auto":
        return max(1, n_gpus)
    if 0 < n_gpus < options.processes:
        raise UsageError(f"train.processes is {options.processes}, but this machine has {n_gpus} GPUs")
    return options.processes
