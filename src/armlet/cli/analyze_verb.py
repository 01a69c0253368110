"""`armlet analyze`: which parts of a trained network can be pruned or quantised at little cost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from armlet.cli import options

if TYPE_CHECKING:
    from armlet.artifacts import Analysis


def analyze(
    recipe: options.RecipeFile,
    profile: options.Profile = "full",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder for analysis.json and analysis.svg; none by default."),
    ] = None,
    json: options.Json = False,
) -> int:
    """Prune each group of a recipe's trained network alone, quantise each layer alone, and compare.

    Trains the network first, unless the cache has it.
    """
    from armlet import api
    from armlet.analyze import analyze_plan
    from armlet.cli.console import run_display
    from armlet.cli.run_verb import watch_interruptions
    from armlet.store import Store, require_folder

    plan = api.plan(recipe, profile=profile)
    if output is not None:
        require_folder(output, "--output")  # before hours of work, not after
    with run_display(json) as display, watch_interruptions() as interrupted:
        found = analyze_plan(
            plan,
            store=Store(),
            progress=display,
            begin=display.begin,
            finish=display.finish,
            interrupted=interrupted,
        )
    files = _write(found, output) if output is not None else ()
    _print(found, files, json=json)
    return 0


def _write(analysis: Analysis, folder: Path) -> tuple[Path, ...]:
    from armlet import artifact_json
    from armlet.report.sensitivity import sensitivity_plot

    files = {"analysis.json": artifact_json.to_json(analysis)}
    if analysis.groups:
        files["analysis.svg"] = sensitivity_plot(analysis)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return tuple(folder / name for name in files)


def _print(analysis: Analysis, files: tuple[Path, ...], *, json: bool) -> None:
    from armlet import artifact_json
    from armlet.cli.console import print_json, stdout
    from armlet.report.sensitivity import groups_table, layers_table
    from armlet.scores import METRICS

    if json:
        print_json(artifact_json.to_data(analysis))
        return
    console, label = stdout(), METRICS[analysis.metric].label
    console.print(f"{analysis.recipe}: {label} on {analysis.n_samples} validation samples", style="bold")
    console.print(groups_table(analysis))
    if analysis.layers:
        console.print()
        console.print(layers_table(analysis))
    for file in files:
        console.print(f"{file}", soft_wrap=True)
