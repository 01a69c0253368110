"""What a network learned and what compression changed, as tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from armlet.artifacts import Changes, Evaluated, Trained
from armlet.report.learning import class_rows, metric_rows
from armlet.scores import METRICS

_N_INPUTS = 10
"""Changed samples that are listed."""


def learning_table(trained: Trained, evaluated: Evaluated) -> Table:
    """Return a line for each metric: of training samples, of the trained network, of the compiled program."""
    table = Table(box=None, pad_edge=False)
    table.add_column("metric")
    for column in ("training samples", "trained", "compiled"):
        table.add_column(column, justify="right")
    for name, *found in metric_rows(trained.training_score, trained.score, evaluated.score):
        metric = METRICS[name]
        table.add_row(metric.label, *("–" if x is None else metric.text(x) for x in found))
    return table


def class_table(class_names: tuple[str, ...], trained: Trained, evaluated: Evaluated) -> Table | None:
    """Return a line for each class, those first that lost most; None where classes were not scored."""
    rows = class_rows(class_names, trained, evaluated)
    if not rows:
        return None
    metric, changes = METRICS["accuracy"], evaluated.changes
    table = Table(box=None, pad_edge=False)
    table.add_column("class")
    for column in ("trained", "compiled", "points", "answered otherwise", "newly wrong", "newly right"):
        table.add_column(column, justify="right")
    for i, (name, before, after) in sorted(enumerate(rows), key=lambda row: row[1][2] - row[1][1]):
        change = metric.change(before, after).removesuffix(" points")
        counts: tuple[str, ...] = ()
        if changes is not None:
            found = changes.classes[i]
            counts = (f"{found.n_changed} of {found.n_samples}", str(found.n_lost), str(found.n_gained))
        table.add_row(name, metric.text(before), metric.text(after), change, *counts)
    return table


def changes_table(class_names: tuple[str, ...], changes: Changes) -> Group:
    """Return how many answers compression changed, and the samples of which the trained network was surest."""
    sentence = (
        f"{changes.n_changed} of {changes.n_samples} test samples are answered otherwise:"
        f" {changes.n_lost} newly wrong, {changes.n_gained} newly right"
    )
    table = Table(box=None, pad_edge=False)
    table.add_column("test sample", justify="right")
    for column in ("class", "trained network", "compiled program"):
        table.add_column(column)
    for found in changes.inputs[:_N_INPUTS]:
        table.add_row(
            str(found.index),
            class_names[found.label],
            f"{class_names[found.before]} ({found.confidence_before:.0%} sure)",
            f"{class_names[found.after]} ({found.confidence_after:.0%} sure)",
        )
    return Group(Text(sentence), *([table] if changes.inputs else []))


def summary(class_names: tuple[str, ...], trained: Trained, evaluated: Evaluated) -> Iterator[RenderableType]:
    """Yield the tables that there is something to say in."""
    yield learning_table(trained, evaluated)
    if (classes := class_table(class_names, trained, evaluated)) is not None:
        yield classes
    if evaluated.changes is not None:
        yield changes_table(class_names, evaluated.changes)
