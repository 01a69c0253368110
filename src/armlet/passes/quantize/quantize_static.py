"""Static INT8 after training: batch normalisation folded, ranges from calibration samples, integer weights.

The network keeps its folded float weights; scales and zero points stand beside them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from armlet.analysis.graph import Traced, trace
from armlet.models.network import Network
from armlet.models.quantization import Quantization
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
from armlet.passes.quantize.calibrate import NumberFormat, calibrate, quantization_of, weights_alone
from armlet.passes.quantize.common import (
    calibration_samples,
    of_types,
    packing_note,
    scale_problems,
    unmatched_types,
)
from armlet.passes.quantize.data_free import Distribution, distributions
from armlet.passes.quantize.fold_batch_norm import fold_batch_norm
from armlet.passes.quantize.observers import ObserverOptions
from armlet.passes.quantize.placement import Placement, place
from armlet.passes.quantize.ranges import Range, sample_problems
from armlet.passes.quantize.refine import Refinement, refine, rescale
from armlet.passes.quantize.sensitivity import sensitivities
from armlet.scores import METRICS
from armlet.spec.passes import QuantizeStatic
from armlet.train import evaluate


@dataclass(frozen=True, slots=True)
class DataFree:
    """How ranges come from batch normalisations alone.

    Attributes:
        input_range: least and greatest value of the network's input.
        deviations: standard deviations to either end of a range.
    """

    input_range: Range
    deviations: float = 6.0


@dataclass(frozen=True, slots=True)
class StayFloat:
    """Which layers stay float.

    Attributes:
        names: patterns of modules.
        types: of modules.
        n_sensitive: so many of the most sensitive layers.
        max_drop: as many of them as it takes for the validation score to fall by no more; None for no such limit.
    """

    names: tuple[str, ...] = ()
    types: tuple[str, ...] = ()
    n_sensitive: int = 0
    max_drop: float | None = None


@dataclass(frozen=True, slots=True)
class StaticQuantization:
    """Quantisation after training, with ranges fixed in advance.

    Attributes:
        mode: "static" computes on integers, "weight_only" with integer weights in float.
        n_samples: calibration samples, taken from the training split.
        observer: how ranges of activations come from the samples.
        data_free: how they come without samples; None to calibrate on data.
        numbers: what the integers are like.
        refinement: what is done beside finding scales.
        stay_float: which layers are left out.
    """

    mode: Literal["static", "weight_only"] = "static"
    n_samples: int = 512
    observer: ObserverOptions = field(default_factory=ObserverOptions)
    data_free: DataFree | None = None
    numbers: NumberFormat = field(default_factory=NumberFormat)
    refinement: Refinement = field(default_factory=Refinement)
    stay_float: StayFloat = field(default_factory=StayFloat)

    @property
    def never_raises(self) -> tuple[CostName, ...]:
        """Folding removes parameters, integers are smaller than floats."""
        return ("macs", "parameters", "weight_bytes")

    def requires(self, network: Network, context: PassContext) -> tuple[str, ...]:
        """The network is float, samples fit it, and every pattern and type is one of its modules'."""
        problems = [
            *float_only(network, "quantize_static"),
            *unmatched(self.stay_float.names, network.module),
            *unmatched_types(self.stay_float.types, network.module),
        ]
        if self.data_free is None:
            samples = calibration_samples(context.splits.train, self.n_samples, context.seed)
            problems += sample_problems([x.numpy() for x in samples], network.architecture.inputs)
        if self.stay_float.max_drop is not None and len(context.splits.validation) == 0:
            problems.append("max_drop needs validation samples: set data.validation above 0 %")
        return tuple(problems)

    def run(self, network: Network, context: PassContext) -> PassResult:
        """Fold, rescale, place, calibrate, refine."""
        folded = fold_batch_norm(network.module, network.architecture.inputs)
        traced = trace(folded.module, network.architecture.inputs)
        samples: tuple[Tensor, ...] = ()
        if self.data_free is None:
            samples = calibration_samples(context.splits.train, self.n_samples, context.seed)
        moments, rescaled = rescale(traced, folded.moments, samples, self.refinement)
        known = None
        if self.data_free is not None:
            known = distributions(traced, moments, self.data_free.input_range, self.data_free.deviations)
        result, kept = self._choose(
            Network(folded.module, network.architecture), traced, samples, known, context
        )
        placement, quantization = result
        evidence = samples if known is None else {name: d.mean for name, d in known.items()}
        refined = refine(traced, placement, quantization, evidence, self.refinement, context.seed)
        quantized = Network(folded.module, network.architecture, quantization)
        notes = (
            f"{len(folded.layers)} batch normalisations folded; {self._what_computes(placement)}; "
            + (
                f"calibrated on {len(samples[0])} training samples"
                if samples
                else f"calibrated without data, on {len(moments)} batch normalisations"
            ),
            *rescaled,
            *refined,
            *packing_note(quantized),
            *kept,
            *folded.notes,
            *self._reasons(placement),
        )
        return PassResult(quantized, notes)

    def _reasons(self, placement: Placement) -> tuple[str, ...]:
        """Return why layers stay float; without integer arithmetic, only those that could have integer weights."""
        if self.mode == "static":
            return placement.notes
        return tuple(note for note in placement.notes if not note.endswith("has no integer form"))

    def _what_computes(self, placement: Placement) -> str:
        if self.mode == "weight_only":
            return f"{len(placement.layers)} layers have integer weights and compute in float"
        return f"{len(placement.layers)} layers compute on integers"

    def ensures(self, before: Network, after: Network) -> tuple[str, ...]:
        """Scales are positive numbers, zero points fit, and every integer weight has its layer's scales."""
        return scale_problems(after)

    def _choose(
        self,
        folded: Network,
        traced: Traced,
        samples: tuple[Tensor, ...],
        known: dict[str, Distribution] | None,
        context: PassContext,
    ) -> tuple[tuple[Placement, Quantization], tuple[str, ...]]:
        """Place and calibrate, with as many sensitive layers left float as is asked; return notes on those too."""
        stay = self.stay_float
        excluded = [*stay.names, *of_types(stay.types, folded.module)]

        def quantize(more: list[str]) -> tuple[Placement, Quantization]:
            placement = place(traced, [*excluded, *more])
            if not placement.shared or (self.mode == "weight_only" and not placement.layers):
                reasons = "; ".join(placement.notes) or "no layers"
                raise PreconditionFailed(f"quantize_static: nothing can be quantised; {reasons}")
            if self.mode == "weight_only":
                return placement, weights_alone(traced, placement, self.numbers)
            if known is not None:
                ranges = {name: d.range for name, d in known.items()}
                return placement, quantization_of(traced, placement, ranges, self.numbers)
            return placement, calibrate(traced, placement, samples, self.observer, self.numbers)

        result = quantize([])
        if not stay.n_sensitive and stay.max_drop is None:
            return result, ()
        ranking = sensitivities(traced, *result, samples)
        notes = [
            f"sensitivity of {s.layer}: alone it changes the answers by {s.error:.2%} of their variance"
            for s in ranking
        ]
        names = [s.layer for s in ranking]
        if stay.max_drop is None:
            return quantize(names[: stay.n_sensitive]), tuple(notes)
        before = evaluate(folded, context.splits.validation, context.scorer, "validation")
        metric = METRICS[before.metric]
        for n in range(len(names)):
            result = quantize(names[:n])
            tried = Network(folded.module, folded.architecture, result[1])
            after = evaluate(tried, context.splits.validation, context.scorer, "validation")
            change = after.value - before.value
            if (-change if metric.higher_is_better else change) <= stay.max_drop:
                text = f"with {n} layers float, {metric.label} on validation samples changes by"
                return result, (*notes, f"{text} {metric.change(before.value, after.value)}")
        raise PreconditionFailed(
            f"quantize_static: {metric.label} on validation samples falls by more than max_drop {stay.max_drop:g}"
            f" even with {len(names) - 1} of {len(names)} layers float"
        )


@PASSES.register("quantize_static")
def build(options: QuantizeStatic) -> Pass:
    """Build the pass from its section of a recipe."""
    symmetric = options.activations == "symmetric"
    return StaticQuantization(
        mode="weight_only" if options.mode == "weight_only" else "static",
        n_samples=options.calibration_samples,
        observer=ObserverOptions(options.observer, options.percentile, options.averaging, symmetric),
        data_free=None if options.input_range is None else DataFree(options.input_range, options.deviations),
        numbers=NumberFormat(
            symmetric, options.weights == "per_channel", options.weight_range, options.weight_bits
        ),
        refinement=Refinement(
            options.equalize,
            options.smooth,
            options.rounding,
            options.rounding_steps,
            options.bias_correction,
        ),
        stay_float=StayFloat(options.exclude, options.exclude_types, options.keep_float, options.max_drop),
    )
