"""Options of the passes that train a network on the answers of another."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, PositiveFloat

from armlet.spec.base import Fraction
from armlet.spec.passes.base import PassOptions
from armlet.spec.train import TrainSpec


class Distill(PassOptions):
    """Train the network on the softened answers of the trained, uncompressed one (Hinton et al. 2015)."""

    kind: Literal["distill"] = Field(description="The pass.")
    temperature: PositiveFloat = Field(4.0, description="Divides both networks' logits before the softmax.")
    alpha: Fraction = Field(0.7, description="Weight of the teacher's answers; the labels get the rest.")
    unlabeled: bool = Field(
        False, description="Whether it learns the teacher's answers to samples without labels too."
    )
    train: TrainSpec = Field(TrainSpec(), description="How the student is trained.")
    never_after: ClassVar[tuple[str, ...]] = ("quantize_static", "quantize_aware")
