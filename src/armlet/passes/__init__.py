"""Passes that make a trained network smaller or faster, each a checked contract."""

from __future__ import annotations

from armlet.passes import cluster, distill  # noqa: F401 - registers the passes
from armlet.passes.base import (
    PASSES,
    PassContext,
    PassContractBroken,
    PostconditionFailed,
    PreconditionFailed,
)
from armlet.passes.factorize import factorize  # noqa: F401 - registers the pass
from armlet.passes.manager import run_pass
from armlet.passes.prune import (  # noqa: F401 - registers the passes
    prune_channels,
    prune_weights,
    remove_dead_units,
)
from armlet.passes.quantize import quantize_aware, quantize_static  # noqa: F401 - registers the passes

__all__ = [
    "PASSES",
    "PassContext",
    "PassContractBroken",
    "PostconditionFailed",
    "PreconditionFailed",
    "run_pass",
]
