"""Trains the network on the softened answers of its teacher, the trained network before any pass.

Source: Hinton, Vinyals and Dean 2015, "Distilling the Knowledge in a Neural Network".
"""

from __future__ import annotations

from dataclasses import dataclass

from armlet.models.network import Network
from armlet.passes.base import PASSES, CostName, Pass, PassContext, PassResult, float_only
from armlet.spec.passes import Distill
from armlet.train import DistillationOptions, TrainOptions, train_network


@dataclass(frozen=True, slots=True)
class Distillation:
    """Distillation from the teacher of the run.

    Attributes:
        distillation: temperature, and weight of the teacher's answers.
        train: how the student is trained.
    """

    distillation: DistillationOptions
    train: TrainOptions

    @property
    def never_raises(self) -> tuple[CostName, ...]:
        """Training changes values only."""
        return ("macs", "parameters", "weight_bytes")

    def requires(self, network: Network, context: PassContext) -> tuple[str, ...]:
        """The student is float and answers the same question as the teacher."""
        student, teacher = network.architecture, context.teacher.architecture
        problems = float_only(network, "distill")
        if self.distillation.unlabeled and not context.splits.unlabeled:
            problems += ("there are no samples without labels: set data.fraction or data.per_class",)
        if (student.inputs, student.output_shape) != (teacher.inputs, teacher.output_shape):
            problems += (
                f"the teacher maps {teacher.inputs} to {teacher.output_shape}, "
                f"the student {student.inputs} to {student.output_shape}",
            )
        return problems

    def run(self, network: Network, context: PassContext) -> PassResult:
        """Train the student."""
        student, training = train_network(
            network,
            context.splits,
            self.train,
            context.scorer,
            seed=context.seed,
            work=context.work,
            progress=context.progress,
            teacher=context.teacher,
            distillation=self.distillation,
        )
        return PassResult(student, history=training.history)

    def ensures(self, before: Network, after: Network) -> tuple[str, ...]:
        """The network's structure is the same."""
        return () if str(after.module) == str(before.module) else ("the structure changed",)


@PASSES.register("distill")
def build(options: Distill) -> Pass:
    """Build the pass from its section of a recipe."""
    return Distillation(
        DistillationOptions(options.temperature, options.alpha, options.unlabeled),
        TrainOptions(**options.train.model_dump()),
    )
