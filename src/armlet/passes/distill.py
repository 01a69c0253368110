"""Trains the network on what its teachers say: the trained network before any pass, and others like it.

Sources: Hinton, Vinyals and Dean 2015, "Distilling the Knowledge in a Neural Network"; Furlanello et al. 2018,
"Born-Again Neural Networks" (a fresh start); of each term, see `armlet.train.distillation.losses`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from armlet.models.network import Network
from armlet.models.network import build as build_network
from armlet.passes.base import PASSES, CostName, Pass, PassContext, PassResult, float_only
from armlet.passes.finetune import Finetuning, finetune, taught_of, teaching_problems, train_options_of
from armlet.spec.passes import Distill

_FRESH = 1_000_003
"""Added to the seed of a student that starts afresh, so that it is not drawn as its teacher was."""


@dataclass(frozen=True, slots=True)
class Distillation:
    """Distillation from the teachers of the run.

    Attributes:
        training: how the student is trained, and what it is taught.
        teacher: the trained network, or the one that comes in.
        start: the network that comes in, or one with new weights.
    """

    training: Finetuning
    teacher: Literal["trained", "current"]
    start: Literal["current", "fresh"]

    @property
    def never_raises(self) -> tuple[CostName, ...]:
        """Training changes values only."""
        return ("macs", "parameters", "weight_bytes")

    def requires(self, network: Network, context: PassContext) -> tuple[str, ...]:
        """The student is float, answers the same question as the teachers, and every term fits."""
        if problems := float_only(network, "distill"):
            return problems
        if self.start == "fresh" and str(network.module) != str(
            build_network(network.architecture, 0).module
        ):
            return ("start is fresh, and an earlier pass changed the structure that new weights would have",)
        return teaching_problems(self.training, network, self._beside(network, context))

    def run(self, network: Network, context: PassContext) -> PassResult:
        """Train the student."""
        context = self._beside(network, context)
        if self.start == "fresh":
            network = build_network(network.architecture, context.seed + _FRESH)
        student, history = finetune(network, self.training, context)
        return PassResult(student, history=history)

    def ensures(self, before: Network, after: Network) -> tuple[str, ...]:
        """The network's structure is the same."""
        return () if str(after.module) == str(before.module) else ("the structure changed",)

    def _beside(self, network: Network, context: PassContext) -> PassContext:
        """Return the context with the teacher that is asked for."""
        return context if self.teacher == "trained" else replace(context, teacher=network)


@PASSES.register("distill")
def build(options: Distill) -> Pass:
    """Build the pass from its section of a recipe."""
    training = Finetuning(train_options_of(options.train), taught_of(options))
    return Distillation(training, options.teacher, options.start)
