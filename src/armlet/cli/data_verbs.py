"""`armlet data list|fetch|verify`: the data sets that recipes can name."""

from __future__ import annotations

from typing import Annotated

import typer

from armlet.cli import options

app = typer.Typer(no_args_is_help=True, help="List, fetch and verify data sets.", rich_markup_mode=None)

Kinds = Annotated[list[str] | None, typer.Argument(help="Data sets; all if left out.")]


@app.command("list")
def list_(json: options.Json = False) -> None:
    """List the data sets with licence and state on this machine."""
    from armlet import data
    from armlet.cli.console import print_json, stdout
    from armlet.store import cache_root

    folder = cache_root() / "data"
    rows = [(kind, data.licence(kind), data.is_fetched(kind, folder)) for kind in data.kinds()]
    if json:
        print_json(
            [
                {"kind": k, "licence": text, "fetched": here, "sha256": list(data.digests(k))}
                for k, text, here in rows
            ]
        )
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("kind", "fetched", "licence"):
        table.add_column(column)
    for kind, text, here in rows:
        table.add_row(kind, "yes" if here else "no", text)
    stdout().print(table)


@app.command("fetch")
def fetch(kinds: Kinds = None) -> None:
    """Fetch data sets and verify them; what is there already is only verified."""
    from armlet import data
    from armlet.cli.console import run_display
    from armlet.errors import MissingDependency
    from armlet.store import cache_root

    folder = cache_root() / "data"
    missing: list[MissingDependency] = []
    with run_display() as display:
        for kind in kinds or data.kinds():
            try:
                ready, _ = data.fetch(kind, folder, display)
            except MissingDependency as error:  # the others may be had all the same
                missing.append(error)
                continue
            display.say(f"{kind}: {ready.n_train} training and {ready.n_test} test samples, {ready.licence}")
        for other in missing[:-1]:
            display.say(str(other))
    if missing:
        raise missing[-1]


@app.command("verify")
def verify(kinds: Kinds = None) -> int:
    """Verify the data sets on this machine against their SHA-256. Exit 2 if a file is corrupted or missing."""
    from armlet import data
    from armlet.errors import UsageError
    from armlet.store import cache_root

    folder = cache_root() / "data"
    # Also those that lack a file: a set that is only half there is what this verb is to find.
    chosen = kinds or [kind for kind in data.kinds() if any((folder / kind).glob("[!.]*"))]
    problems = [problem for kind in chosen for problem in data.verify(kind, folder)]
    if problems:
        raise UsageError(problems)
    typer.echo(f"verified: {', '.join(chosen)}" if chosen else "no data set is fetched; armlet data fetch")
    return 0
