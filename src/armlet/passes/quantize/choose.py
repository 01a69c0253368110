"""Which layers are quantised, and to how many bits: what is asked for by name, by sensitivity or by budgets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from torch import Tensor

from armlet.analysis.graph import Traced
from armlet.models.network import Network
from armlet.models.quantization import Quantization
from armlet.passes.base import PassContext, PreconditionFailed, estimated_ms
from armlet.passes.quantize.bits import choose_four_bits
from armlet.passes.quantize.calibrate import NumberFormat, calibrate, quantization_of, weights_alone
from armlet.passes.quantize.common import four_bit_bytes, of_types
from armlet.passes.quantize.data_free import Distribution
from armlet.passes.quantize.dynamic import with_dynamic_inputs
from armlet.passes.quantize.latency import FloatChoice, LatencyUnreachable, choose_float
from armlet.passes.quantize.observers import ObserverOptions
from armlet.passes.quantize.placement import Placement, place
from armlet.passes.quantize.sensitivity import Sensitivity, sensitivities
from armlet.scores import METRICS
from armlet.train import evaluate
from armlet.units import format_ms


@dataclass(frozen=True, slots=True)
class LatencyBudget:
    """How long one inference may take.

    Attributes:
        most_ms: on the target, the upper bound of the estimate.
        target: its name, or that of a YAML file.
    """

    most_ms: float
    target: str


@dataclass(frozen=True, slots=True)
class StayFloat:
    """Which layers stay float.

    Attributes:
        names: patterns of modules.
        types: of modules.
        n_sensitive: so many of the most sensitive layers.
        max_drop: as many of them as it takes for the validation score to fall by no more; None for no such limit.
        latency: those whose loss is greatest, as far as it allows; None for no such budget.
    """

    names: tuple[str, ...] = ()
    types: tuple[str, ...] = ()
    n_sensitive: int = 0
    max_drop: float | None = None
    latency: LatencyBudget | None = None


@dataclass(frozen=True, slots=True)
class Scheme:
    """How scales are found, and of what.

    Attributes:
        mode: "static" computes on integers, "weight_only" with integer weights in float, "dynamic" so but for linear
            layers, which quantise their input while the program runs.
        observer: how ranges of activations come from samples.
        numbers: what the integers are like.
        weight_budget: most bytes of all parameters, weights of 4 bits packed; None for no limit.
    """

    mode: Literal["static", "weight_only", "dynamic"] = "static"
    observer: ObserverOptions = field(default_factory=ObserverOptions)
    numbers: NumberFormat = field(default_factory=NumberFormat)
    weight_budget: int | None = None


@dataclass(frozen=True, slots=True)
class Evidence:
    """A folded float network, and what is known of its values.

    Attributes:
        samples: calibration samples, [N, *shape] for each input; none where there is no data.
        known: distribution of each value by its node where there is no data, else None.
    """

    network: Network
    traced: Traced
    samples: tuple[Tensor, ...]
    known: Mapping[str, Distribution] | None


def choose(
    evidence: Evidence, scheme: Scheme, stay: StayFloat, context: PassContext
) -> tuple[Placement, Quantization, tuple[str, ...]]:
    """Place and calibrate, with as many sensitive layers left float as is asked.

    Returns:
        what is quantised, how, and notes on the choice.

    Raises:
        PreconditionFailed: nothing can be quantised, or a limit can't be met.
    """
    excluded = [*stay.names, *of_types(stay.types, evidence.network.module)]
    placement, quantization, notes = _quantize(evidence, scheme, excluded)
    if not stay.n_sensitive and stay.max_drop is None and stay.latency is None:
        return placement, quantization, notes
    ranking = sensitivities(evidence.traced, placement, quantization, evidence.samples)
    if stay.latency is not None:
        return _within_latency(evidence, scheme, excluded, ranking, stay.latency, context)
    measured = tuple(_sensitivity(s.layer, s.error) for s in ranking)
    names = [s.layer for s in ranking]
    if stay.max_drop is None:
        placement, quantization, notes = _quantize(evidence, scheme, [*excluded, *names[: stay.n_sensitive]])
        return placement, quantization, (*notes, *measured)
    validation = context.splits.validation
    before = evaluate(evidence.network, validation, context.scorer, "validation")
    metric = METRICS[before.metric]
    for n in range(len(names)):
        placement, quantization, notes = _quantize(evidence, scheme, [*excluded, *names[:n]])
        tried = replace(evidence.network, quantization=quantization)
        after = evaluate(tried, validation, context.scorer, "validation")
        change = after.value - before.value
        if (-change if metric.higher_is_better else change) <= stay.max_drop:
            said = metric.change(before.value, after.value)
            text = f"with {n} layers float, {metric.label} on validation samples changes by {said}"
            return placement, quantization, (*notes, *measured, text)
    raise PreconditionFailed(
        f"quantize_static: {metric.label} on validation samples falls by more than max_drop {stay.max_drop:g}"
        f" even with {len(names) - 1} of {len(names)} layers float"
    )


def _within_latency(
    evidence: Evidence,
    scheme: Scheme,
    excluded: Sequence[str],
    ranking: Sequence[Sensitivity],
    budget: LatencyBudget,
    context: PassContext,
) -> tuple[Placement, Quantization, tuple[str, ...]]:
    """Place and calibrate, with those layers left float that lose most, as far as the latency allows."""
    errors: dict[str, float] = {}
    for one in ranking:
        if one.layer:  # weights that no module but the network itself holds can't be left out
            errors[one.layer] = errors.get(one.layer, 0.0) + one.error

    def estimate(quantization: Quantization | None) -> float:
        network = replace(evidence.network, quantization=quantization)
        return estimated_ms(network, budget.target, context, "quantize_static")

    def cost_of(layers: frozenset[str]) -> float:
        return estimate(_quantize(evidence, scheme, [*excluded, *sorted(layers)])[1])

    name, most = f"latency on {budget.target}", format_ms(budget.most_ms)
    context.progress.start("latency of the float network")
    if (in_float := estimate(None)) <= budget.most_ms:
        raise PreconditionFailed(
            f"quantize_static: {name} {most} holds without quantisation: the float network takes"
            f" {format_ms(in_float)}; allow less, or leave latency out for INT8 in every layer"
        )
    try:
        found = choose_float(errors, budget.most_ms, cost_of, context.progress)
    except LatencyUnreachable as error:
        raise PreconditionFailed(
            f"quantize_static: {name} {most} can't be reached: {format_ms(error.best_ms)} with {error.n_float} of"
            f" {len(errors)} layers in float is the least that was found, of {format_ms(in_float)} in float"
        ) from error
    placement, quantization, notes = _quantize(evidence, scheme, [*excluded, *sorted(found.layers)])
    kept = [layer for layer in errors if layer in found.layers]
    share = sum(errors[layer] for layer in kept) / (sum(errors.values()) or 1.0)
    said = (
        *(_price(layer, error, found) for layer, error in errors.items()),
        f"{name} (upper bound of the estimate): {format_ms(in_float)} in float, {format_ms(found.integers_ms)} with"
        f" every layer in INT8, {format_ms(found.ms)} with this choice, which {most} allows;"
        f" {found.n_programs + 1} programs were compiled",
        f"{len(kept)} of {len(errors)} layers stay float for the latency, with {share:.1%} of the changes that layers"
        f" make alone: {', '.join(kept) or 'none'}",
    )
    return placement, quantization, (*notes, *said)


def _sensitivity(layer: str, error: float) -> str:
    return f"sensitivity of {layer}: alone it changes the answers by {100 * error:.2g}% of their variance"


def _price(layer: str, error: float, found: FloatChoice) -> str:
    said = _sensitivity(layer, error)
    if layer not in found.alone_ms:
        return said
    more = found.alone_ms[layer] - found.integers_ms
    return f"{said}, and in float it takes {format_ms(abs(more))} {'more' if more >= 0 else 'less'}"


def _quantize(
    evidence: Evidence, scheme: Scheme, exclude: Sequence[str]
) -> tuple[Placement, Quantization, tuple[str, ...]]:
    """Place and calibrate, with these modules left float."""
    placement = place(evidence.traced, exclude)
    if not placement.shared or (scheme.mode != "static" and not placement.n_layers):
        reasons = "; ".join(placement.notes) or "no layers"
        raise PreconditionFailed(f"quantize_static: nothing can be quantised; {reasons}")
    quantization = _scaled(evidence, scheme, placement)
    if scheme.weight_budget is None:
        return placement, quantization, ()
    bytes_of_all = four_bit_bytes(replace(evidence.network, quantization=quantization))
    found = choose_four_bits(
        evidence.traced, placement, scheme.numbers, evidence.samples, bytes_of_all - scheme.weight_budget
    )
    numbers = replace(scheme.numbers, four_bits=frozenset(found))
    names = ", ".join(name.removesuffix(".weight") for name in found) or "none"
    n_weights = len(placement.layers) + 2 * len(placement.recurrent)
    note = f"{len(found)} of {n_weights} weights have 4 bits for the budget: {names}"
    return placement, _scaled(evidence, replace(scheme, numbers=numbers), placement), (note,)


def _scaled(evidence: Evidence, scheme: Scheme, placement: Placement) -> Quantization:
    if scheme.mode != "static":
        found = weights_alone(evidence.traced, placement, scheme.numbers)
        return found if scheme.mode == "weight_only" else with_dynamic_inputs(evidence.traced, found)
    if evidence.known is not None:
        ranges = {name: d.range for name, d in evidence.known.items()}
        return quantization_of(evidence.traced, placement, ranges, scheme.numbers)
    return calibrate(evidence.traced, placement, evidence.samples, scheme.observer, scheme.numbers)
