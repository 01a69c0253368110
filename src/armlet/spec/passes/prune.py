"""Options of the passes that remove parts of a network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from armlet.spec.base import Bytes, Fraction, ListOf, Milliseconds, ShareOrCount, refuse_idle
from armlet.spec.passes.base import QUANTIZING, PassOptions
from armlet.spec.passes.distill import Finetune

GoalName = Literal["ratio", "macs", "parameters", "bytes", "latency"]
GOALS: tuple[GoalName, ...] = ("ratio", "macs", "parameters", "bytes", "latency")


class GroupLasso(Finetune):
    """How a network is trained before channels go, so that those that matter least shrink to zero (Wen et al. 2016)."""

    strength: PositiveFloat = Field(
        description=(
            "Of the penalty: √size × norm of each channel, beside the loss. A step takes learning rate × strength ×"
            " √size off a norm."
        )
    )


class PruneChannels(PassOptions):
    """Remove whole channels, units, hidden units and heads, with everything that depends on them."""

    kind: Literal["prune_channels"] = Field(description="The pass.")
    ratio: Fraction | None = Field(
        None, description="Share of the channels of each group that is removed, below 100 %.", lt=1.0
    )
    macs: ShareOrCount | None = Field(
        None,
        gt=0.0,
        description="Multiply-accumulates that may be left: a share of the network's own, or so many (500 k).",
    )
    parameters: ShareOrCount | None = Field(
        None,
        gt=0.0,
        description="Parameters that may be left: a share of the network's own, or so many (100 k).",
    )
    bytes: Bytes | None = Field(None, gt=0, description="Bytes of float weights that may be left, with unit.")
    latency: Milliseconds | None = Field(
        None,
        gt=0.0,
        description="Time that one inference of the float program may take on `target`, with its unit.",
    )
    target: str | None = Field(
        None,
        description="Name of the target, or a YAML file, of `latency` and of `round_to: vector`.",
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
    round_to: PositiveInt | Literal["vector"] = Field(
        1,
        description=(
            "Leave a multiple of this many channels or units where possible; heads are not counted. vector: of as many"
            " as kernels on `target` compute in one vector, of int8 where a later pass quantises."
        ),
    )
    through_layer_norm: bool = Field(
        False,
        description="Whether channels that a layer normalisation takes together may go: its values change.",
    )
    exclude: ListOf[str] = Field(
        (), description="Module names, or name patterns (*), left as they are, with all modules in them."
    )
    group_lasso: GroupLasso | None = Field(
        None,
        description=(
            "Train before any channel goes with a penalty on whole channels, which stays on in the rounds up to the"
            " last; none if left out."
        ),
    )
    finetune: Finetune | None = Field(
        None, description="Train the smaller network afterwards; none if left out."
    )
    never_after: ClassVar[Mapping[str, str]] = {
        **QUANTIZING,
        "prune_weights": "channels that go would tear the groups of its pattern, and zeros count in their rank",
    }

    @model_validator(mode="after")
    def _one_goal(self) -> Self:
        given = [name for name in GOALS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"has {' and '.join(given) or 'none'} of {', '.join(GOALS)}: give exactly one")
        if self.round_to == "vector" and self.target is None:
            raise ValueError("round_to: vector needs target, whose vectors channels should fill")
        if self.round_to != "vector" and (self.latency is None) != (self.target is None):
            raise ValueError("latency and target go together: one of them is missing")
        if self.ratio is None and self.scope == "global":
            raise ValueError("scope: global ranks with a ratio; a budget finds each layer's share by itself")
        if self.steps > 1 and (self.finetune is None or self.finetune.epochs < self.steps):
            raise ValueError(f"steps: {self.steps} needs finetune with at least as many epochs")
        if self.ratio is not None and self.importance not in ("taylor", "hessian", "activation"):
            refuse_idle(self, ["samples"], "importance: taylor, hessian or activation, or a budget")
        return self


class PruneWeights(PassOptions):
    """Set single weights to zero: the network is stored smaller, and runs no faster."""

    kind: Literal["prune_weights"] = Field(description="The pass.")
    sparsity: Fraction | None = Field(
        None, lt=1.0, description="Share of the weights that becomes zero, below 100 %; or use a pattern."
    )
    pattern: str | None = Field(
        None,
        pattern=r"^[1-9][0-9]?:[1-9][0-9]?$",
        description="N:M, as 2:4: of each M weights that follow each other along the inputs N stay.",
    )
    method: Literal["magnitude", "sparsegpt"] = Field(
        "magnitude",
        description=(
            "magnitude: the least weights go. sparsegpt: those whose loss the others can make good, layer by layer on"
            " calibration samples (Frantar and Alistarh 2023)."
        ),
    )
    scope: Literal["layer", "global"] = Field(
        "layer", description="Compare magnitudes within each layer or over all."
    )
    schedule: Literal["one_shot", "cubic"] = Field(
        "one_shot",
        description="At once, or more and more while the network is fine-tuned (Zhu and Gupta 2017).",
    )
    begin: Fraction = Field(
        0.0, lt=1.0, description="Share of the fine-tuning at which the cubic schedule begins."
    )
    end: Fraction = Field(0.75, description="Share of the fine-tuning at which the cubic schedule ends.")
    every: PositiveInt = Field(20, description="Steps between two choices of the cubic schedule.")
    calibration_samples: PositiveInt = Field(256, description="Training samples that sparsegpt looks at.")
    exclude: ListOf[str] = Field(
        (), description="Module names, or name patterns (*), left as they are, with all modules in them."
    )
    finetune: Finetune | None = Field(
        None, description="Train the other weights afterwards, or meanwhile; none if left out."
    )
    never_after: ClassVar[Mapping[str, str]] = {
        **QUANTIZING,
        "cluster_weights": "zeros would be one more of its values; pruned first, zero is one of them",
    }
    gains: ClassVar[str] = "stored smaller, not faster"

    @field_validator("pattern")
    @classmethod
    def _some_go(cls, pattern: str | None) -> str | None:
        if pattern is not None and int(pattern.partition(":")[0]) >= int(pattern.partition(":")[2]):
            raise ValueError(f"{pattern} leaves every weight: N must be less than M")
        return pattern

    @model_validator(mode="after")
    def _go_together(self) -> Self:
        if (self.sparsity is None) == (self.pattern is None):
            raise ValueError("give either a sparsity or a pattern")
        if self.pattern is not None and self.scope == "global":
            raise ValueError("a pattern is the same in every layer: leave scope out")
        if self.method == "sparsegpt" and self.scope == "global":
            raise ValueError("sparsegpt works on one layer at a time: leave scope out")
        if self.method != "sparsegpt":
            refuse_idle(self, ["calibration_samples"], "method: sparsegpt")
        if self.schedule != "cubic":
            refuse_idle(self, ["begin", "end", "every"], "schedule: cubic")
        if self.schedule == "cubic":
            if self.method != "magnitude":
                raise ValueError("sparsegpt prunes at once: use schedule: one_shot")
            if self.finetune is None:
                raise ValueError("the cubic schedule runs while the network is trained: add finetune")
            if self.finetune.patience:
                raise ValueError("zeros become more until the end of training: set finetune.patience to 0")
            if self.begin >= self.end:
                raise ValueError("the cubic schedule must begin before it ends")
        return self
