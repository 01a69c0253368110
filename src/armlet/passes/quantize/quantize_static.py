"""Static INT8 after training: batch normalisation folded, ranges from calibration samples, integer weights.

The network keeps its folded float weights; scales and zero points stand beside them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from torch import Tensor

from armlet.analysis.graph import trace
from armlet.models.network import Network
from armlet.models.quantization import Quantization
from armlet.passes.base import (
    PASSES,
    CostName,
    Pass,
    PassContext,
    PassResult,
    float_only,
    unmatched,
)
from armlet.passes.quantize.calibrate import NumberFormat
from armlet.passes.quantize.choose import Evidence, LatencyBudget, Scheme, StayFloat, choose
from armlet.passes.quantize.common import (
    calibration_samples,
    group_note,
    packing_note,
    scale_problems,
    shared_values,
    unmatched_types,
)
from armlet.passes.quantize.data_free import distributions
from armlet.passes.quantize.dynamic import what_computes
from armlet.passes.quantize.fold_batch_norm import fold_batch_norm
from armlet.passes.quantize.observers import ObserverOptions
from armlet.passes.quantize.placement import Placement
from armlet.passes.quantize.ranges import Range, sample_problems
from armlet.passes.quantize.refine import Refinement, refine, rescale
from armlet.spec.passes import QuantizeStatic


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
class StaticQuantization:
    """Quantisation after training, with ranges fixed in advance.

    Attributes:
        n_samples: calibration samples, taken from the training split.
        data_free: how ranges come without samples; None to calibrate on data.
        scheme: how scales are found, and of what.
        refinement: what is done beside finding scales.
        stay_float: which layers are left out.
    """

    n_samples: int = 512
    data_free: DataFree | None = None
    scheme: Scheme = field(default_factory=Scheme)
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
        if self._needs_samples:
            samples = calibration_samples(context.splits.train, self.n_samples, context.seed)
            problems += sample_problems([x.numpy() for x in samples], network.architecture.inputs)
        if self.stay_float.max_drop is not None and len(context.splits.validation) == 0:
            problems.append("max_drop needs validation samples: set data.validation above 0 %")
        return (*problems, *self._broken_constraints(network))

    def _broken_constraints(self, network: Network) -> Iterator[str]:
        """Give a problem for each option that would undo what an earlier pass made of the weights."""
        refinement = self.refinement
        if network.constraints and refinement.rounding != "nearest":
            yield f"rounding: {refinement.rounding} would make zeros or shared values of weights others: use nearest"
        if shared_values(network) and (refinement.equalize or refinement.smooth is not None):
            yield "equalize and smooth would make shared values of weights different: leave them out"

    def run(self, network: Network, context: PassContext) -> PassResult:
        """Fold, rescale, place, calibrate, refine."""
        folded = fold_batch_norm(network.module, network.architecture.inputs)
        traced = trace(folded.module, network.architecture.inputs)
        samples: tuple[Tensor, ...] = ()
        if self._needs_samples:
            samples = calibration_samples(context.splits.train, self.n_samples, context.seed)
        moments, rescaled = rescale(traced, folded.moments, samples, self.refinement)
        known = None
        if self.data_free is not None:
            known = distributions(traced, moments, self.data_free.input_range, self.data_free.deviations)
        evidence = Evidence(replace(network, module=folded.module), traced, samples, known)
        scheme = replace(self.scheme, numbers=replace(self.scheme.numbers, one_scale=shared_values(network)))
        placement, quantization, kept = choose(evidence, scheme, self.stay_float, context)
        means = samples if known is None else {name: d.mean for name, d in known.items()}
        refined = refine(traced, placement, quantization, means, self.refinement, context.seed)
        quantized = replace(network, module=folded.module, quantization=quantization)
        notes = (
            f"{len(folded.layers)} batch normalisations folded; {self._what_computes(placement, quantization)}; "
            + self._calibration(samples, len(moments)),
            *rescaled,
            *refined,
            *group_note(quantized, placement, self.scheme.numbers.group),
            *packing_note(quantized),
            *kept,
            *folded.notes,
            *self._reasons(placement),
        )
        return PassResult(quantized, notes)

    def _reasons(self, placement: Placement) -> tuple[str, ...]:
        """Return why layers stay float; without integer arithmetic, only those that could have integer weights."""
        if self.scheme.mode == "static":
            return placement.notes
        named = "its weight is", "a projection", "excluded"
        return tuple(note for note in placement.notes if any(reason in note for reason in named))

    @property
    def _needs_samples(self) -> bool:
        return self.data_free is None and self.scheme.mode != "dynamic"

    def _calibration(self, samples: tuple[Tensor, ...], n_moments: int) -> str:
        if samples:
            return f"calibrated on {len(samples[0])} training samples"
        if self.scheme.mode == "dynamic":
            return "no samples needed"
        return f"calibrated without data, on {n_moments} batch normalisations"

    def _what_computes(self, placement: Placement, quantization: Quantization) -> str:
        if self.scheme.mode == "dynamic":
            return what_computes(quantization)
        if self.scheme.mode == "weight_only":
            return f"{placement.n_layers} layers have integer weights and compute in float"
        return f"{placement.n_layers} layers compute on integers"

    def ensures(self, before: Network, after: Network) -> tuple[str, ...]:
        """Scales are positive numbers, zero points fit, and every integer weight has its layer's scales."""
        return scale_problems(after)


@PASSES.register("quantize_static")
def build(options: QuantizeStatic) -> Pass:
    """Build the pass from its section of a recipe."""
    symmetric = options.activations == "symmetric"
    latency = None
    if options.latency is not None and options.target is not None:
        latency = LatencyBudget(options.latency, options.target)
    return StaticQuantization(
        n_samples=options.calibration_samples,
        data_free=None if options.input_range is None else DataFree(options.input_range, options.deviations),
        scheme=Scheme(
            mode=options.mode,
            observer=ObserverOptions(options.observer, options.percentile, options.averaging, symmetric),
            numbers=NumberFormat(
                symmetric,
                options.weights != "per_tensor",
                options.weight_range,
                options.weight_bits,
                group=options.group_size if options.weights == "per_group" else 0,
            ),
            weight_budget=options.weight_budget,
        ),
        refinement=Refinement(
            options.equalize,
            options.smooth,
            options.rounding,
            options.rounding_steps,
            options.bias_correction,
        ),
        stay_float=StayFloat(
            options.exclude, options.exclude_types, options.keep_float, options.max_drop, latency
        ),
    )
