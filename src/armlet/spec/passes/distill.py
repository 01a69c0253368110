"""Options of the passes that train a network on what others say, and of training after any other pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from armlet.spec.base import Fraction, ListOf, Spec, refuse_idle
from armlet.spec.passes.base import QUANTIZING, PassOptions
from armlet.spec.train import TrainSpec


class _Term(Spec):
    weight: PositiveFloat = Field(1.0, description="Of this term among the others.")


class _TermOfLayers(_Term):
    layers: ListOf[str] = Field(
        (),
        description="Names of the modules that are compared; left out, the parts that the network is made of.",
    )


class Logits(_Term):
    """Softened answers of classes (Hinton et al. 2015)."""

    kind: Literal["logits"] = Field(description="The term.")


class Decoupled(_Term):
    """Softened answers, the right class and the wrong ones weighted apart (Zhao et al. 2022)."""

    kind: Literal["decoupled"] = Field(description="The term.")
    target: NonNegativeFloat = Field(1.0, description="Weight of how sure the teacher is of the right class.")
    others: NonNegativeFloat = Field(8.0, description="Weight of how the wrong classes compare.")


class Outputs(_Term):
    """Squared error against the teacher's answers: numbers, reconstructions, generated pictures, or plain logits."""

    kind: Literal["outputs"] = Field(description="The term.")


class Features(_TermOfLayers):
    """Squared error of inner values, mapped to the teacher's width where it differs (FitNets, Romero et al. 2015)."""

    kind: Literal["features"] = Field(description="The term.")


class AttentionTransfer(_TermOfLayers):
    """Where in pictures or sequences the values are large (Zagoruyko and Komodakis 2017)."""

    kind: Literal["attention"] = Field(description="The term.")


class Relations(_TermOfLayers):
    """How the samples of a batch lie to each other in the last inner values (Park et al. 2019)."""

    kind: Literal["relations"] = Field(description="The term.")
    distance: NonNegativeFloat = Field(1.0, description="Weight of the distances of pairs.")
    angle: NonNegativeFloat = Field(2.0, description="Weight of the angles of triples.")


class HiddenStates(_TermOfLayers):
    """Directions of the states of frames or tokens, of recurrent networks and transformers (Sun et al. 2019)."""

    kind: Literal["hidden_states"] = Field(description="The term.")


class OwnDepth(_TermOfLayers):
    """Classifiers behind inner layers learn the network's own answer, and go afterwards (Zhang et al. 2019)."""

    kind: Literal["own_depth"] = Field(description="The term.")


TermSpec = Annotated[
    Logits | Decoupled | Outputs | Features | AttentionTransfer | Relations | HiddenStates | OwnDepth,
    Field(discriminator="kind"),
]


class Teaching(Spec):
    """What is learned from the trained, uncompressed network, and how much."""

    temperature: PositiveFloat = Field(4.0, description="Divides both networks' logits before the softmax.")
    alpha: Fraction = Field(
        0.7,
        description="Weight of the terms; the task's own loss gets the rest. A generator has no critic at 100 %.",
    )
    unlabeled: bool = Field(
        False, description="Whether it learns the teacher's answers to samples without labels too."
    )
    terms: ListOf[TermSpec] = Field(
        (), description="What is learned; left out, logits of classes and outputs of anything else."
    )
    teachers: PositiveInt = Field(
        1, le=16, description="The trained network, and others like it trained with further seeds."
    )

    @model_validator(mode="after")
    def _every_option_does_something(self) -> Self:
        if not self.alpha:
            options = ["temperature", "unlabeled", "terms", "teachers"]
            refuse_idle(self, options, "alpha above 0 %, for at 0 % nothing is learned from teachers")
        if self.terms and not {term.kind for term in self.terms} & {"logits", "decoupled", "own_depth"}:
            refuse_idle(self, ["temperature"], "a term of softened answers: logits, decoupled or own_depth")
        return self


class Finetune(TrainSpec):
    """How a network is trained after a pass."""

    distill: Teaching | None = Field(
        None, description="What it learns from the trained network meanwhile; left out, nothing."
    )


class Distill(Teaching, PassOptions):
    """Train the network on what the trained, uncompressed one says (Hinton et al. 2015), and on other terms."""

    kind: Literal["distill"] = Field(description="The pass.")
    teacher: Literal["trained", "current"] = Field(
        "trained", description="trained: the network before any pass; current: the one that this pass gets."
    )
    start: Literal["current", "fresh"] = Field(
        "current",
        description="fresh: from new weights (born again, Furlanello et al. 2018), not the current ones.",
    )
    train: TrainSpec = Field(TrainSpec(), description="How the student is trained.")
    never_after: ClassVar[Mapping[str, str]] = QUANTIZING

    @model_validator(mode="after")
    def _has_so_many_teachers(self) -> Self:
        if self.teacher == "current":
            refuse_idle(self, ["teachers"], "teacher: trained, for of the current network there is one")
        return self
