"""What every model of user-written data shares: closed, immutable, with units read from text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, WithJsonSchema

from armlet.units import (
    parse_bytes,
    parse_decibels,
    parse_fraction,
    parse_milliseconds,
    parse_share_or_count,
)


class Spec(BaseModel):
    """Base of recipes, targets and their parts: unknown keys and wrong types are refused, values can't be changed."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)


def refuse_idle(options: Spec, names: Iterable[str], needed: str) -> None:
    """Refuse options that are set, to another value than their default, and do nothing.

    Args:
        options: the model.
        names: of options that do nothing as the others are.
        needed: what would have to be set for them to do something.

    Raises:
        ValueError: names those that are set.
    """
    fields = type(options).model_fields
    given = [name for name in names if getattr(options, name) != fields[name].default]
    if given:
        do, them = ("do", "them") if len(given) > 1 else ("does", "it")
        raise ValueError(f"{' and '.join(given)} {do} nothing without {needed}: leave {them} out")


T = TypeVar("T")

ListOf = Annotated[tuple[T, ...], Field(strict=False)]
"""A YAML list, held as a tuple; its items are still of the type that is meant: true is no number, nor is "5"."""

_JSON = "json"

Fraction = Annotated[
    float,
    BeforeValidator(parse_fraction),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "minimum": 0, "maximum": 1},
                {"type": "string", "pattern": r"^\s*\d+(\.\d+)?\s*%\s*$", "examples": ["90 %"]},
            ]
        },
        mode="validation",
    ),
]
"""A share from 0 to 1, written "90 %" or 0.9."""

ShareOrCount = Annotated[
    float,
    BeforeValidator(parse_share_or_count),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "minimum": 0},
                {
                    "type": "string",
                    "pattern": r"^\s*\d+(\.\d+)?\s*(%|k|M|G)\s*$",
                    "examples": ["25 %", "500 k"],
                },
            ]
        },
        mode="validation",
    ),
]
"""A share up to 1, written "25 %" or 0.25, or a count from 1000 on, written "500 k", "2 M" or as a whole number."""

Milliseconds = Annotated[
    float,
    BeforeValidator(parse_milliseconds),
    PlainSerializer(lambda ms: f"{ms!r} ms", return_type=str, when_used=_JSON),
    WithJsonSchema(
        {
            "type": "string",
            "pattern": r"^\s*\d+(\.\d+)?\s*(ns|us|µs|ms|s)\s*$",
            "examples": ["5 ms"],
        },
        mode="validation",
    ),
]
"""A duration, written with its unit ("5 ms"); held in milliseconds."""

Decibels = Annotated[
    float,
    BeforeValidator(parse_decibels),
    PlainSerializer(lambda db: f"{db!r} dB", return_type=str, when_used=_JSON),
    WithJsonSchema(
        {"type": "string", "pattern": r"^\s*\d+(\.\d+)?\s*dB\s*$", "examples": ["6 dB"]}, mode="validation"
    ),
]
"""A ratio in decibels, written with its unit ("6 dB")."""

Bytes = Annotated[
    int,
    BeforeValidator(parse_bytes),
    PlainSerializer(lambda n: f"{n} B", return_type=str, when_used=_JSON),
    WithJsonSchema(
        {
            "type": "string",
            "pattern": r"^\s*\d+(\.\d+)?\s*(B|KiB|MiB|GiB|kB|MB|GB)\s*$",
            "examples": ["96 KiB"],
        },
        mode="validation",
    ),
]
"""A size, written with its unit ("96 KiB"); held in bytes."""
