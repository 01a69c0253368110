"""What a student learns from its teachers, as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from armlet.artifacts import TaskKind
from armlet.train.options import TrainOptions

TermKind = Literal[
    "logits", "decoupled", "outputs", "features", "attention", "relations", "hidden_states", "own_depth",
]  # fmt: skip

ANSWERS: tuple[TermKind, ...] = ("logits", "decoupled", "outputs")
"""Terms that compare answers; the others look at layers."""


@dataclass(frozen=True, slots=True)
class Term:
    """One thing that a student learns from its teachers.

    Attributes:
        kind: see `armlet.train.distillation.losses`.
        weight: of its loss.
        layers: names of modules whose values are compared, the same in student and teachers; none chooses them.
        target, others: of "decoupled": weights of what is said of the right class, and of the wrong ones.
        distance, angle: of "relations": weights of distances and of angles.
    """

    kind: TermKind
    weight: float = 1.0
    layers: tuple[str, ...] = ()
    target: float = 1.0
    others: float = 8.0
    distance: float = 1.0
    angle: float = 2.0


@dataclass(frozen=True, slots=True)
class DistillationOptions:
    """How much a student listens to its teachers.

    Attributes:
        temperature: divides both networks' logits; higher makes the answers softer.
        alpha: weight of the terms, from 0 to 1; the task's own loss gets the rest.
        unlabeled: whether samples without labels are learned from too, by the teachers alone.
        terms: what is learned; none is the answers: the logits of classes, the outputs of anything else.
    """

    temperature: float = 4.0
    alpha: float = 0.7
    unlabeled: bool = False
    terms: tuple[Term, ...] = ()

    def terms_for(self, task: TaskKind) -> tuple[Term, ...]:
        """Return the terms, or the usual one of a task."""
        return self.terms or (Term("logits" if task == "classification" else "outputs"),)


def asks_in_each_step(distillation: DistillationOptions, options: TrainOptions, task: TaskKind) -> bool:
    """Whether teachers must be there in training: else their answers to the samples, asked once, are enough.

    Inputs that are changed at random, or are random numbers, are the teachers' too.
    """
    changes = bool(options.augment or options.mixup or options.cutmix) or task == "generation"
    terms = distillation.terms_for(task)
    return changes or any(t.kind not in ANSWERS and t.kind != "own_depth" for t in terms)
