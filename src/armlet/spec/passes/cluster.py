"""Options of the pass that lets weights share values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from armlet.spec.base import ListOf
from armlet.spec.passes.base import QUANTIZING, PassOptions
from armlet.spec.passes.distill import Finetune


class ClusterWeights(PassOptions):
    """Let the weights of each layer share a few values (Han et al. 2016): stored smaller, not faster."""

    kind: Literal["cluster_weights"] = Field(description="The pass.")
    values: int = Field(16, ge=2, le=256, description="Different values that each layer's weight may have.")
    exclude: ListOf[str] = Field(
        (), description="Module names, or name patterns (*), left as they are, with all modules in them."
    )
    finetune: Finetune | None = Field(
        None, description="Train the shared values afterwards; none if left out."
    )
    never_after: ClassVar[Mapping[str, str]] = QUANTIZING
    once: ClassVar[bool] = True
    gains: ClassVar[str] = "stored smaller, not faster"
