"""How a network is trained, as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """How a network is trained.

    Attributes:
        batch_size: samples of one step, over all processes.
        optimizer: "sgd" uses Nesterov momentum.
        learning_rate: the highest rate of the schedule.
        momentum: of sgd; the others ignore it.
        weight_decay: of weights with two or more dimensions; biases and norms are never decayed.
        schedule: of the learning rate, set anew for each step.
        gradient_clip: highest norm of the gradient, None for no limit.
        patience: epochs without a better validation score after which training stops and the best weights are
            restored; 0 never stops early and keeps the last weights.
        precision: "auto" is bf16 on a GPU that has it, else fp32.
        processes: "auto" is one for each GPU, or one on the CPU.
    """

    epochs: int = 10
    batch_size: int = 128
    optimizer: Literal["sgd", "adam", "adamw"] = "adamw"
    learning_rate: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: Literal["constant", "cosine", "one_cycle"] = "one_cycle"
    label_smoothing: float = 0.0
    gradient_clip: float | None = None
    patience: int = 0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    processes: int | Literal["auto"] = "auto"
