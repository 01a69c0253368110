"""`armlet ablate`: what each pass of a recipe contributes, alone and beside the others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from armlet.cli import options

if TYPE_CHECKING:
    from armlet.artifacts import Ablation


def ablate(
    recipe: options.RecipeFile,
    target: Annotated[
        str, typer.Option("--target", "-t", metavar="TARGET", help="Name of a target, or a YAML file.")
    ] = "host",
    profile: options.Profile = "full",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder for ablation.json and ablation.svg; none by default."),
    ] = None,
    json: options.Json = False,
) -> int:
    """Run a recipe without passes, with each pass alone, with all but each, and with all; compare.

    Steps that variants share are done once, and what the cache has is not done again.
    """
    from armlet import api
    from armlet.ablate import ablate_plan
    from armlet.cli.console import run_display
    from armlet.cli.run_verb import watch_interruptions
    from armlet.store import Store, require_folder

    plan = api.plan(recipe, (target,), profile=profile)
    if output is not None:
        require_folder(output, "--output")  # before hours of work, not after
    with run_display(json) as display, watch_interruptions() as interrupted:
        found = ablate_plan(
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


def _write(ablation: Ablation, folder: Path) -> tuple[Path, ...]:
    from armlet import artifact_json
    from armlet.report.ablation import ablation_plot

    files = {"ablation.json": artifact_json.to_json(ablation), "ablation.svg": ablation_plot(ablation)}
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return tuple(folder / name for name in files)


def _print(ablation: Ablation, files: tuple[Path, ...], *, json: bool) -> None:
    from armlet import artifact_json
    from armlet.cli.console import print_json, stdout
    from armlet.report.ablation import contributions_table, variants_table

    if json:
        print_json(artifact_json.to_data(ablation))
        return
    console = stdout()
    console.print(f"{ablation.recipe} for {ablation.target}", style="bold")
    console.print(variants_table(ablation))
    console.print()
    console.print(contributions_table(ablation))
    for file in files:
        console.print(f"{file}", soft_wrap=True)
