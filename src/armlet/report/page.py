"""One self-contained HTML page that tells a person what was built, how good it is, and how that is known.

Input: finished artefacts only; nothing is run or read from disk but the page's own template.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

from armlet import digest
from armlet.artifacts import (
    Compiled,
    Compressed,
    DataReady,
    Evaluated,
    Exported,
    Fallback,
    Imported,
    Latency,
    Measured,
    Pretrained,
    ProgramCost,
    StreamFacts,
    Trained,
    Verdict,
)
from armlet.errors import MissingDependency
from armlet.exhibits import Exhibits
from armlet.report import plots
from armlet.report.answers import show_answers
from armlet.report.kernels import KernelRow, kernel_rows, shared_kernels
from armlet.report.learning import class_rows, metric_rows, pretraining_plot, training_plots
from armlet.report.words import arena_excess, axis_of, cost_change, headline, margin_text, verdict_sentence
from armlet.scores import METRICS, Metric
from armlet.spec.base import Spec
from armlet.spec.budget import Budgets
from armlet.spec.recipe import Recipe
from armlet.spec.target import Target
from armlet.units import format_bytes, format_count, format_ms, format_percent

if TYPE_CHECKING:
    from jinja2 import Environment
    from ruamel.yaml.nodes import ScalarNode
    from ruamel.yaml.representer import SafeRepresenter

_N_KERNELS_PLOTTED = 16


@dataclass(frozen=True, slots=True)
class ReportInput:
    """Everything that a report tells of one bundle.

    What armlet did not make itself came as an ONNX file: `imported` says of it, and `recipe`, `data`, `trained`,
    `exported` and `evaluated` are None.

    Attributes:
        name: of the program.
        budgets: what the verdict holds it against.
        passes: in the order in which they ran.
        versions: "name version" of armlet and of the packages that took part.
        exhibits: answers of the compiled program to look at.
        judge: what generated samples were compared in the features of; other tasks have none.
        pretrained: what the network learned without labels first, if anything.
        stream: of the program for streams, None where there is none.
        costs: of the trained network as a program, and of that after each pass but the last, where known.
    """

    name: str
    budgets: Budgets
    recipe: Recipe | None
    target: Target
    data: DataReady | None
    trained: Trained | None
    passes: tuple[Compressed, ...]
    exported: Exported | None
    compiled: Compiled
    evaluated: Evaluated | None
    measured: Measured
    verdict: Verdict
    versions: tuple[str, ...]
    exhibits: Exhibits = field(default_factory=Exhibits)
    judge: Trained | None = None
    pretrained: Pretrained | None = None
    stream: StreamFacts | None = None
    costs: tuple[ProgramCost, ...] = ()
    imported: Imported | None = None

    @property
    def preprocessing(self) -> str:
        """How raw values become inputs, in words."""
        return self.data.preprocessing if self.data else "not known: the inputs are those of the ONNX file"


@dataclass(frozen=True, slots=True)
class _Step:
    """The network after one step: on paper, or as the program that was built of it."""

    name: str
    size_bytes: int
    stored_bytes: int | None
    macs: int
    parameters: int | None
    score: float
    seconds: float
    notes: tuple[str, ...] = ()
    latency: Latency | None = None


def render_report(report: ReportInput, file: Path) -> None:
    """Write the page of one bundle to `file`; the same input gives the same bytes.

    Raises:
        MissingDependency: the packages of the extra `report` are not installed.
    """
    kernels = kernel_rows(report.compiled, report.measured)
    page = environment().get_template("page.html").render(
        r=report,
        sentence=verdict_sentence(report.verdict),
        headline=headline(report.verdict),
        kernels=kernels,
        float_share=_float_share(report, kernels),
        fallbacks=_fallbacks(report, kernels),
        shared_kernels=shared_kernels(kernels),
        metrics=METRICS,
        kernel_plot=_kernel_plot(kernels),
        latency_plot=_latency_plot(report),
        target_yaml=_yaml(report.target),
        **_learned(report),
    )  # fmt: skip
    file.write_text(page, encoding="utf-8")


def _learned(report: ReportInput) -> dict[str, object]:
    """Return what the page tells of a network that armlet made, none of which is known of an ONNX file."""
    recipe, data, trained, evaluated = report.recipe, report.data, report.trained, report.evaluated
    if recipe is None or data is None or trained is None or evaluated is None:
        return {"metric": None, "answers": None, "class_rows": (), "reliability_plot": ""}
    metric = METRICS[trained.score.metric]
    steps = _steps(report, trained, evaluated)
    classes = class_rows(data.class_names, trained, evaluated)
    return {
        "metric": metric,
        "steps": steps,
        "step_plots": _step_plots(steps, metric),
        "training_plots": training_plots(recipe, trained, report.passes),
        "pretraining_plot": pretraining_plot(recipe, report.pretrained),
        "metric_rows": metric_rows(trained.untrained_score, trained.score, evaluated.score),
        "answers": show_answers(recipe.data.asks, report.exhibits, recipe.data.test_limit),
        "reliability_plot": plots.reliability(report.exhibits.reliability)
        if report.exhibits.reliability
        else "",
        "class_plot": plots.classes(*zip(*classes, strict=True)) if classes else "",
        "class_rows": classes,
        "change_rows": _change_rows(data, evaluated),
        "recipe_yaml": _yaml(recipe),
        "recipe_digest": digest.of_json(recipe.model_dump(mode="json")),
    }


def environment(*, html: bool = True) -> Environment:
    """Return what renders this package's templates, with the filters that write numbers.

    Raises:
        MissingDependency: the packages of the extra `report` are not installed.
    """
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError as error:
        raise MissingDependency("jinja2", "the report", "pip install 'armlet[report]'") from error
    environment = Environment(
        loader=PackageLoader("armlet.report", ""),
        autoescape=html,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "bytes": format_bytes,
        "count": format_count,
        "ms": format_ms,
        "percent": partial(format_percent, digits=2),
        "share": partial(format_percent, digits=1),
        "margin": margin_text,
        "arena_excess": arena_excess,
        "whole": lambda n: f"{n:,}".replace(",", "\N{NO-BREAK SPACE}"),
    }
    environment.globals |= {"cost_change": cost_change}
    return environment


def _steps(report: ReportInput, trained: Trained, evaluated: Evaluated) -> tuple[_Step, ...]:
    compiled = report.compiled
    rows = [
        _Step(
            "trained",
            trained.cost.weight_bytes,
            trained.cost.stored_bytes,
            trained.cost.macs,
            trained.cost.parameters,
            trained.score.value,
            trained.seconds,
        )
    ]
    for number, step in enumerate(report.passes, start=1):
        record = step.record
        rows.append(
            _Step(
                f"{number} {record.kind}",
                record.after.weight_bytes,
                record.after.stored_bytes,
                record.after.macs,
                record.after.parameters,
                record.score_after.value,
                record.seconds,
                record.notes if record.changed else (*record.notes, "changed nothing"),
            )
        )
    # The last pass leaves the network that the program is made of.
    latencies = (
        *(cost.latency for cost in report.costs),
        *([report.measured.latency] if report.costs else []),
    )
    rows = [replace(row, latency=latency) for row, latency in zip_longest(rows, latencies)]
    macs = sum(kernel.macs for kernel in compiled.kernels)
    score, seconds = evaluated.score.value, evaluated.seconds
    packed = None if compiled.packed is None else compiled.packed.size_bytes
    rows.append(
        _Step(
            "compiled program",
            compiled.size_bytes,
            packed,
            macs,
            None,
            score,
            seconds,
            latency=report.measured.latency,
        )
    )
    return tuple(rows)


def _step_plots(steps: tuple[_Step, ...], metric: Metric) -> tuple[str, ...]:
    Row = plots.Row
    factor, unit = axis_of(metric)
    million = max(step.macs for step in steps) >= 1e5
    timed = [(s.name, s.latency) for s in steps if s.latency is not None]
    per_ms = 1000 if all(latency.typical_ms < 0.1 for _, latency in timed) else 1
    return (
        plots.bars(
            "Size", "size (KiB)",
            [Row(s.name, s.size_bytes / 1024, format_bytes(s.size_bytes)) for s in steps],
        ),
        plots.bars(
            "Work", f"{'million' if million else 'thousand'} multiply-accumulates",
            [Row(s.name, s.macs / (1e6 if million else 1e3), format_count(s.macs)) for s in steps],
        ),
        plots.dots(
            metric.label.capitalize() if metric.label.islower() else metric.label, f"test {metric.label}{unit}",
            [Row(s.name, factor * s.score, metric.text(s.score)) for s in steps],
        ),
        *([plots.bars(
            "Latency", f"latency ({'µs' if per_ms == 1000 else 'ms'}, {timed[0][1].label})",
            [Row(name, per_ms * latency.typical_ms, format_ms(latency.typical_ms)) for name, latency in timed],
        )] if len(timed) > 1 else []),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _ChangeRow:
    """What compression changed in one class, by name."""

    name: str
    n_samples: int
    n_changed: int
    n_lost: int
    n_gained: int


def _change_rows(data: DataReady, evaluated: Evaluated) -> tuple[_ChangeRow, ...]:
    """Return the classes of which any answer changed, those first that lost most."""
    changes = evaluated.changes
    if changes is None:
        return ()
    rows = [
        _ChangeRow(name, c.n_samples, c.n_changed, c.n_lost, c.n_gained)
        for name, c in zip(data.class_names, changes.classes, strict=True)
        if c.n_changed
    ]
    return tuple(sorted(rows, key=lambda row: row.n_gained - row.n_lost))


def _float_share(report: ReportInput, kernels: tuple[KernelRow, ...]) -> float | None:
    """Return the share of the modelled cycles that float takes in an INT8 network, None where that says nothing.

    Changes between float and INT8 count as float: they are its price.
    """
    counts = report.measured.counts
    if report.compiled.integer_only or "int8" not in {row.precision for row in kernels}:
        return None
    if counts is None or not counts.cycles:
        return None
    changes = ("quantize", "dequantize")
    cycles = sum(row.cycles or 0.0 for row in kernels if row.precision == "float32" or row.op in changes)
    return cycles / counts.cycles


def _fallbacks(
    report: ReportInput, kernels: tuple[KernelRow, ...]
) -> tuple[tuple[Fallback, float | None], ...]:
    """Return what was not lowered as asked, with the share of the modelled cycles that its layer's kernels take."""
    counted = [row for row in kernels if row.share is not None]
    shares = [[r.share or 0.0 for r in counted if f.layer in r.layers] for f in report.compiled.fallbacks]
    pairs = zip(report.compiled.fallbacks, shares, strict=True)
    return tuple((fallback, sum(found) if found else None) for fallback, found in pairs)


def _kernel_plot(kernels: tuple[KernelRow, ...]) -> str:
    """Plot the kernels that take most cycles, in order of execution."""
    shares: dict[str, float] = {}
    for row in kernels:
        if row.share is not None:
            shares[row.symbol] = shares.get(row.symbol, 0.0) + 100 * row.share
    if not shares:
        return ""
    chosen = sorted(shares, key=lambda symbol: -shares[symbol])[:_N_KERNELS_PLOTTED]
    rows = [plots.Row(s, share, f"{share:.1f} %") for s, share in shares.items() if s in chosen]
    return plots.bars("Where the cycles go", "share of modelled cycles (%)", rows, wide=True)


def _latency_plot(report: ReportInput) -> str:
    latency = report.measured.latency
    return plots.interval(latency, report.budgets.latency) if latency else ""


def _representer() -> type[SafeRepresenter]:
    """Return what writes a text of several lines, such as a model's code, line by line; others' writers stay."""
    from ruamel.yaml.representer import SafeRepresenter

    class Representer(SafeRepresenter):
        pass

    def represent(representer: SafeRepresenter, text: str) -> ScalarNode:
        return representer.represent_scalar(
            "tag:yaml.org,2002:str", text, style="|" if "\n" in text else None
        )

    Representer.add_representer(str, represent)
    return Representer


def _yaml(spec: Spec) -> str:
    from ruamel.yaml import YAML

    stream = io.StringIO()
    writer = YAML(typ="safe", pure=True)
    writer.default_flow_style = False
    writer.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # keeps the order of the fields
    writer.Representer = _representer()
    writer.dump(spec.model_dump(mode="json", exclude_none=True), stream)
    return stream.getvalue()
