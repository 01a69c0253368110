"""Tables of a verdict and of passes for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Group
from rich.table import Table
from rich.text import Text

from armlet.artifacts import Check, Compiled, Cost, Latency, Measured, PassRecord, Score, Verdict
from armlet.report.kernels import kernel_rows, shared_kernels
from armlet.report.words import cost_change, headline, margin_text, verdict_sentence
from armlet.scores import METRICS
from armlet.units import format_bytes, format_count, format_ms, format_percent

_STYLES = {"pass": "green", "fail": "bold red", "not measured": "yellow", "no budget": "dim"}


def verdict_table(verdict: Verdict, bundle_path: Path | None = None) -> Group:
    """Return one line for each check; below them, whether all hold, and where the bundle lies."""
    lines = [Text(verdict_sentence(verdict), style=_STYLES[headline(verdict)])]
    if bundle_path:
        lines.append(Text(f"bundle: {bundle_path}", overflow="fold"))
    return Group(checks_table(verdict.checks), *lines)


def checks_table(checks: Sequence[Check]) -> Table:
    """Return one line for each check."""
    table = Table(box=None, pad_edge=False)
    for column in ("check", "budget", "measured", "margin", "verdict"):
        table.add_column(column)
    for check in checks:
        outcome = Text(check.outcome, style=_STYLES[check.outcome])
        table.add_row(
            Text(check.what),
            Text(check.budget or "–"),
            Text(check.measured),
            margin_text(check.margin),
            outcome,
        )
    return table


def layers_table(compiled: Compiled, measured: Measured) -> Group:
    """Return one line for each call of a kernel, and below what the rest of the program takes."""
    rows, counts = kernel_rows(compiled, measured), measured.counts
    table = Table(box=None, pad_edge=False)
    for column in ("kernel", "layers", "precision", "result", "layout"):
        table.add_column(column, no_wrap=column == "result", overflow="fold")
    for column in ("MACs", "code", "constants", *(["cycles", "share"] if counts else [])):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        shape = f"{row.dtype}{list(row.shape)}" if row.dtype else "–"
        repeated = row.code_bytes == 0 and row.n_calls > 1
        cells = (
            row.symbol, "\n".join(row.layers), row.precision, shape, row.layout or "–", f"{row.macs:,}",
            "shared" if repeated else _whole(row.code_bytes), _whole(row.constant_bytes),
            *([_whole(row.cycles), "–" if row.share is None else format_percent(row.share, 1)] if counts else []),
        )  # fmt: skip
        table.add_row(*map(Text, cells))
    lines = []
    if all(
        kernel.code_bytes is not None for kernel in compiled.kernels_of(measured.variant)
    ):  # bundles of before don't say it
        code = compiled.code_bytes - sum(row.code_bytes or 0 for row in rows)
        constants = compiled.constant_bytes - sum(row.constant_bytes or 0 for row in rows)
        others = ", other builds" if compiled.variants else ""
        lines.append(
            f"besides: {code:,} bytes of code (entry, unwind tables{others}) and"
            f" {constants:,} of constants (literals, gaps{others})"
        )
    if counts:
        lines.append(f"cycles: modelled by {counts.core_model}, from exact counts under {counts.emulator}")
    return Group(table, *map(Text, [*lines, *filter(None, [shared_kernels(rows)])]))


def _whole(number: float | None) -> str:
    return "–" if number is None else f"{round(number):,}"


Latencies = Sequence[Latency | None]
SLOWER = 1.05
"""From how many times the latency on it is said that a pass makes a program slower."""


def passes_table(records: Sequence[PassRecord], latencies: Mapping[str, Latencies]) -> Group:
    """Return a line for the trained network and one for each pass: what it costs and scores, and the change.

    Below it stands why a pass changed nothing, and which pass made the program slower.

    Args:
        records: at least one.
        latencies: by target: of the trained network's program, and of that after each pass; empty where not known.
    """
    table = Table(box=None, pad_edge=False, collapse_padding=True)  # narrow enough for 80 columns
    table.add_column("after", no_wrap=True)
    metric = METRICS[records[0].score_before.metric]
    points = "points" if metric.form == "percent" else "change"
    known = {name: found for name, found in latencies.items() if any(found)}
    timed = [f"{name}\n{next(filter(None, found)).label}" for name, found in known.items()]
    packs = any(r.after.stored_bytes < 0.9 * r.after.weight_bytes for r in records)
    packed = ["packed"] if packs else []
    for column in ("weights", *packed, "MACs", *timed, metric.label, points, "s"):
        table.add_column(column, justify="right", no_wrap=True)
    first = [_latency(found[0]) for found in known.values()]
    score = metric.text(records[0].score_before.value)
    table.add_row("training", *_cost(records[0].before, packs=packs), *first, score)
    for number, record in enumerate(records, start=1):
        times = [_latency(found[number], found[number - 1]) for found in known.values()]
        table.add_row(
            Text(f"{number} {record.kind}" + ("" if record.changed else " (changed nothing)")),
            *_cost(record.after, record.before, packs=packs),
            *times,
            metric.text(record.score_after.value),
            metric.change(record.score_before.value, record.score_after.value).removesuffix(" points"),
            f"{record.seconds:.1f}",
        )
    return Group(table, *map(Text, _remarks(records, known)))


def _remarks(records: Sequence[PassRecord], latencies: Mapping[str, Latencies]) -> list[str]:
    lines = []
    for number, record in enumerate(records, start=1):
        if not record.changed:
            lines += [f"{number} {record.kind}: {note}" for note in record.notes]
        for target, found in latencies.items():
            before, after = found[number - 1], found[number]
            if before and after and after.typical_ms > SLOWER * before.typical_ms:
                times = after.typical_ms / before.typical_ms
                lines.append(
                    f"{number} {record.kind} makes the program {times:.2g} times as slow on {target}"
                )
    return lines


def score_rows(score: Score) -> tuple[tuple[str, str], ...]:
    """Return each metric of a score as (label, value), the main one first and with what it was measured on."""
    rows = [(METRICS[name].label, METRICS[name].text(value)) for name, value in score.values().items()]
    (label, value), *others = rows
    return ((label, f"{value} of {score.n_samples} {score.split} samples"), *others)


def _latency(latency: Latency | None, before: Latency | None = None) -> str:
    if latency is None:
        return "–"
    old = before or latency
    return f"{format_ms(latency.typical_ms)} {cost_change(old.typical_ms, latency.typical_ms)}".rstrip()


def _cost(cost: Cost, before: Cost | None = None, *, packs: bool) -> tuple[str, ...]:
    """Return weights and MACs, each with its change where there is one, and packed weights if asked."""
    old = before or cost
    return (
        f"{format_bytes(cost.weight_bytes)} {cost_change(old.weight_bytes, cost.weight_bytes)}".rstrip(),
        *([format_bytes(cost.stored_bytes)] if packs else []),
        f"{format_count(cost.macs)} {cost_change(old.macs, cost.macs)}".rstrip(),
    )
