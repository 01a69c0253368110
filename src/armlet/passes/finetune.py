"""Training inside a pass: on the task alone, or with teachers."""

from __future__ import annotations

from dataclasses import dataclass

from armlet.artifacts import Epoch
from armlet.models.network import Network
from armlet.passes.base import PassContext
from armlet.spec.passes.distill import Finetune, Teaching
from armlet.spec.train import TrainSpec
from armlet.train import DistillationOptions, GroupLasso, PruningSchedule, Term, TrainOptions, train_network
from armlet.train.train import teaching_problems as student_problems


@dataclass(frozen=True, slots=True)
class Taught:
    """What is learned from teachers.

    Attributes:
        n_teachers: the trained network, and those of the context beside it.
    """

    distillation: DistillationOptions
    n_teachers: int


@dataclass(frozen=True, slots=True)
class Finetuning:
    """How a network is trained after a pass; without `taught` on the task alone."""

    train: TrainOptions
    taught: Taught | None = None


def finetune(
    network: Network,
    options: Finetuning | None,
    context: PassContext,
    pruning: PruningSchedule | None = None,
    lasso: GroupLasso | None = None,
) -> tuple[Network, tuple[Epoch, ...]]:
    """Return the trained network and its history; without options the network as it is.

    Args:
        network: is not changed.
        options: how.
        context: of the pass.
        pruning: which weights become zero meanwhile.
        lasso: which channels shrink to zero meanwhile.
    """
    if options is None:
        return network, ()
    taught = options.taught
    trained, run = train_network(
        network,
        context.splits,
        options.train,
        context.scorer,
        seed=context.seed,
        work=context.work,
        progress=context.progress,
        teachers=() if taught is None else teachers_of(context, taught.n_teachers),
        distillation=None if taught is None else taught.distillation,
        pruning=pruning,
        lasso=lasso,
    )
    return trained, run.history


def teaching_problems(options: Finetuning | None, network: Network, context: PassContext) -> tuple[str, ...]:
    """Return every reason why the network can't learn so from the context's teachers; empty when it can."""
    if options is None or options.taught is None:
        return ()
    taught = options.taught
    if taught.n_teachers > 1 + len(context.other_teachers):
        return (f"teachers is {taught.n_teachers}, and there are {1 + len(context.other_teachers)}",)
    if taught.distillation.unlabeled and not context.splits.unlabeled:
        return ("there are no samples without labels: set data.fraction or data.per_class",)
    teachers = teachers_of(context, taught.n_teachers)
    task = context.splits.task.kind
    return student_problems(network, teachers, taught.distillation, options.train, task)


def teachers_of(context: PassContext, n: int) -> tuple[Network, ...]:
    """Return the trained network and others like it."""
    return (context.teacher, *context.other_teachers)[:n]


def finetuning_of(spec: Finetune | None) -> Finetuning | None:
    """Return the options that a recipe's `finetune` section stands for."""
    if spec is None:
        return None
    return Finetuning(train_options_of(spec), None if spec.distill is None else taught_of(spec.distill))


def train_options_of(spec: TrainSpec) -> TrainOptions:
    """Return the options of training alone."""
    return TrainOptions(**spec.model_dump(include=set(TrainSpec.model_fields)))


def taught_of(spec: Teaching) -> Taught:
    """Return what a recipe says of teachers."""
    terms = tuple(Term(**term.model_dump()) for term in spec.terms)
    return Taught(DistillationOptions(spec.temperature, spec.alpha, spec.unlabeled, terms), spec.teachers)
