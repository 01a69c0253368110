"""Options of the passes that make a network compute on integers."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, PositiveInt

from armlet.spec.base import ListOf
from armlet.spec.passes.base import PassOptions


class QuantizeStatic(PassOptions):
    """Static INT8 after training: batch normalisation folded, ranges from calibration samples, integer weights."""

    kind: Literal["quantize_static"] = Field(description="The pass.")
    calibration_samples: PositiveInt = Field(512, description="Training samples that the ranges come from.")
    observer: Literal["min_max", "moving_average", "percentile", "entropy", "mse"] = Field(
        "min_max", description="How the range of an activation comes from its samples."
    )
    percentile: float = Field(99.99, gt=50.0, le=100.0, description="Of the percentile observer.")
    averaging: float = Field(
        0.1, gt=0.0, le=1.0, description="Weight of a new batch of 64 samples; moving_average observer."
    )
    activations: Literal["asymmetric", "symmetric"] = Field(
        "asymmetric", description="Whether the zero point of activations is free or 0."
    )
    weights: Literal["per_channel", "per_tensor"] = Field(
        "per_channel", description="Whether each output channel has a scale of its own."
    )
    weight_range: Literal["max", "mse"] = Field(
        "max", description="Whether the largest weight fits, or the squared error of all is least."
    )
    exclude: ListOf[str] = Field(
        (), description="Module names, or name patterns (*), that stay float, with all modules in them."
    )
    never_after: ClassVar[tuple[str, ...]] = ("quantize_static",)
    once: ClassVar[bool] = True
