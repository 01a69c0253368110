"""Gives targets the tiles of tables that `armlet tune` made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from armlet import artifact_json
from armlet.artifacts.tiles import TILES_VERSION, TileTable
from armlet.errors import Problem, UsageError
from armlet.spec.target import Target, TileChoice


def read_table(path: Path) -> TileTable:
    """Read a table.

    Raises:
        UsageError: there is none, it is something else, or it is of another version of armlet.
    """
    try:
        table = artifact_json.from_json(TileTable, path.read_bytes())
    except OSError as error:
        raise UsageError(Problem(f"can't be read: {error.strerror}", file=path)) from error
    except ValidationError as error:
        raise UsageError(Problem("is no table of tiles: armlet tune makes them", file=path)) from error
    if table.version != TILES_VERSION:
        message = f"is a table of version {table.version}, not {TILES_VERSION}"
        raise UsageError(Problem(message, file=path, hint="make it again with armlet tune"))
    return table


def with_tiles(targets: Sequence[Target], files: Sequence[Path]) -> tuple[Target, ...]:
    """Return the targets, those whose core a table is for with its tiles in the place of their own.

    Raises:
        UsageError: as `read_table`; or a table is for none of the targets, or two are for one.
    """
    found: dict[str, Path] = {}
    tiles: dict[str, tuple[TileChoice, ...]] = {}
    tiled = [target for target in targets if target.gpu is None]
    cores = sorted({target.resolved_cpu for target in tiled})
    for path in files:
        table = read_table(path)
        if table.core not in cores:
            message = f"is for the core {table.core}, but the program is for {', '.join(cores) or 'a GPU'}"
            raise UsageError(Problem(message, file=path, hint="armlet tune makes a table for a target"))
        if table.core in tiles:
            raise UsageError(Problem(f"is for {table.core} like {found[table.core]}: give one", file=path))
        found[table.core] = path
        tiles[table.core] = tuple(TileChoice(kernel=k.kernel, tile=k.tile) for k in table.gaining)
    return tuple(
        target.model_copy(update={"tiles": tiles[target.resolved_cpu]})
        if target in tiled and target.resolved_cpu in tiles
        else target
        for target in targets
    )
