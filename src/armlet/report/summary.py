"""What a network learned and what compression changed, as tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from armlet.artifacts import Changes, Evaluated, Trained
from armlet.scores import METRICS

_N_INPUTS = 10
"""Changed samples that are listed."""


def learning_table(trained: Trained, evaluated: Evaluated) -> Table:
    """Return a line for each metric: of training samples, of the trained network, of the compiled program."""
    table = Table(box=None, pad_edge=False)
    table.add_column("metric")
    for column in ("training samples", "trained", "compiled"):
        table.add_column(column, justify="right")
    learned = {} if trained.training_score is None else trained.training_score.values()
    after = evaluated.score.values()
    for name, value in trained.score.values().items():
        metric = METRICS[name]
        found = (learned.get(name), value, after.get(name))
        table.add_row(metric.label, *("–" if x is None else metric.text(x) for x in found))
    return table


def class_table(class_names: tuple[str, ...], trained: Trained, evaluated: Evaluated) -> Table | None:
    """Return a line for each class, those first that lost most; None where classes were not scored."""
    before, after = trained.score.per_class, evaluated.score.per_class
    if not class_names or not len(class_names) == len(before) == len(after):
        return None
    metric, changes = METRICS["accuracy"], evaluated.changes
    table = Table(box=None, pad_edge=False)
    table.add_column("class")
    for column in ("trained", "compiled", "points", "answered otherwise", "newly wrong", "newly right"):
        table.add_column(column, justify="right")
    for i in sorted(range(len(class_names)), key=lambda i: after[i] - before[i]):
        change = metric.change(before[i], after[i]).removesuffix(" points")
        counts: tuple[str, ...] = ()
        if changes is not None:
            found = changes.classes[i]
            counts = (f"{found.n_changed} of {found.n_samples}", str(found.n_lost), str(found.n_gained))
        table.add_row(class_names[i], metric.text(before[i]), metric.text(after[i]), change, *counts)
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
