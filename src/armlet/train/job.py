"""One training job: what goes in, what comes out, and both as files for worker processes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from armlet import artifact_json, digest
from armlet.artifacts import Epoch
from armlet.models.network import Network, load_network, save_network
from armlet.train.losses import DistillationOptions
from armlet.train.options import TrainOptions

JOB_FOLDER = "job"
RESULT_FOLDER = "result"
_PLAN_FILE = "plan.json"
_DATA_FILE = "data.safetensors"


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """How to train, besides the data.

    Attributes:
        distillation: None trains on the labels alone.
    """

    options: TrainOptions
    seed: int
    distillation: DistillationOptions | None = None


@dataclass(frozen=True, slots=True, eq=False)
class TrainingData:
    """Training and validation samples on the CPU.

    Attributes:
        inputs: float32 [n, *input_shape].
        labels: int64 [n].
        validation_inputs, validation_labels: the same, held out.
        teacher_logits: float32 [n, n_classes], the teacher's answers to `inputs`; None without a teacher.
    """

    inputs: Tensor
    labels: Tensor
    validation_inputs: Tensor
    validation_labels: Tensor
    teacher_logits: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        """Return what there is, by name."""
        named = {
            "inputs": self.inputs,
            "labels": self.labels,
            "validation_inputs": self.validation_inputs,
            "validation_labels": self.validation_labels,
        }
        return named if self.teacher_logits is None else named | {"teacher_logits": self.teacher_logits}


@dataclass(frozen=True, slots=True, eq=False)
class TrainingJob:
    """Everything that decides what weights come out."""

    network: Network
    data: TrainingData
    plan: TrainingPlan

    def fingerprint(self, n_processes: int, precision: str) -> str:
        """Return the SHA-256 that a checkpoint must carry to be resumed by this job."""
        tensors = self.data.tensors() | {
            f"initial.{k}": v for k, v in self.network.module.state_dict().items()
        }
        return digest.of_json(
            {
                "architecture": artifact_json.to_data(self.network.architecture),
                "plan": artifact_json.to_data(self.plan),
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
    save_file({name: value.contiguous() for name, value in job.data.tensors().items()}, folder / _DATA_FILE)
    (folder / _PLAN_FILE).write_text(artifact_json.to_json(job.plan), encoding="utf-8")


def load_job(folder: Path) -> TrainingJob:
    """Read what `save_job` wrote."""
    plan = artifact_json.from_json(TrainingPlan, (folder / _PLAN_FILE).read_bytes())
    return TrainingJob(load_network(folder), TrainingData(**load_file(folder / _DATA_FILE)), plan)


def save_result(network: Network, run: TrainingRun, folder: Path) -> None:
    """Write what came out."""
    save_network(network, folder)
    artifact_json.save(run, folder)


def load_result(folder: Path) -> tuple[Network, TrainingRun]:
    """Read what `save_result` wrote."""
    return load_network(folder), artifact_json.load(TrainingRun, folder)


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().numpy().tobytes()
