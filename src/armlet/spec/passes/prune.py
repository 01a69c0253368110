"""Options of the passes that remove parts of a network."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, PositiveInt, model_validator

from armlet.spec.base import Bytes, Fraction, ListOf, Milliseconds
from armlet.spec.passes.base import PassOptions
from armlet.spec.passes.distill import Finetune

GoalName = Literal["ratio", "macs", "parameters", "bytes", "latency"]
GOALS: tuple[GoalName, ...] = ("ratio", "macs", "parameters", "bytes", "latency")


class PruneChannels(PassOptions):
    """Remove whole channels, units, hidden units and heads, with everything that depends on them."""

    kind: Literal["prune_channels"] = Field(description="The pass.")
    ratio: Fraction | None = Field(
        None, description="Share of the channels of each group that is removed, below 100 %.", lt=1.0
    )
    macs: Fraction | None = Field(
        None, gt=0.0, description="Share of the network's multiply-accumulates that may be left."
    )
    parameters: Fraction | None = Field(
        None, gt=0.0, description="Share of the network's parameters that may be left."
    )
    bytes: Bytes | None = Field(None, gt=0, description="Bytes of float weights that may be left, with unit.")
    latency: Milliseconds | None = Field(
        None,
        gt=0.0,
        description="Time that one inference of the float program may take on `target`, with its unit.",
    )
    target: str | None = Field(
        None, description="Name of the target, or a YAML file, that `latency` is estimated for."
    )
    importance: Literal["l1", "l2", "bn_scale", "taylor", "hessian", "fpgm", "activation", "random"] = Field(
        "l2",
        description="What ranks channels: norm, normalisation's gain, gradients, redundancy, values, chance.",
    )
    samples: PositiveInt = Field(
        256, description="Training samples that gradients, values and sensitivity are taken from."
    )
    scope: Literal["layer", "global"] = Field(
        "layer", description="Rank within each layer or over all; with a ratio."
    )
    steps: PositiveInt = Field(
        1, le=100, description="Rounds of removing and training; finetune's epochs are divided among them."
    )
    round_to: PositiveInt = Field(
        1,
        description="Leave a multiple of this many channels or units where possible; heads are not counted.",
    )
    through_layer_norm: bool = Field(
        False,
        description="Whether channels that a layer normalisation takes together may go: its values change.",
    )
    exclude: ListOf[str] = Field(
        (), description="Module names, or name patterns (*), left as they are, with all modules in them."
    )
    finetune: Finetune | None = Field(
        None, description="Train the smaller network afterwards; none if left out."
    )
    never_after: ClassVar[tuple[str, ...]] = ("quantize_static",)

    @model_validator(mode="after")
    def _one_goal(self) -> PruneChannels:
        given = [name for name in GOALS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"has {' and '.join(given) or 'none'} of {', '.join(GOALS)}: give exactly one")
        if (self.latency is None) != (self.target is None):
            raise ValueError("latency and target go together: one of them is missing")
        if self.ratio is None and self.scope == "global":
            raise ValueError("scope: global ranks with a ratio; a budget finds each layer's share by itself")
        if self.steps > 1 and (self.finetune is None or self.finetune.epochs < self.steps):
            raise ValueError(f"steps: {self.steps} needs finetune with at least as many epochs")
        return self
