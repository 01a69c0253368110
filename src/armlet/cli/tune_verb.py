"""`armlet tune`: a table of the tiles that are best for a network's kernels on a core."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from armlet.cli import options
from armlet.cli.compile_verb import ShapeOptions

if TYPE_CHECKING:
    from armlet.artifacts import TileTable


def tune(  # noqa: PLR0913 - one parameter for each flag
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="An ONNX file, a recipe, or a bundle: whose kernels.")
    ],
    target: Annotated[
        str, typer.Option("--target", "-t", metavar="TARGET", help="Name of a target, or a YAML file.")
    ] = "host",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The table, added to; build/tiles-CORE.json by default."),
    ] = None,
    profile: options.Profile = "full",
    shape: ShapeOptions = [],  # noqa: B006 - typer reads it, nothing writes it
    precision: Annotated[
        Literal["float32", "float16"],
        typer.Option("--precision", help="Of an ONNX file; recipes and bundles say it themselves."),
    ] = "float32",
    quiet: options.Quiet = False,
    json: options.Json = False,
) -> int:
    """Try the tiles of each kernel of a network and write a table of the best, for --tiles of run and compile.

    On an emulated board costs are modelled cycles, the same every time; on this machine they are timed. Kernels that
    the table has are kept: interrupted, the same command goes on where it stopped.
    """
    from armlet import artifact_json
    from armlet.cli.compile_verb import read_shapes
    from armlet.cli.console import print_json, run_display
    from armlet.cli.run_verb import watch_interruptions
    from armlet.spec.load import load_target
    from armlet.tune import default_file, source_of, tune_kernels

    board = load_target(target)
    file = output or default_file(board)
    with run_display(quiet or json) as display, watch_interruptions():
        shapes = read_shapes(shape)
        with source_of(
            source, board, display, profile=profile, shapes=shapes, precision=precision
        ) as network:
            table = tune_kernels(network, board, file, display)
    if json:
        print_json({"file": str(file), **artifact_json.to_data(table)})
    else:
        _print(table, file)
    return 0


def _print(table: TileTable, file: Path) -> None:
    from rich.table import Table

    from armlet.cli.console import stdout

    rows = Table(box=None, pad_edge=False)
    rows.add_column("kernel", overflow="fold")
    for column in ("formula", table.unit, "best", table.unit, "ratio"):
        rows.add_column(column, justify="right", no_wrap=True)
    for kernel in table.kernels:
        ratio = kernel.cost / kernel.formula_cost if kernel.formula_cost else 1.0
        tiles = (f"{tile[0]} × {tile[1]}" for tile in (kernel.formula, kernel.tile))
        costs = (f"{cost:,.0f}" for cost in (kernel.formula_cost, kernel.cost))
        pairs = [cell for pair in zip(tiles, costs, strict=True) for cell in pair]
        rows.add_row(kernel.kernel, *pairs, f"{ratio:.2f}")
    console = stdout()
    console.print(rows)
    console.print(f"{table.unit}: {table.how}")
    console.print(f"{file}: use it with --tiles {file}", soft_wrap=True)
