"""Options of the passes that remove parts of a network."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, PositiveInt

from armlet.spec.base import Fraction, ListOf
from armlet.spec.passes.base import PassOptions
from armlet.spec.train import TrainSpec


class PruneChannels(PassOptions):
    """Remove whole channels and units, with everything that depends on them."""

    kind: Literal["prune_channels"] = Field(description="The pass.")
    ratio: Fraction = Field(
        description="Share of the channels of each group that is removed, below 100 %.", lt=1.0
    )
    importance: Literal["l1", "l2"] = Field("l2", description="Norm that ranks channels.")
    scope: Literal["layer", "global"] = Field("layer", description="Rank within each layer or over all.")
    round_to: PositiveInt = Field(1, description="Leave a multiple of this many channels where possible.")
    exclude: ListOf[str] = Field(
        (), description="Module names, or name patterns (*), left as they are, with all modules in them."
    )
    finetune: TrainSpec | None = Field(
        None, description="Train the smaller network afterwards; none if left out."
    )
    never_after: ClassVar[tuple[str, ...]] = ("quantize_static", "quantize_aware")
