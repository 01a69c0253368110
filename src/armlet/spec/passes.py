"""The `passes:` section of a recipe, one closed model per pass, and the order they may come in."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from armlet.spec.base import Fraction, ListOf, Spec
from armlet.spec.train import TrainSpec


class PassOptions(Spec):
    """Base of all passes; `never_after` lists the kinds that must not stand earlier in the recipe."""

    never_after: ClassVar[tuple[str, ...]] = ()
    once: ClassVar[bool] = False


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
    never_after: ClassVar[tuple[str, ...]] = ("quantize_static",)


class Distill(PassOptions):
    """Train the network on the softened answers of the trained, uncompressed one (Hinton et al. 2015)."""

    kind: Literal["distill"] = Field(description="The pass.")
    temperature: PositiveFloat = Field(4.0, description="Divides both networks' logits before the softmax.")
    alpha: Fraction = Field(0.7, description="Weight of the teacher's answers; the labels get the rest.")
    unlabeled: bool = Field(
        False, description="Whether it learns the teacher's answers to samples without labels too."
    )
    train: TrainSpec = Field(TrainSpec(), description="How the student is trained.")
    never_after: ClassVar[tuple[str, ...]] = ("quantize_static",)


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


PassSpec = Annotated[PruneChannels | Distill | QuantizeStatic, Field(discriminator="kind")]


def order_problems(passes: tuple[PassOptions, ...]) -> list[tuple[int, str]]:
    """Return (position, message) for every pass that stands where it can't."""
    problems = []
    kinds = [p.kind for p in passes]  # type: ignore[attr-defined]  # every member of PassSpec has a kind
    for position, options in enumerate(passes):
        problems += [
            (position, f"{kinds[position]} can't come after {earlier} (pass {kinds.index(earlier) + 1})")
            for earlier in options.never_after
            if earlier in kinds[:position] and earlier != kinds[position]
        ]
        if options.once and kinds[position] in kinds[:position]:
            problems.append((position, f"{kinds[position]} stands twice; it can run only once"))
    return problems
