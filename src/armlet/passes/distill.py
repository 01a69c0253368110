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
        if (student.input_shape, student.n_outputs) != (teacher.input_shape, teacher.n_outputs):
            problems += (
                f"the teacher maps {teacher.input_shape} to {teacher.n_outputs} outputs, "
                f"the student {student.input_shape} to {student.n_outputs}",
            )
        return problems

    def run(self, network: Network, context: PassContext) -> PassResult:
        """Train the student."""
        student, training = train_network(
            network,
            context.splits,
            self.train,
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
        DistillationOptions(temperature=options.temperature, alpha=options.alpha),
        TrainOptions(**options.train.model_dump()),
    )
