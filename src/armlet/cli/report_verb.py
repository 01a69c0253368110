"""`armlet report`: what a bundle's network learned, what compression changed, and where the page is that shows it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from armlet.cli import options

if TYPE_CHECKING:
    from rich.table import Table

    from armlet.bundle import Bundle


def report(
    bundles: Annotated[list[Path], typer.Argument(metavar="BUNDLE...", help="Folders that `run` wrote.")],
    open_: Annotated[bool, typer.Option("--open", help="Open the page of the first in a browser.")] = False,
    json: options.Json = False,
) -> None:
    """Print what a bundle's network learned and what compression changed; compare several bundles."""
    from armlet.bundle import Bundle
    from armlet.cli.console import print_json, stdout

    opened = [Bundle.open(bundle) for bundle in bundles]
    if json:
        print_json([_facts(bundle) for bundle in opened])
    elif len(opened) > 1:
        stdout().print(_comparison(opened))
    else:
        _print(opened[0])
    if open_:
        typer.launch(str(_page(opened[0])))


def _page(bundle: Bundle) -> Path:
    return bundle.folder / "report.html"


def _print(bundle: Bundle) -> None:
    from armlet.cli.console import stdout
    from armlet.report.summary import summary
    from armlet.report.tables import layers_table, passes_table, verdict_table

    console, manifest = stdout(), bundle.manifest
    console.print(f"{manifest.name} for {manifest.target.name}", style="bold")
    if manifest.passes:
        records = tuple(step.record for step in manifest.passes)
        latencies = (*(cost.latency for cost in manifest.costs), manifest.measured.latency)
        console.print(passes_table(records, {manifest.target.name: latencies} if manifest.costs else {}))
    if manifest.trained and manifest.evaluated:
        for table in summary(manifest.class_names, manifest.trained, manifest.evaluated):
            console.print()
            console.print(table)
    else:
        console.print(layers_table(manifest.compiled, manifest.measured))
    console.print()
    console.print(verdict_table(manifest.verdict))
    console.print(f"page: {_page(bundle)}", soft_wrap=True)


def _comparison(bundles: list[Bundle]) -> Table:
    """Return a line for each bundle."""
    from rich.table import Table

    from armlet.report.words import headline
    from armlet.scores import METRICS
    from armlet.units import format_bytes, format_ms

    table = Table(box=None, pad_edge=False)
    table.add_column("bundle", no_wrap=True)
    table.add_column("metric")
    for column in ("trained", "compiled", "size", "memory", "latency"):
        table.add_column(column, justify="right")
    table.add_column("how")
    table.add_column("verdict")
    for bundle in bundles:
        found = bundle.manifest
        latency, scores = found.measured.latency, ("–", "–", "–")
        if found.trained and found.evaluated:
            metric = METRICS[found.evaluated.score.metric]
            before, after = (metric.text(x.score.value) for x in (found.trained, found.evaluated))
            scores = metric.label, before, after
        table.add_row(
            bundle.folder.name.removesuffix(".armlet"),
            *scores,
            format_bytes(found.size_bytes),
            format_bytes(found.memory_bytes),
            format_ms(latency.typical_ms) if latency else "–",
            latency.label if latency else "not measured",
            headline(found.verdict),
        )
    return table


def _facts(bundle: Bundle) -> dict[str, object]:
    from armlet import artifact_json

    manifest = bundle.manifest
    return {
        "bundle": str(bundle.folder),
        "page": str(_page(bundle)),
        "classes": list(manifest.class_names),
        "trained": artifact_json.to_data(manifest.trained) if manifest.trained else None,
        "passes": [artifact_json.to_data(step.record) for step in manifest.passes],
        "costs": [artifact_json.to_data(cost) for cost in manifest.costs],
        "compiled": artifact_json.to_data(manifest.evaluated) if manifest.evaluated else None,
        "verdict": artifact_json.to_data(manifest.verdict),
    }
