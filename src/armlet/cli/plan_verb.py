"""`armlet plan`: what a run would do, and what of it is there already."""

from __future__ import annotations

from armlet.cli import options


def plan(  # noqa: PLR0913 - one parameter for each flag
    recipe: options.RecipeFile,
    target: options.Targets = ["host"],  # noqa: B006 - typer reads it, nothing writes it
    profile: options.Profile = "full",
    accuracy: options.Accuracy = None,
    accuracy_drop: options.AccuracyDrop = None,
    worst_class_accuracy_drop: options.WorstDrop = None,
    latency: options.Latency = None,
    size: options.Size = None,
    memory: options.Memory = None,
    budget: options.Budget = [],  # noqa: B006 - typer reads it, nothing writes it
    json: options.Json = False,
) -> None:
    """Print the steps of a run and which are cached, without doing any."""
    from armlet import api
    from armlet.cli.console import print_json, stdout
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
    steps, store = api.plan(recipe, target, profile=profile, budgets=given).steps, Store()
    rows = [(step, store.has(step.key)) for step in steps]
    if json:
        print_json(
            [{"name": s.name, "what": s.what, "key": s.key, "needs": s.needs, "cached": c} for s, c in rows]
        )
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("step", "what", "cached", "key"):
        table.add_column(column, style="dim" if column == "key" else "")
    for step, cached in rows:
        table.add_row(step.name, step.what, "yes" if cached else "no", step.key[:12])
    console = stdout()
    console.print(table)
    n_cached = sum(cached for _, cached in rows)
    console.print(
        f"\n{len(rows)} steps, {n_cached} cached, {len(rows) - n_cached} to do; cache: {store.root}"
    )
