"""Options that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RecipeFile = Annotated[Path, typer.Argument(help="Recipe file, such as recipes/cnn-fashion-mnist.yaml.")]
Targets = Annotated[
    list[str],
    typer.Option(
        "--target",
        "-t",
        metavar="TARGET",
        help="Name of a target (armlet targets list) or a YAML file; may be repeated.",
    ),
]
Profile = Annotated[str, typer.Option("--profile", "-p", help="Profile of the recipe: full, smoke, ...")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print tables and verdict, no progress.")]
BundleFolder = Annotated[Path, typer.Argument(help="A bundle, such as build/NAME-TARGET.armlet.")]
Accuracy = Annotated[str | None, typer.Option("--accuracy", metavar="SHARE", help='Least accuracy, "90 %".')]
AccuracyDrop = Annotated[
    str | None, typer.Option("--accuracy-drop", metavar="SHARE", help='Most accuracy lost, "1.5 %".')
]
WorstDrop = Annotated[
    str | None,
    typer.Option("--worst-class-accuracy-drop", metavar="SHARE", help='Most lost by any class, "5 %".'),
]
Tiles = Annotated[
    list[Path],
    typer.Option(
        "--tiles", metavar="TILES.json", help="Table of tiles from armlet tune, by its core; may be repeated."
    ),
]
Latency = Annotated[
    str | None, typer.Option("--latency", metavar="TIME", help='Most time for one inference, "5 ms".')
]
Size = Annotated[
    str | None, typer.Option("--size", metavar="BYTES", help='Most code and constants, "96 KiB".')
]
Memory = Annotated[
    str | None, typer.Option("--memory", metavar="BYTES", help='Most working memory, "64 KiB".')
]
Budget = Annotated[
    list[str],
    typer.Option(
        "--budget", "-b", metavar="KEY=VALUE", help='Any budget of a recipe, "roc_auc=0.99"; may be repeated.'
    ),
]


def budgets(pairs: list[str], **given: str | None) -> dict[str, object]:
    """Return the budgets that were given, by their key in a recipe: flags of their own, and KEY=VALUE.

    Raises:
        UsageError: a pair is not one, or a budget is given twice.
    """
    from armlet.errors import UsageError

    found: dict[str, object] = {key: value for key, value in given.items() if value is not None}
    for pair in pairs:
        key, sign, value = pair.partition("=")
        if not sign:
            raise UsageError(f"--budget {pair}: write KEY=VALUE, such as roc_auc=0.99")
        if key in found:
            raise UsageError(f"--budget {key} is given twice")
        try:
            found[key] = float(value)  # a plain number; what has a unit stays text
        except ValueError:
            found[key] = value
    return found
