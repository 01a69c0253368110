"""The `passes:` section of a recipe, one closed model per pass, and the order they may come in."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from armlet.spec.passes.base import PassOptions
from armlet.spec.passes.cluster import ClusterWeights
from armlet.spec.passes.dead_units import RemoveDeadUnits
from armlet.spec.passes.distill import Distill, Finetune, Teaching
from armlet.spec.passes.factorize import Factorize
from armlet.spec.passes.prune import PruneChannels, PruneWeights
from armlet.spec.passes.quantize import QuantizeAware, QuantizeStatic

__all__ = [
    "ClusterWeights",
    "Distill",
    "Factorize",
    "PassOptions",
    "PassSpec",
    "PruneChannels",
    "PruneWeights",
    "QuantizeAware",
    "QuantizeStatic",
    "RemoveDeadUnits",
    "n_teachers",
    "order_problems",
]

PassSpec = Annotated[
    PruneChannels
    | PruneWeights
    | RemoveDeadUnits
    | ClusterWeights
    | Factorize
    | Distill
    | QuantizeStatic
    | QuantizeAware,
    Field(discriminator="kind"),
]


def order_problems(passes: tuple[PassOptions, ...]) -> list[tuple[int, str]]:
    """Return (position, message) for every pass that stands where it can't."""
    problems = []
    kinds = [p.kind for p in passes]  # type: ignore[attr-defined]  # every member of PassSpec has a kind
    for position, options in enumerate(passes):
        problems += [
            (
                position,
                f"{kinds[position]} can't come after {earlier} (pass {kinds.index(earlier) + 1}): {reason}",
            )
            for earlier, reason in options.never_after.items()
            if earlier in kinds[:position] and earlier != kinds[position]
        ]
        if options.once and kinds[position] in kinds[:position]:
            problems.append((position, f"{kinds[position]} stands twice; it can run only once"))
    return problems


def n_teachers(options: PassOptions) -> int:
    """Return how many trained networks a pass learns from, 1 where it needs none beside the usual one."""
    finetune = getattr(options, "finetune", None)
    teaching = finetune.distill if isinstance(finetune, Finetune) else options
    return teaching.teachers if isinstance(teaching, Teaching) else 1
