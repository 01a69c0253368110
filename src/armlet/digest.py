"""SHA-256 of bytes, files, folders, source code and canonical JSON: the one way that armlet names content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

_CHUNK = 1 << 20


def of_bytes(data: bytes) -> str:
    """Return the hexadecimal SHA-256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def of_file(path: Path) -> str:
    """Return the hexadecimal SHA-256 of the file's content."""
    state = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            state.update(chunk)
    return state.hexdigest()


def of_json(value: object) -> str:
    """Return the SHA-256 of the canonical JSON of `value` (sorted keys, no white space, no NaN)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)
    return of_bytes(text.encode())


def of_folder(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file below `folder`, by its POSIX path relative to it, sorted."""
    return {
        path.relative_to(folder).as_posix(): of_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def of_sources(paths: Iterable[Path]) -> str:
    """Return one SHA-256 over source files and folders of them (their names below it and their bytes)."""
    found: dict[str, str] = {}
    for path in paths:
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        for file in files:
            if file.suffix != ".pyc":
                found[f"{path.name}/{file.relative_to(path).as_posix()}" if path.is_dir() else file.name] = (
                    of_file(file)
                )
    return of_json(found)
