"""Measured × budgets -> Verdict. "Not measured" is a result of its own, never a pass."""

from __future__ import annotations

from collections.abc import Iterator

from armlet.artifacts import (
    Check,
    Compiled,
    Evaluated,
    Latency,
    Match,
    Measured,
    Outcome,
    Score,
    StreamMeasured,
    Verdict,
)
from armlet.scores import METRICS, loss_of_score
from armlet.spec.budget import Budgets
from armlet.units import format_bytes, format_ms, format_percent

# Scores are ratios of counts: two that print alike may differ by rounding, and a budget met exactly is met.
_ROUNDING = 1e-9


def check_budgets(
    budgets: Budgets,
    trained: Score | None,
    evaluated: Evaluated | None,
    compiled: Compiled,
    measured: Measured,
    stream: StreamMeasured | None = None,
) -> Verdict:
    """Hold what was measured against the budgets.

    Args:
        budgets: what must hold; one that is not set gives a line without a verdict.
        trained: score of the trained network before compression, on the same split as `evaluated`; None where armlet
            did not train it.
        evaluated: score of the compiled program itself; None where there are no samples with labels.
        compiled: sizes of the program.
        measured: latency, and whether the target's outputs agree with the host's.
        stream: the same of the program for streams, where there is one.
    """
    score = measured.score if compiled.gpu else evaluated and evaluated.score
    checks = (
        *(
            _accuracy(budgets, trained, score, _scored(compiled, measured))
            if trained and score
            else _unscored(budgets)
        ),
        check_latency("latency", budgets.latency, measured.latency, _missing(measured)),
        _bytes("size", budgets.size, compiled.size_bytes),
        _bytes("memory", budgets.memory, compiled.arena_bytes),
        *_matches(compiled, measured),
        *_stream(budgets, stream, measured),
    )
    return Verdict(compiled.target, checks)


def worst_class_drop(before: Score, after: Score) -> float | None:
    """Return the most that any one class lost, as a fraction; None where classes were not scored."""
    if not before.per_class or len(before.per_class) != len(after.per_class):
        return None
    return max(b - a for b, a in zip(before.per_class, after.per_class, strict=True))


def _scored(compiled: Compiled, measured: Measured) -> str:
    """Return what was scored where that is not the program itself, nor one whose outputs are compared with its own."""
    # The machine that scores computes no float16, other than a GPU for itself.
    precision = ", as float32" if compiled.precision == "float16" and not compiled.gpu else ""
    return precision + _elsewhere(measured)


def _elsewhere(measured: Measured) -> str:
    """Say of a result that it is another program's where nothing ran this one."""
    return "" if measured.ran else ", by the program for this machine"


def _missing(measured: Measured) -> str:
    """Say that a measurement is missing, and why where that is known."""
    return "not measured" if measured.ran else f"not measured: {measured.device}"


def _matches(compiled: Compiled, measured: Measured) -> Iterator[Check]:
    """Compare the program with others of its network; one that had no GPU to run on is not known to be right."""
    if measured.match:
        yield _match("same outputs", "host", measured.match)
    elif compiled.gpu:
        yield Check("same outputs", "within rounding of host", "not measured", None, "not measured")
    elif not measured.ran:
        yield _unrun("same outputs")
    if measured.reference:
        yield _match("same answers", "ONNX Runtime", measured.reference, _elsewhere(measured))


def _unrun(what: str) -> Check:
    """Say of outputs that nobody asked to compare that they were not."""
    return Check(what, "", "not measured: no device", None, "no budget")


def _accuracy(budgets: Budgets, before: Score, after: Score, scored: str) -> Iterator[Check]:
    found = after.values()
    limits = {name: getattr(budgets, name, None) for name in METRICS}
    for name in [*found, *(n for n, limit in limits.items() if limit is not None and n not in found)]:
        yield _metric(name, limits[name], found.get(name), f"{after.n_samples} samples{scored}")
    if after.metric == "accuracy":
        drop, note = before.value - after.value, f"from {format_percent(before.value, 2)}"
        yield _at_most_share("accuracy drop", budgets.accuracy_drop, drop, note)
        yield _at_most_share(
            "worst class drop", budgets.worst_class_accuracy_drop, worst_class_drop(before, after), ""
        )
    else:
        yield from _unmeasured_drops(budgets)
    if budgets.score_drop is not None:
        yield _score_drop(budgets.score_drop, before, after)


def _unscored(budgets: Budgets) -> Iterator[Check]:
    """Say of every budget on a score that it was not measured; without one, of the accuracy."""
    limits = {name: getattr(budgets, name, None) for name in METRICS}
    found = [_metric(name, limit, None, "") for name, limit in limits.items() if limit is not None]
    yield from found or [Check("accuracy", "", "not measured", None, "no budget")]
    yield from _unmeasured_drops(budgets)
    if budgets.score_drop is not None:
        yield Check("score drop", f"≤ {budgets.score_drop:.10g}", "not measured", None, "not measured")


def _unmeasured_drops(budgets: Budgets) -> Iterator[Check]:
    drops = (
        ("accuracy drop", budgets.accuracy_drop),
        ("worst class drop", budgets.worst_class_accuracy_drop),
    )
    yield from (_absent(what, limit) for what, limit in drops if limit is not None)


def _metric(name: str, budget: float | None, value: float | None, of: str) -> Check:
    """Hold one metric against its budget, which is a least or a most, by the metric."""
    metric = METRICS[name]
    sign = "≥" if metric.higher_is_better else "≤"
    limit = "" if budget is None else f"{sign} {_limit_text(name, budget)}"
    if value is None:
        return Check(metric.label, limit, "not measured", None, "not measured")
    measured = f"{metric.text(value)} ({of})"
    if budget is None:
        return Check(metric.label, "", measured, None, "no budget")
    spare = value - budget if metric.higher_is_better else budget - value
    outcome: Outcome = "pass" if spare >= -_ROUNDING else "fail"
    return Check(metric.label, limit, measured, spare / budget if budget else None, outcome)


def _limit_text(name: str, budget: float) -> str:
    match METRICS[name].form:
        case "percent":
            return f"{_in_full(budget)} %"
        case "decibel":
            return f"{budget:.10g} dB"
        case "plain":
            return f"{budget:.10g}"


def _score_drop(budget: float, before: Score, after: Score) -> Check:
    worse, metric = loss_of_score(after.metric, before.value, after.value), METRICS[after.metric]
    measured = f"{metric.text(before.value)} to {metric.text(after.value)}"
    outcome: Outcome = "pass" if worse <= budget + _ROUNDING else "fail"
    margin = (budget - worse) / budget if budget else None
    return Check("score drop", f"≤ {budget:.10g}", measured, margin, outcome)


def _absent(what: str, budget: float) -> Check:
    return Check(what, f"≤ {_in_full(budget)} points", "not measured", None, "not measured")


def _at_most_share(what: str, budget: float | None, value: float | None, note: str) -> Check:
    limit = "" if budget is None else f"≤ {_in_full(budget)} points"
    if value is None:
        return Check(what, limit, "not measured", None, "no budget" if budget is None else "not measured")
    measured = f"{value * 100:.2f} points {note}".rstrip().replace("-", "−")
    if budget is None:
        return Check(what, "", measured, None, "no budget")
    margin = (budget - value) / budget if budget else None
    return Check(what, limit, measured, margin, "pass" if value <= budget + _ROUNDING else "fail")


def _in_full(fraction: float) -> str:
    """Return a budget times 100 with every digit that was written, and at least one decimal."""
    text = f"{fraction * 100:.10g}"
    return text if "." in text else f"{text}.0"


def _stream(budgets: Budgets, stream: StreamMeasured | None, measured: Measured) -> Iterator[Check]:
    if stream is None:
        if budgets.step_latency is not None:
            yield check_latency("step latency", budgets.step_latency, None)
        return
    yield check_latency("step latency", budgets.step_latency, stream.latency, _missing(measured))
    yield _match("stream: same answers", "whole sequences", stream.whole, _elsewhere(measured))
    if not measured.ran:
        yield _unrun("stream: same outputs")
        yield _unrun("stream: same states")
    if stream.answers is not None and stream.states is not None:
        yield _match("stream: same outputs", "host", stream.answers)
        yield _match("stream: same states", "host", stream.states)


def check_latency(
    what: str, budget: float | None, latency: Latency | None, missing: str = "not measured"
) -> Check:
    """Hold a latency against a budget in milliseconds; the upper end of its interval is what counts."""
    limit = "" if budget is None else f"≤ {format_ms(budget)}"
    if latency is None:
        return Check(what, limit, missing, None, "no budget" if budget is None else "not measured")
    low, high = format_ms(latency.low_ms).split(), format_ms(latency.high_ms).split()
    interval = f"{low[0]}–{' '.join(high)}" if low[1] == high[1] else f"{' '.join(low)}–{' '.join(high)}"
    measured = f"{interval} {latency.label}"
    if budget is None:
        return Check(what, "", measured, None, "no budget")
    if " ".join(high) == format_ms(budget) and latency.high_ms != budget:  # rounded they would look equal
        measured = f"{latency.low_ms:.9g}–{latency.high_ms:.9g} ms {latency.label}"
    # The bound that counts is the upper one: of the estimate's interval, or the 95th percentile measured.
    outcome: Outcome = "pass" if latency.high_ms <= budget else "fail"
    margin = (budget - latency.high_ms) / budget if budget else None
    return Check(what, limit, measured, margin, outcome)


def _bytes(what: str, budget: int | None, value: int) -> Check:
    measured = format_bytes(value)
    if budget is None:
        return Check(what, "", measured, None, "no budget")
    limit = format_bytes(budget)
    if limit == measured and value != budget:  # rounded they would look equal
        limit, measured = f"{budget} B", f"{value} B"
    margin = (budget - value) / budget if budget else None
    return Check(what, f"≤ {limit}", measured, margin, "pass" if value <= budget else "fail")


def _match(what: str, other: str, match: Match, by: str = "") -> Check:
    budget = f"identical to {other}" if match.tolerance == 0 else f"within {match.tolerance:.3g} of {other}"
    measured = f"{match.n_identical} of {match.n_samples} identical"
    if match.tolerance:
        measured += f", largest difference {match.max_abs_difference:.2g}"
    return Check(what, budget, measured + by, None, "pass" if match.holds else "fail")
