"""`armlet run`: the whole way, from a recipe to bundles and a verdict."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from armlet.cli import options

if TYPE_CHECKING:
    from armlet.flow import RunResult


def run(  # noqa: PLR0913 - one parameter for each flag
    recipe: options.RecipeFile,
    target: options.Targets = ["host"],  # noqa: B006 - typer reads it, nothing writes it
    profile: options.Profile = "full",
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the bundles.")] = Path("build"),
    accuracy: options.Accuracy = None,
    accuracy_drop: options.AccuracyDrop = None,
    worst_class_accuracy_drop: options.WorstDrop = None,
    latency: options.Latency = None,
    size: options.Size = None,
    memory: options.Memory = None,
    budget: options.Budget = [],  # noqa: B006 - typer reads it, nothing writes it
    tiles: options.Tiles = [],  # noqa: B006 - typer reads it, nothing writes it
    distributed: Annotated[
        int | None,
        typer.Option(
            "--distributed", min=1, metavar="N", help="Train in N processes, each on a GPU of its own."
        ),
    ] = None,
    quiet: options.Quiet = False,
    json: options.Json = False,
) -> int:
    """Fetch data, train, compress, compile, run, check budgets, write bundle and report.

    Finished steps are kept in the cache: a second run does only what changed. Ctrl-C is safe at any time; the same
    command goes on where it stopped. Budget flags replace the recipe's budgets.
    """
    from armlet import api
    from armlet.cli.console import run_display
    from armlet.flow import run_plan
    from armlet.store import Store

    given = options.budgets(
        budget,
        accuracy=accuracy,
        accuracy_drop=accuracy_drop,
        worst_class_accuracy_drop=worst_class_accuracy_drop,
        latency=latency,
        size=size,
        memory=memory,
    )
    plan = api.plan(recipe, target, profile=profile, budgets=given, processes=distributed, tiles=tiles)
    with run_display(quiet or json) as display, watch_interruptions() as interrupted:
        result = run_plan(
            plan,
            store=Store(),
            output=output,
            progress=display,
            begin=display.begin,
            finish=display.finish,
            interrupted=interrupted,
        )
    _print_json(result) if json else _print_tables(result)
    return 0 if result.passes else 1


@contextmanager
def watch_interruptions() -> Iterator[Callable[[], bool]]:
    """Remember Ctrl-C, beside raising it: libraries swallow it in callbacks and half-done imports."""
    import signal
    from types import FrameType

    seen: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        seen.append(number)
        signal.default_int_handler(number, frame)

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield lambda: bool(seen)
    finally:
        signal.signal(signal.SIGINT, before)


def _print_tables(result: RunResult) -> None:
    from armlet import artifact_json
    from armlet.artifacts import Compressed, Latency, Measured, PassRecord, ProgramCost
    from armlet.cli.console import stdout
    from armlet.report.tables import passes_table, verdict_table

    console = stdout()
    passes: list[PassRecord] = []
    latencies: dict[str, list[Latency | None]] = {}
    for done in result.steps:
        stage, target = done.step.stage, done.step.target
        if stage == "pass":
            passes.append(artifact_json.load(Compressed, done.folder).record)
        elif target is not None and stage == "program_cost":
            cost = artifact_json.load(ProgramCost, done.folder)
            latencies.setdefault(target.name, []).append(cost.latency)
        elif target is not None and stage == "measure" and target.name in latencies:
            latencies[target.name].append(artifact_json.load(Measured, done.folder).latency)
    if passes:
        console.print(passes_table(passes, latencies))
    for verdict, bundle in zip(result.verdicts, result.bundles, strict=True):
        console.print(f"\n{result.plan.recipe.name} for {verdict.target}", style="bold")
        console.print(verdict_table(verdict, bundle))


def _print_json(result: RunResult) -> None:
    from armlet import artifact_json
    from armlet.cli.console import print_json

    print_json(
        {
            "recipe": result.plan.recipe.name,
            "profile": result.plan.profile,
            "passes": result.passes,
            "targets": [
                {"target": verdict.target, "passes": verdict.passes, "bundle": str(bundle)}
                | artifact_json.to_data(verdict)
                for verdict, bundle in zip(result.verdicts, result.bundles, strict=True)
            ],
            "steps": [
                {
                    "name": step.step.name,
                    "key": step.step.key,
                    "cached": step.cached,
                    "seconds": round(step.seconds, 3),
                }
                for step in result.steps
            ],
        }
    )
