"""The `data:` section of a recipe, one closed model per data set."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt

from armlet.artifacts import TaskKind
from armlet.spec.base import Fraction, Spec

Form = Literal["row", "picture", "sequence", "text", "latent"]
"""What a sample is: numbers, a picture, frames of numbers, words, or numbers drawn at random."""


class _Split(Spec):
    n_classes: ClassVar[int] = 1
    """Fewest samples that a limit may leave: one a class where there are classes."""
    picture: ClassVar[tuple[int, int] | None] = None
    """Height and width of a picture."""
    varies_in_length: ClassVar[bool] = False
    """Whether samples come with a length."""
    has_unlabeled: ClassVar[bool] = False
    """Whether there are samples without labels even where every other keeps its own."""

    validation: Fraction = Field(
        0.05, gt=0.0, lt=1.0, description="Share of the training split held out, scored after each epoch."
    )
    limit: PositiveInt | None = Field(None, description="Use at most this many training samples.")
    test_limit: PositiveInt | None = Field(None, description="Use at most this many test samples.")
    fraction: Fraction = Field(
        1.0,
        gt=0.0,
        description="Share of the training samples that keep their labels; the rest are unlabelled.",
    )
    per_class: PositiveInt | None = Field(
        None, description="Most training samples of each class that keep their labels."
    )

    @property
    def form(self) -> Form:
        """What a sample is."""
        return "row"

    @property
    def n_frames(self) -> int:
        """Frames of a sequence or tokens of a text, the most where they differ in length; 0 where there are none."""
        return 0

    @property
    def asks(self) -> TaskKind:
        """What the network is asked."""
        return "classification"

    @property
    def judged(self) -> Self:
        """The same samples, asking for their class: what a judge of generated samples is trained on."""
        return self.model_copy(update={"task": "classification"})

    def options(self) -> dict[str, object]:
        """Return the data set's own options, by name."""
        return self.model_dump(mode="json", exclude={"kind", *_Split.model_fields})


class LetterRecognition(_Split):
    """16 integer features of 20 000 printed letters, 26 classes; first 16 000 train, last 4 000 test."""

    n_classes: ClassVar[int] = 26
    kind: Literal["letter-recognition"] = Field(description="The data set.")


class FashionMnist(_Split):
    """Grey 28×28 pictures of clothes, 10 classes; 60 000 train, 10 000 test."""

    n_classes: ClassVar[int] = 10
    picture: ClassVar[tuple[int, int] | None] = (28, 28)
    kind: Literal["fashion-mnist"] = Field(description="The data set.")
    task: Literal["classification", "denoising", "generation"] = Field(
        "classification", description="Which class, the clean form of a noisy picture, or new pictures."
    )
    noise: PositiveFloat = Field(
        0.25, description="Standard deviation of the noise, of pixels from 0 to 1; denoising."
    )
    latent: PositiveInt = Field(
        64, le=4096, description="Random numbers that a picture is made from; generation."
    )
    spread: PositiveFloat = Field(
        1.0,
        le=4,
        description="Standard deviation of the random numbers that pictures are made from, 1 in training: above it they"
        " vary more, below it fewer of them fail; generation.",
    )

    @property
    def form(self) -> Form:
        """What a sample is."""
        return "latent" if self.task == "generation" else "picture"

    @property
    def asks(self) -> TaskKind:
        """What the network is asked."""
        return self.task


class JapaneseVowels(_Split):
    """640 utterances of 9 speakers, 7 to 29 frames of 12 numbers; 270 train, 370 test."""

    n_classes: ClassVar[int] = 9
    varies_in_length: ClassVar[bool] = True
    kind: Literal["japanese-vowels"] = Field(description="The data set.")

    @property
    def form(self) -> Form:
        """What a sample is."""
        return "sequence"

    @property
    def n_frames(self) -> int:
        """Frames of a sequence, the most."""
        return 29


class SmartwatchExercises(_Split):
    """Windows of 2 s of a smart watch's sensors, 7 exercises; 8 people train, 2 others test."""

    n_classes: ClassVar[int] = 7
    kind: Literal["smartwatch-exercises"] = Field(description="The data set.")

    @property
    def form(self) -> Form:
        """What a sample is."""
        return "sequence"

    @property
    def n_frames(self) -> int:
        """Frames of a sequence."""
        return 100


class ElectricityDemand(_Split):
    """Half hours of a year's electricity demand; asked is the demand 24 hours ahead, the last fifth tests."""

    kind: Literal["electricity-demand"] = Field(description="The data set.")

    @property
    def form(self) -> Form:
        """What a sample is."""
        return "sequence"

    @property
    def n_frames(self) -> int:
        """Frames of a sequence."""
        return 96

    @property
    def asks(self) -> TaskKind:
        """What the network is asked."""
        return "forecast"


class Shuttle(_Split):
    """9 sensor readings of a spacecraft; half of the normal samples train, the others and all anomalies test."""

    n_classes: ClassVar[int] = 2
    kind: Literal["shuttle"] = Field(description="The data set.")

    @property
    def asks(self) -> TaskKind:
        """What the network is asked."""
        return "anomaly"


class MovieSentences(_Split):
    """10 568 sentences of film reviews that people rated; positive or negative; a fifth tests."""

    n_classes: ClassVar[int] = 2
    varies_in_length: ClassVar[bool] = True
    has_unlabeled: ClassVar[bool] = True
    kind: Literal["movie-sentences"] = Field(description="The data set.")
    vocabulary: PositiveInt = Field(
        4000, ge=64, le=65536, description="Most tokens that the tokenizer may use."
    )
    length: PositiveInt = Field(64, le=1024, description="Most tokens of a sentence; the rest is cut off.")
    lower_case: bool = Field(True, description="Whether capitals are read as small letters.")
    ratings: bool = Field(
        False,
        description="Whether training learns how good people find a sentence, not only whether: targets become soft.",
    )

    @property
    def form(self) -> Form:
        """What a sample is."""
        return "text"

    @property
    def n_frames(self) -> int:
        """Tokens of a text, the most."""
        return self.length


DataSpec = Annotated[
    LetterRecognition
    | FashionMnist
    | JapaneseVowels
    | SmartwatchExercises
    | ElectricityDemand
    | Shuttle
    | MovieSentences,
    Field(discriminator="kind"),
]
