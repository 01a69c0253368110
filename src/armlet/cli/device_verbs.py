"""`armlet devices probe`: what a device is, and a target file for it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from armlet.cli import options

app = typer.Typer(no_args_is_help=True, help="Ask devices what they are.", rich_markup_mode=None)


@app.callback()
def _devices() -> None:
    """Ask devices what they are."""


@app.command("probe")
def probe(
    device: Annotated[str, typer.Argument(help="host, or ssh://[user@]host[:port].")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write a target file for the device."),
    ] = None,
    timeout: Annotated[
        float, typer.Option("--timeout", help="Longest wait for the device, in seconds.")
    ] = 30.0,
    json: options.Json = False,
) -> None:
    """Print a device's cores, clocks, caches, extensions, memory and system; with -o, write a target file for it."""
    from armlet import artifact_json
    from armlet.cli.console import print_json, stdout
    from armlet.devices.probe import probe as ask
    from armlet.devices.probe import state
    from armlet.devices.proposal import propose_target
    from armlet.devices.routes import open_board
    from armlet.errors import UsageError
    from armlet.report.bench import device_lines

    if output and output.exists():
        raise UsageError(f"{output} is there already; give another name")
    with open_board(device, timeout).open() as place:
        facts, now = ask(place), state(place)
    if json:
        print_json(artifact_json.to_data(facts) | {"state": artifact_json.to_data(now)})
    else:
        for line in device_lines(facts):
            stdout().print(line)
    if output:
        output.write_text(propose_target(facts, output.stem), encoding="utf-8")
        typer.echo(f"wrote {output}: check it, then use it as --target {output}", err=True)
