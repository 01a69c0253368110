"""Options of the pass that removes what never changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field, PositiveInt

from armlet.spec.base import ListOf
from armlet.spec.passes.base import QUANTIZING, PassOptions


class RemoveDeadUnits(PassOptions):
    """Remove channels and units whose value never changes; what they add goes into the biases behind them."""

    kind: Literal["remove_dead_units"] = Field(description="The pass.")
    proof: Literal["samples", "weights"] = Field(
        "samples",
        description=(
            "samples: the value is the same for all calibration samples; weights: also for every other input, because"
            " all weights before it, or its normalisation's scale, are zero."
        ),
    )
    calibration_samples: PositiveInt = Field(2048, description="Training samples that are looked at.")
    exclude: ListOf[str] = Field(
        (), description="Module names, or name patterns (*), left as they are, with all modules in them."
    )
    never_after: ClassVar[Mapping[str, str]] = QUANTIZING
