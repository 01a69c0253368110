"""The table of model families: what builds a fresh module from a family's own options."""

from __future__ import annotations

import json
from typing import Protocol, TypeVar

from torch import nn

from armlet.errors import UsageError
from armlet.registry import Registry

T = TypeVar("T")


class Family(Protocol):
    """Builds a freshly initialised module of one family; weights come from torch's global CPU generator."""

    def __call__(self, options: str, input_shape: tuple[int, ...], n_outputs: int) -> nn.Module:
        """Build the module for one sample's `input_shape`, without the batch; `options` is JSON."""


FAMILIES: Registry[Family] = Registry("model family")


def parse_options(kind: type[T], options: str) -> T:
    """Read a family's options, a flat JSON object, into its dataclass.

    Raises:
        UsageError: the JSON is no object, or has keys that the family lacks.
    """
    data = json.loads(options)
    if not isinstance(data, dict):
        raise UsageError(f"model options {options} are not a JSON object")
    try:
        return kind(
            **{key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}
        )
    except TypeError as error:
        raise UsageError(f"model options {options} don't fit {kind.__name__}: {error}") from None
