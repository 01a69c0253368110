"""A recipe: data, model, training, passes and budgets of one network."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from armlet.spec.base import Fraction, ListOf, Spec
from armlet.spec.budget import Budgets
from armlet.spec.data import DataSpec
from armlet.spec.model import JudgeModel, ModelSpec
from armlet.spec.passes import PassSpec
from armlet.spec.target import Target
from armlet.spec.train import TrainSpec

NAME_PATTERN = r"^[a-z][a-z0-9]*(-[a-z0-9]+)*$"
LONGEST_NAME = 64


class Pretrain(Spec):
    """Pre-training without labels: parts of each input are hidden, and the network learns to fill them in."""

    mask: Fraction = Field(0.3, gt=0.0, lt=1.0, description="Share of the patches, frames or tokens hidden.")
    train: TrainSpec = Field(TrainSpec(), description="How the network is pre-trained.")


Optimize = Literal["latency", "size"]
"""What kernels are chosen for."""


Precision = Literal["float32", "float16"]
"""What real numbers are in a program."""

Threads = Literal[1, 2, 4]
"""How many threads may compute one call of a program."""


class Judge(Spec):
    """A classifier, trained on the same pictures, in whose features generated ones are compared with real ones."""

    model: JudgeModel = Field(description="The classifier.")
    train: TrainSpec = Field(TrainSpec(), description="How it is trained.")


class Stream(Spec):
    """A second program that takes the next few frames, carries its state, and answers for the frames so far."""

    frames: PositiveInt = Field(1, description="Frames that each step takes; tokens, for text.")


def symbol_of(name: str) -> str:
    """Return a program's name as a C identifier."""
    return name.replace("-", "_")


class Recipe(Spec):
    """One network, from data to budgets."""

    name: str = Field(
        pattern=NAME_PATTERN, max_length=LONGEST_NAME, description="Lower case, digits, dashes."
    )
    description: str = Field("", description="One line, for people.")
    seed: NonNegativeInt = Field(
        0, lt=2**63, description="Draws the weights, the batches and the held-out samples."
    )
    data: DataSpec = Field(description="What the network learns from.")
    model: ModelSpec = Field(description="The network.")
    pretrain: Pretrain | None = Field(
        None, description="What it learns without labels first; left out, nothing."
    )
    train: TrainSpec = Field(TrainSpec(), description="How the network is trained before any pass.")
    judge: Judge | None = Field(None, description="What scores generated samples; other tasks have none.")
    stream: Stream | None = Field(
        None,
        description="Makes a program for streams, too: of recurrent networks of one direction and causal transformers.",
    )
    package: Literal["plain", "packed"] = Field(
        "plain",
        description=(
            "packed: beside the plain library one with packed constants, smaller to download; the app gives it memory"
            " to unpack them into."
        ),
    )
    optimize: Optimize = Field(
        "latency",
        description=(
            "What float32 kernels are chosen for. latency: weights of 3×3 convolutions may be stored transformed, up to"
            " four times as large, for fewer multiplications (Winograd). size: as they are, which `package: packed` is"
            " enough for, too."
        ),
    )
    precision: Precision = Field(
        "float32",
        description=(
            "What real numbers are within a program; inputs and outputs are float32 in any case. float16: weights and"
            " values take half the bytes, and kernels compute on twice as many at a time, on targets with the feature"
            " fp16; not for quantised networks."
        ),
    )
    threads: Threads = Field(
        1,
        description=(
            "How many threads may compute one call of a program: 1, 2 or 4. They share large kernels, with the same"
            " answers. The app starts and stops them; the arena may grow."
        ),
    )
    passes: ListOf[PassSpec] = Field((), description="What makes it smaller, in this order.")
    budgets: Budgets = Field(Budgets(), description="What must hold for a build to pass.")
    profiles: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="Named sets of changes; `full` is the recipe as written, `smoke` runs in seconds.",
    )

    @property
    def symbol(self) -> str:
        """The name as a C identifier."""
        return symbol_of(self.name)

    @property
    def small(self) -> bool:
        """Whether constants of programs must not grow for the sake of speed."""
        return self.optimize == "size" or self.package == "packed"

    def precision_on(self, target: Target) -> Precision:
        """Return what real numbers are on a target: the program that is scored on this machine may be in float32."""
        return self.precision if target.computes_float16 else "float32"

    def kernels_on(self, target: Target) -> tuple[bool, Precision, Threads]:
        """Return what of the recipe kernels are chosen by: `small`, `precision_on` the target, and `threads`."""
        return self.small, self.precision_on(target), self.threads

    @property
    def stream_symbol(self) -> str:
        """The C identifier of the program for streams."""
        return f"{self.symbol}_step"
