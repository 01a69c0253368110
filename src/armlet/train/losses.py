"""What training makes small: the losses of each task, with and without a teacher."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from armlet.artifacts import TaskKind


@dataclass(frozen=True, slots=True)
class DistillationOptions:
    """How much a student listens to its teacher.

    Attributes:
        temperature: divides both networks' logits; higher makes the answers softer.
        alpha: weight of the teacher's answers, from 0 to 1; the labels get the rest.
    """

    temperature: float = 4.0
    alpha: float = 0.7


def classification_loss(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy of logits [N, n_classes] against labels [N], with label smoothing.

    Source: Szegedy et al. 2016, "Rethinking the Inception Architecture for Computer Vision", section 7.
    """
    return functional.cross_entropy(logits, labels, label_smoothing=label_smoothing)


def task_loss(task: TaskKind, outputs: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Return the mean loss of answers [N, *output_shape]: cross-entropy of classes, squared error of anything else."""
    if task == "classification":
        return classification_loss(outputs, targets, label_smoothing)
    return functional.mse_loss(outputs, targets)


def teacher_loss(task: TaskKind, outputs: Tensor, teacher_outputs: Tensor, temperature: float) -> Tensor:
    """Return the mean loss of a student's answers against its teacher's."""
    if task == "classification":
        return distillation_loss(outputs, teacher_outputs, temperature)
    return functional.mse_loss(outputs, teacher_outputs)


def distillation_loss(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Mean divergence of a student's softened answers from its teacher's; both logits are [N, n_classes].

    The factor T² keeps the gradient's size the same at every temperature.

    Source: Hinton, Vinyals and Dean 2015, "Distilling the Knowledge in a Neural Network", section 2.
    """
    student = functional.log_softmax(logits / temperature, dim=1)
    teacher = functional.log_softmax(teacher_logits / temperature, dim=1)
    return functional.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2
