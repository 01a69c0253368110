"""Refuses names of modules in passes' options that fit nothing in the network, before it is trained."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from armlet.errors import Problem, UsageError
from armlet.spec.passes.distill import Teaching
from armlet.spec.recipe import Recipe

if TYPE_CHECKING:
    from torch import nn


def refuse_unknown_names(recipe: Recipe, module: nn.Module) -> None:
    """Refuse names in `exclude`, `exclude_types` and `layers` that fit no module of the network before its passes.

    Behind a factorisation modules may have other names: passes there look for themselves.

    Raises:
        UsageError: names each, and where it stands.
    """
    problems = []
    for position, options in enumerate(recipe.passes):
        problems += [
            Problem(message, key=f"passes.{position}.{key}") for key, message in _unknown(options, module)
        ]
        if options.kind == "factorize":
            break
    if problems:
        raise UsageError(problems)


def _unknown(options: object, module: nn.Module) -> Iterator[tuple[str, str]]:
    from armlet.passes.base import unmatched
    from armlet.passes.quantize.common import unmatched_types
    from armlet.train.distillation.layers import unknown_layers

    for message in unmatched(getattr(options, "exclude", ()), module):
        yield "exclude", message
    for message in unmatched_types(getattr(options, "exclude_types", ()), module):
        yield "exclude_types", message
    sections = {
        "": options,
        "finetune.distill.": getattr(getattr(options, "finetune", None), "distill", None),
        "group_lasso.distill.": getattr(getattr(options, "group_lasso", None), "distill", None),
    }
    for where, teaching in sections.items():
        for number, term in enumerate(teaching.terms if isinstance(teaching, Teaching) else ()):
            for message in unknown_layers(getattr(term, "layers", ()), module):
                yield f"{where}terms.{number}.layers", message
