"""One training job: what goes in, what comes out, and both as files for worker processes."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from armlet import artifact_json, digest
from armlet.artifacts import Epoch, Task
from armlet.data.splits import Samples
from armlet.metrics import Scorer
from armlet.models.network import Network, load_network, save_network
from armlet.train.distillation.options import DistillationOptions
from armlet.train.group_lasso import GroupLasso
from armlet.train.options import TrainOptions
from armlet.train.pruning import PruningSchedule

JOB_FOLDER = "job"
RESULT_FOLDER = "result"
_PLAN_FILE = "plan.json"
_DATA_FILE = "data.safetensors"
_TASK_FILE = "task.json"
_TEACHERS = "teachers"


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """How to train, besides the data.

    Attributes:
        distillation: None trains on the labels alone.
        mask: share of the input that is hidden and reconstructed, which asks no labels; None answers the task.
        pruning: which weights become zero meanwhile, None for none.
        lasso: which channels shrink to zero meanwhile, None for none.
    """

    options: TrainOptions
    seed: int
    distillation: DistillationOptions | None = None
    mask: float | None = None
    pruning: PruningSchedule | None = None
    lasso: GroupLasso | None = None


@dataclass(frozen=True, slots=True, eq=False)
class TrainingData:
    """Training and validation samples on the CPU.

    Attributes:
        labeled: bool [n], false for training samples whose target means nothing; None where all have one.
        teacher_outputs: float32 [n, teachers, *output_shape], what teachers answer to the training inputs; None without
            teachers, and where they are asked in each step.
    """

    train: Samples
    validation: Samples
    labeled: Tensor | None = None
    teacher_outputs: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        """Return what there is, by name."""
        named = {
            f"{split}.{name}": torch.from_numpy(array)
            for split, samples in (("train", self.train), ("validation", self.validation))
            for name, array in samples.named().items()
        }
        others = {"labeled": self.labeled, "teacher_outputs": self.teacher_outputs}
        return named | {name: tensor for name, tensor in others.items() if tensor is not None}

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor]) -> TrainingData:
        """Return what `tensors` gave."""
        train, validation = (
            Samples.of_named({n.removeprefix(s): t.numpy() for n, t in tensors.items() if n.startswith(s)})
            for s in ("train.", "validation.")
        )
        return cls(train, validation, tensors.get("labeled"), tensors.get("teacher_outputs"))


@dataclass(frozen=True, slots=True, eq=False)
class TrainingJob:
    """Everything that decides what weights come out.

    Attributes:
        teachers: that are asked in each step.
    """

    network: Network
    data: TrainingData
    plan: TrainingPlan
    scorer: Scorer
    teachers: tuple[Network, ...] = ()

    def fingerprint(self, n_processes: int, precision: str) -> str:
        """Return the SHA-256 that a checkpoint must carry to be resumed by this job."""
        tensors = self.data.tensors() | {
            f"initial.{k}": v for k, v in self.network.module.state_dict().items()
        }
        for number, teacher in enumerate(self.teachers):
            tensors |= {f"teacher{number}.{k}": v for k, v in teacher.module.state_dict().items()}
        if self.scorer.judge is not None:
            tensors |= {f"judge.{k}": v for k, v in self.scorer.judge.module.state_dict().items()}
        return digest.of_json(
            {
                "architecture": artifact_json.to_data(self.network.architecture),
                "constraints": [artifact_json.to_data(c) for c in self.network.constraints],
                "plan": artifact_json.to_data(self.plan),
                "task": artifact_json.to_data(self.scorer.task),
                "tensors": {name: digest.of_bytes(_bytes(value)) for name, value in sorted(tensors.items())},
                "n_processes": n_processes,
                "precision": precision,
                "torch": torch.__version__,
            }
        )


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """How a training went.

    Attributes:
        device: such as "cpu", "cuda" or "2 × cpu".
        precision: "fp32" or "bf16".
        seconds: wall time of all epochs, those before an interruption too.
        stopped_early: whether patience ran out before the last epoch.
    """

    history: tuple[Epoch, ...]
    device: str
    precision: str
    seconds: float
    stopped_early: bool


def save_job(job: TrainingJob, folder: Path) -> None:
    """Write the job as plain files."""
    save_network(job.network, folder)
    shutil.rmtree(folder / _TEACHERS, ignore_errors=True)
    for number, teacher in enumerate(job.teachers):
        save_network(teacher, folder / _TEACHERS / f"{number:03}")
    save_file({name: value.contiguous() for name, value in job.data.tensors().items()}, folder / _DATA_FILE)
    (folder / _PLAN_FILE).write_text(artifact_json.to_json(job.plan), encoding="utf-8")
    (folder / _TASK_FILE).write_text(artifact_json.to_json(job.scorer.task), encoding="utf-8")


def load_job(folder: Path) -> TrainingJob:
    """Read what `save_job` wrote."""
    plan = artifact_json.from_json(TrainingPlan, (folder / _PLAN_FILE).read_bytes())
    task = artifact_json.from_json(Task, (folder / _TASK_FILE).read_bytes())
    data = TrainingData.of_tensors(load_file(folder / _DATA_FILE))
    teachers = tuple(load_network(path) for path in sorted((folder / _TEACHERS).glob("*")))
    return TrainingJob(load_network(folder), data, plan, Scorer(task), teachers)


def save_result(network: Network, run: TrainingRun, folder: Path) -> None:
    """Write what came out."""
    save_network(network, folder)
    artifact_json.save(run, folder)


def load_result(folder: Path) -> tuple[Network, TrainingRun]:
    """Read what `save_result` wrote."""
    return load_network(folder), artifact_json.load(TrainingRun, folder)


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().numpy().tobytes()
