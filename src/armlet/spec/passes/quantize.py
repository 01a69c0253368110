"""Options of the passes that make a network compute on integers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from armlet.spec.base import Bytes, Fraction, ListOf, Milliseconds, refuse_idle
from armlet.spec.passes.base import QUANTIZING, PassOptions
from armlet.spec.passes.distill import Teaching
from armlet.spec.train import TrainSpec

_OF_RANGES = (
    "calibration",
    "calibration_samples",
    "input_range",
    "deviations",
    "observer",
    "percentile",
    "averaging",
    "activations",
    "smooth",
    "rounding",
    "rounding_steps",
    "bias_correction",
    "keep_float",
    "max_drop",
    "latency",
    "target",
    "weight_budget",
)
"""Options of `quantize_static` that need samples, or say how fixed ranges are found."""

Range = Annotated[tuple[float, float], Field(strict=False)]


class QuantizeStatic(PassOptions):
    """Static INT8 after training: batch normalisation folded, ranges from calibration samples, integer weights."""

    kind: Literal["quantize_static"] = Field(description="The pass.")
    mode: Literal["static", "weight_only", "dynamic"] = Field(
        "static",
        description=(
            "static: activations and weights are integers; weight_only: weights alone are, and the arithmetic is"
            " float; dynamic: as weight_only, but linear layers and convolutions quantise their input while the"
            " program runs."
        ),
    )
    calibration: Literal["data", "batch_norm"] = Field(
        "data",
        description="Whether ranges come from training samples or, without any, from batch normalisations.",
    )
    calibration_samples: PositiveInt = Field(512, description="Training samples that the ranges come from.")
    input_range: Range | None = Field(
        None, description="Least and greatest value of the input; needed to calibrate without data."
    )
    deviations: PositiveFloat = Field(
        6.0, description="Standard deviations to either end of a range that comes from a batch normalisation."
    )
    observer: Literal["min_max", "moving_average", "percentile", "entropy", "mse"] = Field(
        "min_max", description="How the range of an activation comes from its samples."
    )
    percentile: float = Field(99.99, gt=50.0, le=100.0, description="Of the percentile observer.")
    averaging: float = Field(
        0.1, gt=0.0, le=1.0, description="Weight of a new batch of 64 samples; moving_average observer."
    )
    activations: Literal["asymmetric", "symmetric"] = Field(
        "asymmetric", description="Whether the zero point of activations is free or 0."
    )
    weights: Literal["per_channel", "per_tensor", "per_group"] = Field(
        "per_channel",
        description=(
            "What has a scale of its own: each output channel, the layer, or each group_size inputs of an output"
            " channel of a linear layer."
        ),
    )
    group_size: int = Field(32, ge=2, description="Inputs that share a scale; weights: per_group.")
    weight_bits: Literal[8, 4] = Field(
        8,
        description="Of each weight; 4 are integers from -7 to 7, which programs still hold in a byte each.",
    )
    weight_budget: Bytes | None = Field(
        None,
        description=(
            "Most bytes of all parameters, weights of 4 bits packed: those layers get 4 bits whose weights change"
            " the answers least; left out, all have weight_bits."
        ),
    )
    weight_range: Literal["max", "mse"] = Field(
        "max", description="Whether the largest weight fits, or the squared error of all is least."
    )
    equalize: bool = Field(
        False,
        description="Whether channels are rescaled between layers first, so that weights use their range.",
    )
    smooth: Fraction | None = Field(
        None,
        description="Share of activations' scale that moves into weights first (SmoothQuant); left out, none.",
    )
    rounding: Literal["nearest", "adaround", "gptq"] = Field(
        "nearest",
        description="How weights become integers: the nearest, or those best for the layer's outputs.",
    )
    rounding_steps: PositiveInt = Field(1000, description="Steps of adaround for each layer.")
    bias_correction: bool = Field(
        False, description="Whether biases make good what quantisation shifts outputs by on average."
    )
    exclude: ListOf[str] = Field(
        (), description="Module names, or name patterns (*), that stay float, with all modules in them."
    )
    exclude_types: ListOf[str] = Field(
        (), description="Types of modules that stay float, such as Linear or Conv2d."
    )
    keep_float: NonNegativeInt = Field(
        0,
        description="So many layers stay float: those that change the answers most when they alone are quantised.",
    )
    max_drop: PositiveFloat | None = Field(
        None,
        description="Most that the validation score may fall: the most sensitive layers stay float until it holds.",
    )
    latency: Milliseconds | None = Field(
        None,
        gt=0.0,
        description=(
            "Time that one inference of the program may take on `target`, with its unit: those layers stay float that"
            " change the answers most when quantised, as far as it allows; left out, none for that reason."
        ),
    )
    target: str | None = Field(
        None, description="Name of the target, or a YAML file, that `latency` is estimated for."
    )
    never_after: ClassVar[Mapping[str, str]] = QUANTIZING
    once: ClassVar[bool] = True

    @property
    def computes_integers(self) -> bool:
        """Whether programs multiply int8 after it."""
        return self.mode != "weight_only"

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.weights == "per_group" and self.mode != "weight_only":
            raise ValueError(
                "weights: per_group needs mode: weight_only: integer products that are added up share one scale"
            )
        if (self.latency is None) != (self.target is None):
            raise ValueError("latency and target go together: one of them is missing")
        if self.mode == "dynamic":
            self._check_dynamic()
        self._refuse_idle()
        if self.mode == "weight_only" and self.calibration == "batch_norm":
            raise ValueError("mode: weight_only has no ranges to calibrate: leave calibration out")
        if self.mode == "weight_only" and self.latency is not None:
            raise ValueError(
                "latency chooses between float and INT8: mode: weight_only computes every layer in float, which takes"
                " longer with integer weights than without"
            )
        if self.calibration == "batch_norm":
            if self.input_range is None:
                raise ValueError("calibration: batch_norm needs input_range, such as [0, 1]")
            asked = {
                "smooth": self.smooth is not None,
                "rounding": self.rounding != "nearest",
                "keep_float": self.keep_float > 0,
                "max_drop": self.max_drop is not None,
                "latency": self.latency is not None,
                "weight_budget": self.weight_budget is not None,
            }
            if needs := [name for name, wanted in asked.items() if wanted]:
                raise ValueError(
                    f"{', '.join(needs)} can't do without data: calibration: batch_norm has none"
                )
        elif self.input_range is not None:
            raise ValueError("input_range is for calibration: batch_norm; data has its own")
        if self.input_range is not None and not self.input_range[0] < self.input_range[1]:
            raise ValueError(f"input_range {list(self.input_range)} is not a lower and a higher end")
        self._check_limits()
        return self

    def _refuse_idle(self) -> None:
        """Refuse options of a way to find scales that is not taken."""
        if self.weights != "per_group":
            refuse_idle(self, ["group_size"], "weights: per_group")
        if self.observer != "percentile":
            refuse_idle(self, ["percentile"], "observer: percentile")
        if self.observer != "moving_average":
            refuse_idle(self, ["averaging"], "observer: moving_average")
        if self.rounding != "adaround":
            refuse_idle(self, ["rounding_steps"], "rounding: adaround")
        if self.calibration != "batch_norm":
            refuse_idle(self, ["deviations"], "calibration: batch_norm")
        else:
            refuse_idle(self, ["calibration_samples", "observer"], "calibration: data")
        if self.mode == "weight_only":
            refuse_idle(self, ["observer", "activations"], "integer activations, of mode: static")

    def _check_dynamic(self) -> None:
        """Refuse what needs samples or fixed ranges, neither of which this mode has."""
        defaults = type(self).model_fields
        if given := [name for name in _OF_RANGES if getattr(self, name) != defaults[name].default]:
            raise ValueError(
                f"mode: dynamic finds ranges while the program runs and takes no samples: leave out {', '.join(given)}"
            )

    def _check_limits(self) -> None:
        """Refuse two limits that would make one choice, or a choice without alternatives."""
        if self.weight_budget is not None and self.weight_bits == 4:
            raise ValueError("weight_budget chooses between 8 and 4 bits: leave weight_bits at 8")
        floats = {
            "keep_float": self.keep_float > 0,
            "max_drop": self.max_drop is not None,
            "latency": self.latency is not None,
        }
        if len(given := [name for name, wanted in floats.items() if wanted]) > 1:
            raise ValueError(
                f"{' and '.join(given)} exclude each other: {'both' if len(given) == 2 else 'all'} say which layers"
                " stay float"
            )
        if self.latency is not None and self.weight_budget is not None:
            raise ValueError(
                "latency and weight_budget exclude each other: a layer that stays float takes four bytes for each"
                " weight, which 4 bits elsewhere would have to make good; use weight_bits: 4 for all"
            )


class QuantizeAware(Teaching, PassOptions):
    """Train the network while it computes with quantised values, and learn their scales (Esser et al. 2020)."""

    kind: Literal["quantize_aware"] = Field(description="The pass.")
    weight_bits: Literal[8, 4] = Field(
        8,
        description="Of each weight; 4 are integers from -7 to 7, which programs still hold in a byte each.",
    )
    activations: Literal["asymmetric", "symmetric"] = Field(
        "asymmetric", description="Whether the zero point of activations is free or 0; it is not learned."
    )
    weights: Literal["per_channel", "per_tensor"] = Field(
        "per_channel", description="Whether each output channel has a scale of its own."
    )
    calibration_samples: PositiveInt = Field(
        512, description="Training samples that the first ranges come from."
    )
    observer: Literal["min_max", "moving_average", "percentile", "entropy", "mse"] = Field(
        "mse", description="How the first range of an activation comes from its samples."
    )
    freeze_after: PositiveInt | None = Field(
        None,
        description="Epochs after which the scales stay as they are; left out, they are learned to the end.",
    )
    alpha: Fraction = Field(
        0.0,
        description="Weight of the terms, 0 % for none; the task's own loss gets the rest.",
    )
    train: TrainSpec = Field(TrainSpec(), description="How it is trained.")
    exclude: ListOf[str] = Field(
        (), description="Module names, or name patterns (*), that stay float, with all modules in them."
    )
    exclude_types: ListOf[str] = Field(
        (), description="Types of modules that stay float, such as Linear or Conv2d."
    )
    never_after: ClassVar[Mapping[str, str]] = QUANTIZING
    once: ClassVar[bool] = True

    @property
    def computes_integers(self) -> bool:
        """Whether programs multiply int8 after it."""
        return True

    @model_validator(mode="after")
    def _teaches_answers(self) -> Self:
        if self.freeze_after is not None and self.freeze_after > self.train.epochs:
            raise ValueError(
                f"freeze_after: {self.freeze_after} does nothing in {self.train.epochs} epochs: leave it out"
            )
        if inner := [term.kind for term in self.terms if term.kind not in ("logits", "decoupled", "outputs")]:
            raise ValueError(
                f"{', '.join(inner)} look at layers, and what is trained with quantised values is a graph without"
                " them: use logits, decoupled or outputs here, and a distill pass before"
            )
        return self
