"""Options of the passes that make layers products of smaller ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field, PositiveInt, model_validator

from armlet.spec.base import Fraction, ListOf, refuse_idle
from armlet.spec.passes.base import QUANTIZING, PassOptions
from armlet.spec.passes.distill import Finetune


class Factorize(PassOptions):
    """Low-rank factorisation of linear, convolutional and recurrent layers, where the factors cost less."""

    kind: Literal["factorize"] = Field(description="The pass.")
    energy: Fraction | None = Field(
        None,
        gt=0.0,
        description="Share of the squared singular values of each layer's weights that its rank keeps.",
    )
    ratio: Fraction | None = Field(None, lt=1.0, description="Share of each layer's ranks that goes.")
    macs: Fraction | None = Field(
        None, gt=0.0, description="Share of the network's multiply-accumulates that may be left."
    )
    parameters: Fraction | None = Field(
        None, gt=0.0, description="Share of the network's parameters that may be left."
    )
    nearest: Literal["weights", "results"] = Field(
        "results",
        description=(
            "What the factors are nearest to. weights: the layer's own; results: what it computes on calibration"
            " samples, where it is linear, a 1×1 convolution or recurrent; budgets then spare those, too."
        ),
    )
    calibration_samples: PositiveInt = Field(
        512, description="Training samples that results are looked at on."
    )
    convolutions: Literal["tucker", "spatial", "cp", "none"] = Field(
        "tucker",
        description=(
            "How convolutions larger than 1×1 are factorised. tucker: 1×1, core, 1×1; spatial: column, row;"
            " cp: 1×1, column and row of each channel, 1×1; none: not."
        ),
    )
    exclude: ListOf[str] = Field(
        (), description="Module names, or name patterns (*), left as they are, with all modules in them."
    )
    finetune: Finetune | None = Field(None, description="Train the factors afterwards; none if left out.")
    never_after: ClassVar[Mapping[str, str]] = {
        **QUANTIZING,
        "prune_weights": "factors have not the zeros of their product",
        "cluster_weights": "factors have not the shared values of their product",
    }

    @model_validator(mode="after")
    def _looks_at_samples(self) -> Factorize:
        if self.nearest != "results":
            refuse_idle(self, ["calibration_samples"], "nearest: results")
        return self

    @model_validator(mode="after")
    def _one_goal(self) -> Factorize:
        goals = [
            name for name in ("energy", "ratio", "macs", "parameters") if getattr(self, name) is not None
        ]
        if len(goals) != 1:
            raise ValueError(
                f"has {' and '.join(goals) or 'none'} of energy, ratio, macs, parameters: give exactly one"
            )
        return self
