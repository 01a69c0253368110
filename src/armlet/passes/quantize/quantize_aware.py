"""Quantisation-aware training: the network learns with quantised values, and their scales are learned with it.

Batch normalisations are folded first and so stay as they are. Training begins at what static quantisation finds. The
result is the same kind of network as that of static quantisation: float weights, scales and zero points beside them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch

from armlet.analysis.graph import trace
from armlet.models.network import Network
from armlet.passes.base import (
    PASSES,
    CostName,
    Pass,
    PassContext,
    PassResult,
    PreconditionFailed,
    float_only,
    unmatched,
)
from armlet.passes.finetune import Finetuning, Taught, taught_of, teachers_of, teaching_problems
from armlet.passes.quantize.calibrate import NumberFormat, calibrate
from armlet.passes.quantize.common import (
    calibration_samples,
    of_types,
    packing_note,
    scale_problems,
    shared_values,
    unmatched_types,
)
from armlet.passes.quantize.fake_quantize import Trainable, fake_quantized, learned_quantization
from armlet.passes.quantize.fold_batch_norm import fold_batch_norm
from armlet.passes.quantize.observers import ObserverOptions
from armlet.passes.quantize.placement import place
from armlet.passes.quantize.ranges import sample_problems
from armlet.spec.passes import QuantizeAware
from armlet.train import TrainOptions, train_network


@dataclass(frozen=True, slots=True)
class AwareQuantization:
    """Training with quantised values.

    Attributes:
        train: how it is trained.
        n_samples: calibration samples, taken from the training split.
        observer: how the first ranges come from them.
        numbers: what the integers are like.
        freeze_after: epochs after which scales stay; None learns them to the end.
        taught: what it learns of teachers' answers; None for the labels alone.
        exclude: patterns of modules that stay float.
        exclude_types: types of modules that do.
    """

    train: TrainOptions
    n_samples: int = 512
    observer: ObserverOptions = field(default_factory=lambda: ObserverOptions("mse"))
    numbers: NumberFormat = field(default_factory=NumberFormat)
    freeze_after: int | None = None
    taught: Taught | None = None
    exclude: tuple[str, ...] = ()
    exclude_types: tuple[str, ...] = ()

    @property
    def never_raises(self) -> tuple[CostName, ...]:
        """Folding removes parameters, integers are smaller than floats."""
        return ("macs", "parameters", "weight_bytes")

    def requires(self, network: Network, context: PassContext) -> tuple[str, ...]:
        """The network is float and answers a question, samples fit it, and patterns and types are its modules'."""
        samples = calibration_samples(context.splits.train, self.n_samples, context.seed)
        problems = [
            *float_only(network, "quantize_aware"),
            *unmatched(self.exclude, network.module),
            *unmatched_types(self.exclude_types, network.module),
            *sample_problems([x.numpy() for x in samples], network.architecture.inputs),
        ]
        if shared_values(network):
            problems.append("quantize_aware does not keep shared values of weights: use quantize_static")
        return (*problems, *teaching_problems(Finetuning(self.train, self.taught), network, context))

    def run(self, network: Network, context: PassContext) -> PassResult:
        """Fold, place, calibrate, train."""
        inputs = network.architecture.inputs
        folded = fold_batch_norm(network.module, inputs)
        traced = trace(folded.module, inputs)
        placement = place(traced, [*self.exclude, *of_types(self.exclude_types, folded.module)])
        if not placement.n_layers:
            reasons = "; ".join(placement.notes) or "no layers"
            raise PreconditionFailed(f"quantize_aware: no layer can be quantised; {reasons}")
        samples = calibration_samples(context.splits.train, self.n_samples, context.seed)
        start = calibrate(traced, placement, samples, self.observer, self.numbers)
        trainable = fake_quantized(
            traced, placement, start, self._frozen_after(context), per_channel=self.numbers.per_channel
        )
        trained, run = train_network(
            replace(network, module=trainable.module.eval()),
            context.splits,
            replace(self.train, processes=1),
            context.scorer,
            seed=context.seed,
            work=context.work,
            progress=context.progress,
            teachers=() if self.taught is None else teachers_of(context, self.taught.n_teachers),
            distillation=None if self.taught is None else self.taught.distillation,
        )
        _take_over(trainable, trained, folded.module)
        state = dict(folded.module.named_parameters())
        quantization = learned_quantization(trainable, state, start, placement, self.numbers)
        quantized = replace(network, module=folded.module, quantization=quantization)
        notes = (
            f"{len(folded.layers)} batch normalisations folded, so that they stay as they are; {placement.n_layers}"
            f" layers compute on integers; scales began at those of {len(samples[0])} training samples",
            *self._training_notes(network),
            *packing_note(quantized),
            *folded.notes,
            *placement.notes,
        )
        return PassResult(quantized, notes, run.history)

    def ensures(self, before: Network, after: Network) -> tuple[str, ...]:
        """Scales are positive numbers."""
        return scale_problems(after)

    def _frozen_after(self, context: PassContext) -> int | None:
        """Return the steps of training after which scales stay, as the quantisers count them."""
        if self.freeze_after is None:
            return None
        n_samples, unlabeled = len(context.splits.train), context.splits.unlabeled
        if unlabeled and self.taught is not None and self.taught.distillation.unlabeled:
            n_samples += len(unlabeled[0])
        n_steps = self.freeze_after * (n_samples // min(self.train.batch_size, n_samples))
        if context.scorer.task.kind == "generation":
            n_steps //= self.train.critic_steps
        # Sharpness-aware minimisation computes each step twice.
        return n_steps * (2 if self.train.sharpness else 1)

    def _training_notes(self, network: Network) -> tuple[str, ...]:
        notes = []
        if any(isinstance(m, torch.nn.Dropout) and m.p for m in network.module.modules()):
            notes.append("dropout does nothing while quantised values are learned")
        if self.train.processes not in ("auto", 1):
            notes.append("trained in one process: the graph with quantised values is not given to others")
        return tuple(notes)


def _take_over(trainable: Trainable, trained: Network, module: torch.nn.Module) -> None:
    """Give the float module, and the graph's quantisers, what was learned."""
    learned = trained.module.state_dict()
    trainable.module.load_state_dict(learned)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name in learned:
                parameter.copy_(learned[name])


@PASSES.register("quantize_aware")
def build(options: QuantizeAware) -> Pass:
    """Build the pass from its section of a recipe."""
    symmetric = options.activations == "symmetric"
    return AwareQuantization(
        train=TrainOptions(**options.train.model_dump()),
        n_samples=options.calibration_samples,
        observer=ObserverOptions(options.observer, symmetric=symmetric),
        numbers=NumberFormat(
            symmetric, options.weights == "per_channel", weight_range="mse", weight_bits=options.weight_bits
        ),
        freeze_after=options.freeze_after,
        taught=taught_of(options) if options.alpha else None,
        exclude=options.exclude,
        exclude_types=options.exclude_types,
    )
