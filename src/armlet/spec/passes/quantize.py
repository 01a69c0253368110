"""Options of the passes that make a network compute on integers."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, PositiveInt

from armlet.spec.base import ListOf
from armlet.spec.passes.base import PassOptions


class QuantizeStatic(PassOptions):
    """Static INT8 after training: per-channel symmetric weights, per-tensor asymmetric activations."""

    kind: Literal["quantize_static"] = Field(description="The pass.")
    calibration_samples: PositiveInt = Field(512, description="Training samples that the ranges come from.")
    observer: Literal["min_max", "percentile"] = Field(
        "min_max", description="How the range of an activation comes from its samples."
    )
    percentile: float = Field(99.99, gt=50.0, le=100.0, description="Of the percentile observer.")
    exclude: ListOf[str] = Field(
        (), description="Module names, or name patterns (*), that stay float, with all modules in them."
    )
    never_after: ClassVar[tuple[str, ...]] = ("quantize_static",)
    once: ClassVar[bool] = True
