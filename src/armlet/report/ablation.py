"""What each pass contributes, as tables for the terminal and as a plot."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from armlet.artifacts import Ablation, Variant
from armlet.report.plots import standalone, tradeoff
from armlet.report.words import axis_of, cost_change
from armlet.scores import METRICS
from armlet.units import format_bytes, format_count, format_ms


def variants_table(ablation: Ablation) -> Table:
    """Return a line for each variant: what it scores and costs, and the change from the one without passes."""
    first = ablation.variants[0]
    metric, latency = METRICS[first.score.metric], first.latency
    table = _table("passes")
    how = f"latency, {latency.label}" if latency else "latency"
    for column in (metric.label, "change", "MACs", "size", "memory", how):
        table.add_column(column, justify="right")
    for variant in ablation.variants:
        table.add_row(
            Text(ablation.name_of(variant)),
            metric.text(variant.score.value),
            "" if variant is first else metric.change(first.score.value, variant.score.value),
            _with_change(format_count(variant.cost.macs), first.cost.macs, variant.cost.macs),
            _with_change(format_bytes(variant.size_bytes), first.size_bytes, variant.size_bytes),
            _with_change(format_bytes(variant.memory_bytes), first.memory_bytes, variant.memory_bytes),
            _latency(first, variant),
        )
    return table


def contributions_table(ablation: Ablation) -> Table:
    """Return two lines for each pass: what it changes alone, and what it changes where all the others run, too."""
    table = _table("pass")
    table.add_column("")
    for column in (METRICS[ablation.variants[0].score.metric].label, "MACs", "size", "latency"):
        table.add_column(column, justify="right")
    everything = tuple(range(len(ablation.kinds)))
    for position in everything:
        without = tuple(p for p in everything if p != position)
        alone = _contribution(ablation.variant(()), ablation.variant((position,)))
        beside = _contribution(ablation.variant(without), ablation.variant(everything))
        table.add_row(Text(ablation.pass_name(position)), "alone", *alone)
        table.add_row("", "beside the others", *beside)
    return table


def ablation_plot(ablation: Ablation) -> str:
    """Return an SVG file of each variant's score over its latency, or over its size where that is not known."""
    metric = METRICS[ablation.variants[0].score.metric]
    factor, unit = axis_of(metric)
    latencies = [variant.latency for variant in ablation.variants]
    known = [latency.typical_ms for latency in latencies if latency]
    timed = len(known) == len(latencies)
    costs = known if timed else [variant.size_bytes / 1024 for variant in ablation.variants]
    cost = f"latency (ms, {latencies[0].label})" if timed and latencies[0] else "size (KiB)"
    points = [
        (ablation.name_of(variant), x, factor * variant.score.value)
        for variant, x in zip(ablation.variants, costs, strict=True)
    ]
    title = f"Passes of {ablation.recipe} on {ablation.target}"
    return standalone(tradeoff(title, (cost, f"{metric.label} of the compiled program{unit}"), points))


def _table(first: str) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column(first, no_wrap=True)
    return table


def _with_change(text: str, before: float, after: float) -> str:
    return f"{text} {cost_change(before, after)}".rstrip()


def _latency(first: Variant, variant: Variant) -> str:
    if variant.latency is None:
        return "not measured"
    text = format_ms(variant.latency.typical_ms)
    return (
        text
        if first.latency is None
        else _with_change(text, first.latency.typical_ms, variant.latency.typical_ms)
    )


def _contribution(before: Variant, after: Variant) -> tuple[str, ...]:
    metric = METRICS[before.score.metric]
    costs: list[tuple[float, float]] = [
        (before.cost.macs, after.cost.macs),
        (before.size_bytes, after.size_bytes),
    ]
    if before.latency and after.latency:
        costs.append((before.latency.typical_ms, after.latency.typical_ms))
    changes = [cost_change(*pair) or "same" for pair in costs]
    return (metric.change(before.score.value, after.score.value), *changes, *["–"] * (3 - len(changes)))
