"""How sensitive each part of a network is, as tables for the terminal and as a plot."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from armlet.artifacts import Analysis
from armlet.report.plots import curves, standalone
from armlet.report.words import axis_of
from armlet.scores import METRICS
from armlet.units import format_percent

_SHARES = (0.25, 0.5, 0.75)


def groups_table(analysis: Analysis) -> Table:
    """Return a line for each group: the change of the score with a quarter, half and three quarters of it gone."""
    metric = METRICS[analysis.metric]
    table = Table(box=None, pad_edge=False)
    table.add_column("pruned alone", no_wrap=True)
    table.add_column("of", no_wrap=True)
    for share in _SHARES:
        table.add_column(f"−{format_percent(share, 0)}", justify="right")
    for group in analysis.groups:
        changes = []
        for share in _SHARES:
            reached = max((n for n in group.removed if n <= share * group.n_channels + 1e-9), default=0)
            score = group.scores[group.removed.index(reached)]
            changes.append(metric.change(group.scores[0], score) if reached else "–")
        table.add_row(Text(group.name), f"{group.n_channels} {group.unit}", *changes)
    for name, reason in analysis.fixed:
        table.add_row(Text(name), Text(f"can't be pruned: {reason}", style="dim"))
    return table


def layers_table(analysis: Analysis) -> Table:
    """Return a line for each layer, the most sensitive first: what INT8 in it alone changes."""
    table = Table(box=None, pad_edge=False)
    table.add_column("INT8 alone", no_wrap=True)
    table.add_column("changes the answers by", justify="right")
    for layer in analysis.layers:
        table.add_row(Text(layer.layer), f"{format_percent(layer.error, 3)} of their variance")
    return table


def sensitivity_plot(analysis: Analysis) -> str:
    """Return an SVG file of each group's score over the share of it that is gone."""
    metric = METRICS[analysis.metric]
    factor, unit = axis_of(metric)
    lines = [
        (
            f"{group.name} ({group.n_channels} {group.unit})",
            [100 * n / group.n_channels for n in group.removed],
            [factor * score for score in group.scores],
        )
        for group in analysis.groups
    ]
    title = f"Sensitivity of {analysis.recipe}: each group pruned alone, without training"
    labels = "removed (% of the group)", f"validation {metric.label}{unit}"
    return standalone(curves(title, labels, lines))
