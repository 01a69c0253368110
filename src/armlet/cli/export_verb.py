"""`armlet export`: a recipe's network as files that others can use, with a model card."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from armlet.cli import options

FormatNames = Annotated[
    list[str],
    typer.Option(
        "--format", "-f", metavar="FORMAT", help="safetensors, pt2 or onnx; may be repeated; all by default."
    ),
]


def export(
    recipe: options.RecipeFile,
    profile: options.Profile = "full",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder to write into; build/NAME-model by default.")
    ] = None,
    format_: FormatNames = [],  # noqa: B006 - typer reads it, nothing writes it
    trained: Annotated[bool, typer.Option("--trained", help="The trained network, before any pass.")] = False,
    json: options.Json = False,
) -> int:
    """Write the network of a recipe as .safetensors, .pt2 and ONNX, with a model card.

    Trains and compresses it first, unless the cache has it.
    """
    from armlet import api
    from armlet.cli.console import print_json, run_display, stdout
    from armlet.cli.run_verb import watch_interruptions
    from armlet.flow import run_steps
    from armlet.handout import chosen_formats, default_folder, hand_out, handed_out_steps, require_place
    from armlet.store import Store

    formats = chosen_formats(format_)
    plan = api.plan(recipe, profile=profile)
    folder = output or default_folder(plan)
    require_place(folder)
    with run_display(json) as display, watch_interruptions() as interrupted:
        steps = run_steps(
            plan,
            handed_out_steps(plan, compressed=not trained),
            store=Store(),
            progress=display,
            begin=display.begin,
            finish=display.finish,
            interrupted=interrupted,
        )
        written = hand_out(plan, steps, folder, formats, compressed=not trained)
    if json:
        names = [path.relative_to(written.folder).as_posix() for path in written.files]
        print_json({"folder": str(written.folder), "files": names})
    else:
        for path in written.files:
            stdout().print(f"{path}  {path.stat().st_size} bytes", soft_wrap=True)
    return 0
