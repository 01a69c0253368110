"""`armlet compile`: an ONNX file of somebody else's as a program, without a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from armlet.cli import options

if TYPE_CHECKING:
    from armlet.bundle import Bundle
    from armlet.spec.recipe import Threads

ShapeOptions = Annotated[
    list[str],
    typer.Option(
        "--shape",
        metavar="NAME=1,3,224,224",
        help="Shape of an input that the file leaves open, with the batch of one; may be repeated.",
    ),
]


_THREADS: dict[str, Threads] = {"1": 1, "2": 2, "4": 4}


def compile_(  # noqa: PLR0913 - one parameter for each flag
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="ONNX file: float32 or quantised.")],
    target: Annotated[
        str, typer.Option("--target", "-t", metavar="TARGET", help="Name of a target, or a YAML file.")
    ] = "host",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The bundle's folder; build/NAME-TARGET.armlet by default."),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="Name of the program; by default that of the file.")
    ] = None,
    shape: ShapeOptions = [],  # noqa: B006 - typer reads it, nothing writes it
    inputs: Annotated[
        Path | None,
        typer.Option(
            "--inputs", metavar="DATA.npz", help="Samples to run, by the name of the input; drawn by default."
        ),
    ] = None,
    dump: Annotated[
        Path | None, typer.Option("--dump", metavar="DIR", help="Folder for what each compiler stage makes.")
    ] = None,
    optimize: Annotated[
        Literal["latency", "size"],
        typer.Option(
            "--optimize", help="What float32 kernels are chosen for; for latency, weights may grow."
        ),
    ] = "latency",
    precision: Annotated[
        Literal["float32", "float16"],
        typer.Option("--precision", help="What real numbers are within; float16 needs a target with fp16."),
    ] = "float32",
    threads: Annotated[
        Literal["1", "2", "4"],
        typer.Option("--threads", help="How many threads may compute one call of the program."),
    ] = "1",
    tiles: options.Tiles = [],  # noqa: B006 - typer reads it, nothing writes it
    latency: options.Latency = None,
    size: options.Size = None,
    memory: options.Memory = None,
    quiet: options.Quiet = False,
    json: options.Json = False,
) -> int:
    """Compile an ONNX file, run the program, compare it with ONNX Runtime, write a bundle and report.

    The file is taken as it stands: nothing is trained, compressed or scored. Exit 1 if a budget fails, or if an
    answer differs from ONNX Runtime's by more than rounding explains.
    """
    from armlet.cli.console import run_display
    from armlet.cli.run_verb import watch_interruptions
    from armlet.onnx_file import compile_file, request

    given = options.budgets([], latency=latency, size=size, memory=memory)
    asked = request(
        model,
        target,
        output=output,
        name=name,
        shapes=read_shapes(shape),
        inputs=inputs,
        budgets=given,
        dump=dump,
        optimize=optimize,
        precision=precision,
        threads=_THREADS[threads],
        tiles=tiles,
    )
    with run_display(quiet or json) as display, watch_interruptions() as interrupted:
        bundle = compile_file(
            asked, progress=display, begin=display.begin, finish=display.finish, interrupted=interrupted
        )
    _print(bundle, json=json)
    return 0 if bundle.manifest.verdict.passes else 1


def read_shapes(texts: list[str]) -> dict[str, tuple[int, ...]]:
    """Read NAME=1,3,224,224 of each input.

    Raises:
        UsageError: a text is something else.
    """
    return dict(_shape(text) for text in texts)


def _shape(text: str) -> tuple[str, tuple[int, ...]]:
    """Read NAME=1,3,224,224; a name may have any sign but the last `=`."""
    from armlet.errors import UsageError

    name, _, extents = text.rpartition("=")
    parts = extents.split(",")
    if not name or not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise UsageError(f"--shape {text}: write NAME=1,3,224,224, with whole numbers above zero")
    return name, tuple(int(part) for part in parts)


def _print(bundle: Bundle, *, json: bool) -> None:
    from armlet import artifact_json
    from armlet.cli.console import print_json, stdout
    from armlet.report.kernels import kernel_rows
    from armlet.report.tables import layers_table, verdict_table

    manifest = bundle.manifest
    compiled, measured = manifest.compiled, manifest.measured
    if json:
        print_json(
            {
                "name": manifest.name,
                "passes": manifest.verdict.passes,
                "bundle": str(bundle.folder),
                **artifact_json.to_data(manifest.verdict),
                "layers": [artifact_json.to_data(row) for row in kernel_rows(compiled, measured)],
            }
        )
        return
    console = stdout()
    console.print(f"{manifest.name} for {manifest.target.name}", style="bold")
    console.print(layers_table(compiled, measured))
    for fallback in compiled.fallbacks:
        console.print(f"fallback: {fallback.layer} ({fallback.op}): {fallback.reason}")
    console.print()
    console.print(verdict_table(manifest.verdict, bundle.folder))
