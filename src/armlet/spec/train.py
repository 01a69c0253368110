"""The `train:` section of a recipe, shared by the passes that train."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from armlet.spec.base import Fraction, ListOf, Spec, refuse_idle

Loss = Literal[
    "auto",
    "cross_entropy", "focal", "bce", "kl", "hinge",
    "mse", "mae", "huber",
    "non_saturating", "wasserstein",
]  # fmt: skip

Augmentation = Literal[
    "flip", "shift", "erase", "contrast",
    "noise", "scale",
    "time_mask", "channel_mask", "rotate", "speed",
    "token_drop",
]  # fmt: skip

Beta = Annotated[float, Field(ge=0.0, lt=1.0)]


class TrainSpec(Spec):
    """How a network is trained."""

    epochs: PositiveInt = Field(10, description="Most passes over the training split.")
    batch_size: PositiveInt = Field(128, description="Samples in each step of the optimizer.")
    loss: Loss = Field(
        "auto",
        description=(
            "auto: cross_entropy for classes, hinge for generators, else mse. Classes: cross_entropy, focal, bce,"
            " kl, hinge; numbers: mse, mae, huber, bce; generators: hinge, non_saturating, wasserstein."
        ),
    )
    label_smoothing: NonNegativeFloat = Field(
        0.0, lt=1.0, description="Share of each label that is spread over all classes."
    )
    focal_gamma: NonNegativeFloat = Field(2.0, description="Of the focal loss; 0 is cross_entropy.")
    huber_delta: PositiveFloat = Field(1.0, description="Error from which the huber loss is linear.")
    optimizer: Literal["sgd", "rmsprop", "adam", "adamw", "lion"] = Field(
        "adamw", description="sgd uses Nesterov momentum."
    )
    learning_rate: PositiveFloat = Field(1e-3, description="The highest rate of the schedule.")
    momentum: NonNegativeFloat = Field(0.9, lt=1.0, description="Of sgd and rmsprop.")
    betas: Annotated[tuple[Beta, Beta], Field(strict=False)] = Field(
        (0.9, 0.999), description="Decay of the averages of gradient and square; adam, adamw and lion."
    )
    weight_decay: NonNegativeFloat = Field(0.0, description="Of the optimizer; adamw and lion decouple it.")
    sharpness: NonNegativeFloat = Field(
        0.0, description="Radius of sharpness-aware minimisation (SAM), which doubles the time; 0 for none."
    )
    schedule: Literal["constant", "linear", "cosine", "one_cycle", "step"] = Field(
        "one_cycle", description="How the learning rate changes from step to step."
    )
    warm_up: Fraction = Field(
        0.0,
        lt=1.0,
        description="Share of the steps over which the rate rises before the schedule begins; not with one_cycle.",
    )
    step_every: Fraction = Field(
        1 / 3, gt=0.0, description="Share of the steps after which the step schedule lowers the rate."
    )
    step_factor: Fraction = Field(0.1, gt=0.0, description="What the step schedule multiplies the rate by.")
    gradient_clip: PositiveFloat | None = Field(None, description="Highest norm of the gradient.")
    ema: NonNegativeFloat = Field(
        0.0, lt=1.0, description="Decay of the moving average of the weights, which comes out; 0 for none."
    )
    mixup: NonNegativeFloat = Field(0.0, description="Beta parameter of mixing samples by value; 0 for none.")
    cutmix: NonNegativeFloat = Field(
        0.0, description="Beta parameter of mixing pictures by rectangles; 0 for none."
    )
    augment: ListOf[Augmentation] = Field(
        (),
        description=(
            "Random changes of the training inputs, in this order. Pictures: flip, shift, erase, contrast; sequences:"
            " noise, scale, time_mask, channel_mask, rotate, speed; rows: noise, scale; text: token_drop."
        ),
    )
    critic_learning_rate: PositiveFloat | None = Field(
        None, description="Highest rate of a generator's critic; left out, that of the generator."
    )
    critic_steps: PositiveInt = Field(1, description="Steps of the critic for each of the generator.")
    gradient_penalty: NonNegativeFloat = Field(0.0, description="Weight of the critic's gradient penalty.")
    patience: NonNegativeInt = Field(
        0, description="Stop after this many epochs without a better validation score; 0 never stops early."
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="auto: bf16 on a GPU that has it, else fp32."
    )
    compile: bool = Field(
        False, description="Whether torch.compile makes the steps faster; it needs a C++ compiler."
    )
    processes: PositiveInt | Literal["auto"] = Field(
        "auto", description="Training processes: auto is one per GPU, or one on the CPU."
    )

    @model_validator(mode="after")
    def _every_option_does_something(self) -> Self:
        if self.loss != "focal":
            refuse_idle(self, ["focal_gamma"], "loss: focal")
        if self.loss != "huber":
            refuse_idle(self, ["huber_delta"], "loss: huber")
        if self.optimizer not in ("sgd", "rmsprop"):
            refuse_idle(self, ["momentum"], "optimizer: sgd or rmsprop")
        if self.optimizer not in ("adam", "adamw", "lion"):
            refuse_idle(self, ["betas"], "optimizer: adam, adamw or lion")
        if self.schedule != "step":
            refuse_idle(self, ["step_every", "step_factor"], "schedule: step")
        return self

    @model_validator(mode="after")
    def _rises_once(self) -> Self:
        if self.warm_up and self.schedule == "one_cycle":
            raise ValueError(
                "one_cycle rises over its first quarter by itself: leave warm_up out, or use another schedule"
            )
        return self
