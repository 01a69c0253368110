"""The `data:` section of a recipe, one closed model per data set."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveInt

from armlet.artifacts import TaskKind
from armlet.spec.base import Fraction, Spec

Form = Literal["row", "picture", "sequence", "text", "latent"]
"""What a sample is: numbers, a picture, frames of numbers, words, or numbers drawn at random."""


class _Split(Spec):
    form: ClassVar[Form] = "row"
    task: ClassVar[TaskKind] = "classification"
    n_classes: ClassVar[int] = 1
    """Fewest samples that a limit may leave: one a class where there are classes."""
    picture: ClassVar[tuple[int, int] | None] = None
    """Height and width of a picture."""

    validation: Fraction = Field(
        0.05, gt=0.0, lt=1.0, description="Share of the training split held out, scored after each epoch."
    )
    limit: PositiveInt | None = Field(None, description="Use at most this many training samples.")
    test_limit: PositiveInt | None = Field(None, description="Use at most this many test samples.")


class LetterRecognition(_Split):
    """16 integer features of 20 000 printed letters, 26 classes; first 16 000 train, last 4 000 test."""

    n_classes: ClassVar[int] = 26
    kind: Literal["letter-recognition"] = Field(description="The data set.")


class FashionMnist(_Split):
    """Grey 28×28 pictures of clothes, 10 classes; 60 000 train, 10 000 test."""

    form: ClassVar[Form] = "picture"
    n_classes: ClassVar[int] = 10
    picture: ClassVar[tuple[int, int] | None] = (28, 28)
    kind: Literal["fashion-mnist"] = Field(description="The data set.")


DataSpec = Annotated[LetterRecognition | FashionMnist, Field(discriminator="kind")]
