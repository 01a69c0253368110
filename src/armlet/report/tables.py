"""Tables of a verdict and of passes for the terminal."""

from __future__ import annotations

from pathlib import Path

from rich.console import Group
from rich.table import Table
from rich.text import Text

from armlet.artifacts import Cost, PassRecord, Score, Verdict
from armlet.report.words import cost_change, headline, margin_text, verdict_sentence
from armlet.scores import METRICS
from armlet.units import format_bytes, format_count

_STYLES = {"pass": "green", "fail": "bold red", "not measured": "yellow", "no budget": "dim"}


def verdict_table(verdict: Verdict, bundle_path: Path | None = None) -> Group:
    """Return one line for each check; below them, whether all hold, and where the bundle lies."""
    table = Table(box=None, pad_edge=False)
    for column in ("check", "budget", "measured", "margin", "verdict"):
        table.add_column(column)
    for check in verdict.checks:
        outcome = Text(check.outcome, style=_STYLES[check.outcome])
        table.add_row(
            Text(check.what),
            Text(check.budget or "–"),
            Text(check.measured),
            margin_text(check.margin),
            outcome,
        )
    lines = [Text(verdict_sentence(verdict), style=_STYLES[headline(verdict)])]
    if bundle_path:
        lines.append(Text(f"bundle: {bundle_path}", overflow="fold"))
    return Group(table, *lines)


def passes_table(records: tuple[PassRecord, ...]) -> Table:
    """Return a line for the trained network and one for each pass: what it costs and scores, and the change."""
    table = Table(box=None, pad_edge=False, collapse_padding=True)  # narrow enough for 80 columns
    table.add_column("after", no_wrap=True)
    metric = METRICS[records[0].score_before.metric if records else "accuracy"]
    points = "points" if metric.form == "percent" else "change"
    packs = any(r.after.stored_bytes < 0.9 * r.after.weight_bytes for r in records)
    for column in (
        "weights",
        *(["packed"] if packs else []),
        "MACs",
        "parameters",
        metric.label,
        points,
        "s",
    ):
        table.add_column(column, justify="right", no_wrap=True)
    if records:
        table.add_row(
            "training", *_cost(records[0].before, packs=packs), metric.text(records[0].score_before.value)
        )
    for number, record in enumerate(records, start=1):
        table.add_row(
            Text(f"{number} {record.kind}" + ("" if record.changed else " (changed nothing)")),
            *_cost(record.after, record.before, packs=packs),
            metric.text(record.score_after.value),
            metric.change(record.score_before.value, record.score_after.value).removesuffix(" points"),
            f"{record.seconds:.1f}",
        )
    return table


def score_rows(score: Score) -> tuple[tuple[str, str], ...]:
    """Return each metric of a score as (label, value), the main one first and with what it was measured on."""
    rows = [(METRICS[name].label, METRICS[name].text(value)) for name, value in score.values().items()]
    (label, value), *others = rows
    return ((label, f"{value} of {score.n_samples} {score.split} samples"), *others)


def _cost(cost: Cost, before: Cost | None = None, *, packs: bool) -> tuple[str, ...]:
    """Return weights, MACs and parameters, each with its change where there is one, and packed weights if asked."""
    old = before or cost
    return (
        f"{format_bytes(cost.weight_bytes)} {cost_change(old.weight_bytes, cost.weight_bytes)}".rstrip(),
        *([format_bytes(cost.stored_bytes)] if packs else []),
        f"{format_count(cost.macs)} {cost_change(old.macs, cost.macs)}".rstrip(),
        f"{format_count(cost.parameters)} {cost_change(old.parameters, cost.parameters)}".rstrip(),
    )
