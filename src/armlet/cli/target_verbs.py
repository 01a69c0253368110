"""`armlet targets list|show|validate`: the boards that programs can be compiled for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from armlet.cli import options

if TYPE_CHECKING:
    from armlet.spec.target import Target

app = typer.Typer(no_args_is_help=True, help="List, show and validate targets.", rich_markup_mode=None)


@app.command("list")
def list_(json: options.Json = False) -> None:
    """List the targets that come with armlet."""
    from armlet.cli.console import print_json, stdout
    from armlet.spec.load import load_target, shipped_targets

    found = [load_target(name) for name in shipped_targets()]
    if json:
        print_json([target.model_dump(mode="json") for target in found])
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("name", "description", "features", "variants"):
        table.add_column(column)
    for target in found:
        table.add_row(target.name, target.description, " ".join(target.features), " ".join(target.variants))
    stdout().print(table)


@app.command("show")
def show(target: Annotated[str, typer.Argument(help="Name of a target or a YAML file.")]) -> None:
    """Print everything that is known of a target, as JSON."""
    from armlet.cli.console import print_json
    from armlet.spec.load import load_target

    print_json(load_target(target).model_dump(mode="json"))


@app.command("validate")
def validate(target: Annotated[str, typer.Argument(help="Name of a target or a YAML file.")]) -> None:
    """Check a target: every key, that compiler, emulator and cost model know its core, that its tools are here."""
    from armlet.preflight import require_target
    from armlet.spec.load import load_target

    found = load_target(target)
    require_target(found)
    typer.echo(f"{found.name}: programs can be compiled for it, and are {_what_runs(found)}")


def _what_runs(target: Target) -> str:
    if target.compiled_only:
        return "not run"
    latency = (
        "measured" if target.is_native
        else "estimated" if target.core.cost_model and target.calibration and target.core.clock_mhz
        else "not estimated"
    )  # fmt: skip
    return f"run on {target.device}; latency is {latency}"
