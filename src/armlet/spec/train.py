"""The `train:` section of a recipe, shared by the passes that train."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from armlet.spec.base import Spec


class TrainSpec(Spec):
    """How a network is trained."""

    epochs: PositiveInt = Field(10, description="Most passes over the training split.")
    batch_size: PositiveInt = Field(128, description="Samples in each step of the optimizer.")
    optimizer: Literal["sgd", "adam", "adamw"] = Field("adamw", description="sgd uses Nesterov momentum.")
    learning_rate: PositiveFloat = Field(1e-3, description="The highest rate of the schedule.")
    momentum: NonNegativeFloat = Field(0.9, lt=1.0, description="Of sgd; the others ignore it.")
    weight_decay: NonNegativeFloat = Field(0.0, description="Of the optimizer; adamw decouples it.")
    schedule: Literal["constant", "cosine", "one_cycle"] = Field(
        "one_cycle", description="How the learning rate changes from step to step."
    )
    label_smoothing: NonNegativeFloat = Field(
        0.0, lt=1.0, description="Share of each label that is spread over all classes."
    )
    gradient_clip: PositiveFloat | None = Field(None, description="Highest norm of the gradient.")
    patience: NonNegativeInt = Field(
        0, description="Stop after this many epochs without a better validation score; 0 never stops early."
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="auto: bf16 on a GPU that has it, else fp32."
    )
    processes: PositiveInt | Literal["auto"] = Field(
        "auto", description="Training processes: auto is one per GPU, or one on the CPU."
    )
