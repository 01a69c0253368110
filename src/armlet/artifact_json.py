"""Artefacts as JSON, and as `artifact.json` in the folder of a finished step."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from pydantic import TypeAdapter

ARTIFACT_FILE = "artifact.json"

A = TypeVar("A")


@cache
def _make_adapter(kind: Any) -> TypeAdapter[Any]:  # noqa: ANN401 - a type, which no annotation can say
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _adapter(kind: Any) -> TypeAdapter[Any]:  # noqa: ANN401 - the same
    adapter: TypeAdapter[Any] = _make_adapter(kind)
    return adapter


def to_json(artifact: object) -> str:
    """Return an artefact as indented JSON."""
    return _adapter(type(artifact)).dump_json(artifact, indent=2).decode() + "\n"


def from_json(kind: type[A], text: str | bytes) -> A:
    """Read an artefact of type `kind` from JSON.

    Raises:
        pydantic.ValidationError: the JSON is not such an artefact.
    """
    artifact: A = _adapter(kind).validate_json(text)
    return artifact


def to_data(artifact: object) -> Any:  # noqa: ANN401 - JSON is whatever it is
    """Return an artefact as plain JSON-able data."""
    return _adapter(type(artifact)).dump_python(artifact, mode="json")


def save(artifact: object, folder: Path) -> None:
    """Write the artefact's JSON into its folder."""
    if not dataclasses.is_dataclass(artifact):
        raise TypeError(f"{type(artifact).__name__} is not an artefact")
    (folder / ARTIFACT_FILE).write_text(to_json(artifact), encoding="utf-8")


def load(kind: type[A], folder: Path) -> A:
    """Read the artefact of type `kind` from its folder."""
    return from_json(kind, (folder / ARTIFACT_FILE).read_bytes())
