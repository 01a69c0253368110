"""The report's plots: static SVG that takes its text colour from the page and needs nothing from outside.

Every plot has a title, axis labels with units, and a text that says what it shows. The same input gives the same
bytes: no date, no random identifiers.
"""

from __future__ import annotations

import html
import io
import re
import string
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from armlet.artifacts import Epoch, Latency
from armlet.errors import MissingDependency
from armlet.exhibits import ErrorHistogram, Forecasts, Reliability
from armlet.report.words import axis_of
from armlet.scores import METRICS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INK = "#010203"  # stands for the page's text colour: replaced by currentColor in the SVG
_BLUE, _ORANGE, _GREEN = "#3f83c6", "#d9762b", "#2f9a62"  # at least 3:1 against the page, light and dark
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: sharp, selectable, in the page's font
    "text.parse_math": False,  # names of layers and classes are not formulas
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "grid.color": _INK,
    "grid.alpha": 0.15,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}
_NARROW, _WIDE = 3.4, 7.0  # inches
_LONGEST = 40  # characters of a row's name, so that the bars keep their room


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a plot: its name, its value in the plot's unit, and the words beside it."""

    name: str
    value: float
    words: str


@dataclass(frozen=True, slots=True)
class Stretch:
    """One stretch of training: of the network itself, or of a pass with its number ("1 prune_channels")."""

    name: str
    history: tuple[Epoch, ...]


def bars(title: str, unit: str, rows: Sequence[Row], *, wide: bool = False) -> str:
    """Plot horizontal bars from zero, first row on top."""

    def paint(axes: Axes) -> None:
        drawn = axes.barh(range(len(rows)), [row.value for row in rows], color=_BLUE, height=0.62)
        axes.bar_label(drawn, [row.words for row in rows], padding=3, fontsize=8)
        axes.set_xlim(0, (1.25 if wide else 1.45) * max(*(row.value for row in rows), 1e-12))
        if not wide:
            axes.locator_params(axis="x", nbins=4)  # more would run into each other
        axes.grid(axis="x")
        _name_rows(axes, [row.name for row in rows], unit)

    return _svg(title, _said(unit, rows), (_WIDE if wide else _NARROW, 0.75 + 0.28 * len(rows)), paint)


def dots(title: str, unit: str, rows: Sequence[Row]) -> str:
    """Plot one dot a row, on an axis that need not start at zero."""
    low, high = min(row.value for row in rows), max(row.value for row in rows)
    # No smaller than this, so that what differs by next to nothing does not look far apart.
    span = max(high - low, 0.02 * max(abs(low), abs(high)), 1e-12)

    def paint(axes: Axes) -> None:
        axes.plot([row.value for row in rows], range(len(rows)), "o", color=_BLUE, markersize=6)
        for position, row in enumerate(rows):
            at = (row.value, position)
            axes.annotate(row.words, at, (6, 0), textcoords="offset points", va="center", fontsize=8)
        axes.set_xlim(low - 0.15 * span, high + 0.6 * span)
        axes.locator_params(axis="x", nbins=4)
        axes.grid(axis="x")
        _name_rows(axes, [row.name for row in rows], unit)

    return _svg(title, _said(unit, rows), (_NARROW, 0.75 + 0.28 * len(rows)), paint)


def classes(names: Sequence[str], before: Sequence[float], after: Sequence[float]) -> str:
    """Plot each class's accuracy (fractions) in the trained network and in the compiled program."""
    old, new = [100 * value for value in before], [100 * value for value in after]

    def paint(axes: Axes) -> None:
        rows = range(len(names))
        axes.hlines(rows, old, new, color=_INK, alpha=0.4, linewidth=1.5)
        axes.plot(old, rows, "o", color=_BLUE, markersize=8, fillstyle="none", label="trained network")
        axes.plot(new, rows, "o", color=_ORANGE, markersize=4.5, label="compiled program")
        axes.grid(axis="both")
        _name_rows(axes, names, "accuracy on the test split (%)")
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0.2)

    said = "; ".join(
        f"{n} {b:.1f} % before, {a:.1f} % after" for n, b, a in zip(names, old, new, strict=True)
    )
    return _svg("Accuracy of each class", said, (_WIDE, 1.0 + 0.22 * len(names)), paint)


def losses(stretches: Sequence[Stretch], unit: str, *, title: str = "Loss", validation: bool = True) -> str:
    """Plot the training loss over all epochs, and the validation loss where it is the same loss."""

    def paint(axes: Axes) -> None:
        _curve(axes, [[epoch.train_loss for epoch in s.history] for s in stretches], _BLUE, "training")
        if validation:
            losses = [[epoch.validation_loss for epoch in s.history] for s in stretches]
            _curve(axes, losses, _ORANGE, "validation")
        _name_stretches(axes, stretches, f"loss ({unit})")
        axes.legend(loc="best")

    which = "validation" if validation else "training"
    ends = [s.history[-1].validation_loss if validation else s.history[-1].train_loss for s in stretches]
    said = [f"{s.name} ends at {which} loss {end:.3g}" for s, end in zip(stretches, ends, strict=True)]
    return _svg(title, "; ".join(said), (_NARROW, 2.4), paint)


def validation_scores(stretches: Sequence[Stretch]) -> str:
    """Plot the validation score over all epochs."""
    metric = METRICS[stretches[0].history[0].metric]
    factor, unit = axis_of(metric)

    def paint(axes: Axes) -> None:
        scores = [[factor * epoch.validation_score for epoch in s.history] for s in stretches]
        _curve(axes, scores, _ORANGE)
        _name_stretches(axes, stretches, f"{metric.label}{unit}")

    said = [f"{s.name} ends at {metric.text(s.history[-1].validation_score)}" for s in stretches]
    return _svg(f"Validation {metric.label}", "; ".join(said), (_NARROW, 2.4), paint)


def learning_rates(stretches: Sequence[Stretch]) -> str:
    """Plot the learning rate over all epochs."""

    def paint(axes: Axes) -> None:
        _curve(axes, [[epoch.learning_rate for epoch in s.history] for s in stretches], _GREEN)
        _name_stretches(axes, stretches, "learning rate (per step)")

    said = [f"{s.name} peaks at {max(epoch.learning_rate for epoch in s.history):.3g}" for s in stretches]
    return _svg("Learning rate", "; ".join(said), (_NARROW, 2.4), paint)


def error_shares(errors: ErrorHistogram) -> str:
    """Plot what share of the normal samples and of the anomalies has which error."""
    kinds = (("normal", errors.normal, _BLUE), ("anomalies", errors.anomalies, _ORANGE))

    def paint(axes: Axes) -> None:
        for name, counts, color in kinds:
            shares = [100 * n / max(1, sum(counts)) for n in counts]
            label = f"{name} ({sum(counts)})"
            axes.stairs(shares, errors.edges, fill=True, color=color, alpha=0.45, label=label)
            axes.stairs(shares, errors.edges, color=color)
        axes.set(xscale="log", xlabel="reconstruction error (mean square)", ylabel="share of its kind (%)")
        axes.xaxis.set_major_formatter(
            lambda value, _: f"{value:g}"
        )  # powers are formulas, which stay unread
        axes.grid(axis="both")
        axes.legend(loc="best")

    said = [
        f"{name}: {sum(counts)} samples, half of them up to {_middle(errors.edges, counts):.3g}"
        for name, counts, _ in kinds
        if sum(counts)
    ]
    return _svg("Reconstruction errors", "; ".join(said), (_WIDE, 2.6), paint)


def courses(forecasts: Forecasts) -> str:
    """Plot what came and what was forecast."""

    def paint(axes: Axes) -> None:
        axes.plot(forecasts.came, color=_BLUE, linewidth=1.4, label="came")
        axes.plot(forecasts.forecast, color=_ORANGE, linewidth=1.2, label="forecast by the compiled program")
        axes.set(
            xlabel="test sample", ylabel="value (unit of the targets)", xlim=(0, len(forecasts.came) - 1)
        )
        axes.grid(axis="both")
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0.2)

    low, high = min(forecasts.came), max(forecasts.came)
    said = f"{len(forecasts.came)} test samples; what came lies between {low:.3g} and {high:.3g}"
    return _svg("Forecasts", said, (_WIDE, 2.6), paint)


def reliability(found: Reliability) -> str:
    """Plot the accuracy of answers of like confidence; the larger a dot, the more samples."""
    kinds = (("trained network", found.trained, _BLUE), ("compiled program", found.compiled, _ORANGE))

    def paint(axes: Axes) -> None:
        axes.plot([0, 100], [0, 100], color=_INK, alpha=0.4, linewidth=1, linestyle="--")
        for name, bins, color in kinds:
            total = sum(b.n_samples for b in bins)
            sure, right = (
                [100 * value for value in values]
                for values in zip(*((b.confidence, b.accuracy) for b in bins), strict=True)
            )
            axes.plot(sure, right, color=color, linewidth=1, alpha=0.6)
            sizes = [6 + 90 * b.n_samples / total for b in bins]
            axes.scatter(
                sure, right, sizes, color="none" if color == _BLUE else color, edgecolors=color, label=name
            )
        axes.set(
            xlabel="confidence (%)", ylabel="accuracy (%)", xlim=(-3, 103), ylim=(-3, 103), aspect="equal"
        )
        axes.grid(axis="both")
        axes.legend(loc="best", handletextpad=0.2)

    said = [
        f"{name}: "
        + ", ".join(f"{b.confidence * 100:.0f} % sure and {b.accuracy * 100:.0f} % right" for b in bins)
        for name, bins, _ in kinds
    ]
    return _svg("Confidence and accuracy", "; ".join(said), (_NARROW, 3.3), paint)


def tradeoff(title: str, unit: tuple[str, str], points: Sequence[tuple[str, float, float]]) -> str:
    """Plot named points (name, x, y), at most 52: what is paid against what is got for it."""

    def paint(axes: Axes) -> None:
        # Letters, because the names of passes begin with their numbers.
        for letter, (name, x, y) in zip(string.ascii_letters, points, strict=False):
            axes.plot([x], [y], "o", color=_BLUE, markersize=6, label=f"{letter}  {name}")
            axes.annotate(letter, (x, y), (5, 4), textcoords="offset points", fontsize=8)
        axes.set(xlabel=unit[0], ylabel=unit[1])
        axes.margins(0.12)
        axes.grid(axis="both")
        axes.legend(
            loc="center left", bbox_to_anchor=(1, 0.5), handlelength=0, handletextpad=0, markerscale=0
        )

    said = "; ".join(f"{name}: {x:.4g} {unit[0]}, {y:.4g} {unit[1]}" for name, x, y in points)
    return _svg(title, said, (_WIDE, max(2.6, 0.6 + 0.22 * len(points))), paint)


def curves(
    title: str, unit: tuple[str, str], lines: Sequence[tuple[str, Sequence[float], Sequence[float]]]
) -> str:
    """Plot named lines (name, x, y)."""

    def paint(axes: Axes) -> None:
        for number, (name, x, y) in enumerate(lines):
            style = ("-", "--", ":", "-.")[number // 10 % 4]  # ten colours, and then again
            axes.plot(
                x, y, style, marker="o", markersize=3, linewidth=1.5, color=f"C{number % 10}", label=name
            )
        axes.set(xlabel=unit[0], ylabel=unit[1])
        axes.grid(axis="both")
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))

    said = "; ".join(f"{name}: from {y[0]:.4g} to {y[-1]:.4g}" for name, _, y in lines)
    return _svg(
        title, f"{unit[1]} over {unit[0]}. {said}", (1.3 * _WIDE, max(3.0, 0.6 + 0.19 * len(lines))), paint
    )


def interval(latency: Latency, budget_ms: float | None) -> str:
    """Plot a latency interval with its middle, and the budget when there is one."""
    low, high = latency.low_ms, latency.high_ms

    def paint(axes: Axes) -> None:
        axes.plot([low, high], [0, 0], color=_BLUE, linewidth=7, alpha=0.45, solid_capstyle="butt")
        axes.plot([latency.typical_ms], [0], "o", color=_BLUE, markersize=8)
        if budget_ms is not None:
            axes.axvline(budget_ms, color=_ORANGE, linewidth=2)
            at = (budget_ms, 0.7)
            axes.annotate(
                "budget", at, (-4, 0), textcoords="offset points", ha="right", va="center", fontsize=8
            )
        axes.set(xlim=(0, 1.1 * max(high, budget_ms or 0)), ylim=(-1, 1), yticks=[], xlabel="latency (ms)")
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x")

    budget = "" if budget_ms is None else f"; budget {budget_ms:.4g} ms"
    said = f"{low:.4g} to {high:.4g} ms, middle {latency.typical_ms:.4g} ms{budget}"
    return _svg(f"Latency of one inference, {latency.label}", said, (_WIDE, 1.35), paint)


def standalone(element: str) -> str:
    """Return an SVG element of this module as a file of its own, on white."""
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return element.replace("<svg", f"<svg {names}", 1).replace('style="', 'style="background:white;', 1)


def _svg(title: str, description: str, inches: tuple[float, float], paint: Callable[[Axes], None]) -> str:
    """Draw one pair of axes and return it as an SVG element, named by its title and described in words."""
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependency("matplotlib", "the report", "pip install 'armlet[report]'") from error
    stream = io.StringIO()
    # the salt keeps the identifiers of several plots on one page apart
    with mpl.rc_context({**_STYLE, "svg.hashsalt": title}):
        figure = Figure(inches, layout="constrained")
        axes = figure.add_subplot()
        axes.set_title(title)
        paint(axes)
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    body = stream.getvalue().partition("<svg")[2].partition(">")[2]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r' id="[A-Za-z0-9.]+(_\d+)+"', "", body)  # names of groups, the same in every plot
    width, height = (72 * extent for extent in inches)
    shrinks = "" if inches[0] == _NARROW else ' class="wide"'
    return (
        f'<svg{shrinks} viewBox="0 0 {width:g} {height:g}" style="max-width:{width * 4 / 3:.0f}px" role="img"'
        f' aria-label="{html.escape(f"{title}. {description}")}">{body.replace(_INK, "currentColor").strip()}'
    )


def _middle(edges: Sequence[float], counts: Sequence[int]) -> float:
    """Return the lowest edge that at least half of what was counted lies up to."""
    below = 0
    for count, upper in zip(counts, edges[1:], strict=True):
        below += count
        if 2 * below >= sum(counts):
            return upper
    return edges[-1]


def _said(unit: str, rows: Sequence[Row]) -> str:
    return f"{unit}: " + "; ".join(f"{row.name} {row.words}" for row in rows)


def _name_rows(axes: Axes, names: Sequence[str], label: str) -> None:
    """Name the rows of a plot, first on top."""
    axes.set_yticks(range(len(names)), [n if len(n) <= _LONGEST else f"{n[: _LONGEST - 1]}…" for n in names])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel(label)


def _curve(axes: Axes, parts: Sequence[Sequence[float]], color: str, label: str | None = None) -> None:
    """Draw one line for each stretch, one after the other; only the first is named in the legend."""
    start = 1
    for part in parts:
        epochs = range(start, start + len(part))
        axes.plot(epochs, part, "o-", color=color, markersize=2.5, linewidth=1.4, label=label)
        start, label = start + len(part), None


def _name_stretches(axes: Axes, stretches: Sequence[Stretch], label: str) -> None:
    """Label the axes; a dashed line with its pass's number says where each stretch but the first begins."""
    from matplotlib.ticker import MaxNLocator

    axes.grid(axis="both")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    names = ", ".join(stretch.name for stretch in stretches[1:])
    axes.set(xlabel=textwrap.fill(f"epoch (dashed: {names})", 48) if names else "epoch", ylabel=label)
    start = 0.5
    for before, stretch in pairwise(stretches):
        start += len(before.history)
        number, at = stretch.name.partition(" ")[0], (start, 1)
        axes.axvline(start, color=_INK, alpha=0.4, linewidth=1, linestyle="--")
        axes.annotate(number, at, (0, 2), ("data", "axes fraction"), "offset points", ha="center", fontsize=7)
