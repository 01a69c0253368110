"""The table of model families: what builds a fresh module from a family's own options."""

from __future__ import annotations

import json
from typing import Protocol, TypeVar

from torch import nn

from armlet.artifacts import InputSpec
from armlet.errors import UsageError
from armlet.registry import Registry

T = TypeVar("T")


class Family(Protocol):
    """Builds a freshly initialised module of one family; weights come from torch's global CPU generator."""

    def __call__(
        self, options: str, inputs: tuple[InputSpec, ...], output_shape: tuple[int, ...]
    ) -> nn.Module:
        """Build the module that takes one tensor [N, *shape] for each input; `options` is JSON."""


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


def only_input(family: str, inputs: tuple[InputSpec, ...]) -> InputSpec:
    """Return the one float32 input of a family that takes no other.

    Raises:
        UsageError: there are several, or it holds integers.
    """
    if len(inputs) != 1 or inputs[0].dtype != "float32":
        raise UsageError(
            f"{family} takes one float32 input, not {', '.join(f'{i.name} ({i.dtype})' for i in inputs)}"
        )
    return inputs[0]


def n_classes_of(family: str, output_shape: tuple[int, ...]) -> int:
    """Return the width of the answer of a family that answers with one row of numbers.

    Raises:
        UsageError: the answer has another shape.
    """
    if len(output_shape) != 1:
        raise UsageError(f"{family} answers with one row of numbers, not with the shape {list(output_shape)}")
    return output_shape[0]


def frames_of(family: str, inputs: tuple[InputSpec, ...]) -> tuple[int, int]:
    """Return frames and channels of a family that takes sequences [T, C], with or without a length.

    Raises:
        UsageError: the inputs are something else.
    """
    lengths = [spec for spec in inputs[1:] if spec.dtype == "int32" and spec.shape == ()]
    if (
        not inputs
        or inputs[0].dtype != "float32"
        or len(inputs[0].shape) != 2
        or len(lengths) != len(inputs) - 1
    ):
        raise UsageError(
            f"{family} takes sequences [T, C], not {', '.join(f'{i.name} {list(i.shape)}' for i in inputs)}"
        )
    n_frames, n_channels = inputs[0].shape
    return n_frames, n_channels
