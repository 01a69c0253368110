"""How a network is trained, as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """How a network is trained.

    Attributes:
        batch_size: samples of one step, over all processes.
        loss: name of the loss, "auto" is the task's usual one.
        focal_gamma: of the focal loss.
        huber_delta: of the Huber loss.
        optimizer: "sgd" uses Nesterov momentum.
        learning_rate: the highest rate of the schedule.
        momentum: of sgd and rmsprop; the others ignore it.
        betas: of adam, adamw and lion.
        weight_decay: of weights with two or more dimensions; biases and norms are never decayed.
        sharpness: radius of sharpness-aware minimisation, 0 for none.
        schedule: of the learning rate, set anew for each step.
        warm_up: share of the steps over which the rate rises linearly before the schedule begins.
        step_every, step_factor: of the step schedule: after this share of the steps the rate is multiplied so.
        gradient_clip: highest norm of the gradient, None for no limit.
        ema: decay of the moving average of the weights, which is what is scored and comes out; 0 for none.
        mixup, cutmix: parameter of the beta distribution that shares are drawn from; 0 for none.
        augment: names of random changes to the training inputs, in this order.
        critic_learning_rate: of an adversarial training's critic, None for that of the network.
        critic_steps: steps of the critic for each of the generator.
        gradient_penalty: weight of the critic's gradient penalty.
        patience: epochs without a better validation score after which training stops and the best weights are
            restored; 0 never stops early and keeps the last weights.
        precision: "auto" is bf16 on a GPU that has it, else fp32.
        compile: whether `torch.compile` makes the network faster first.
        processes: "auto" is one for each GPU, or one on the CPU.
    """

    epochs: int = 10
    batch_size: int = 128
    loss: str = "auto"
    label_smoothing: float = 0.0
    focal_gamma: float = 2.0
    huber_delta: float = 1.0
    optimizer: Literal["sgd", "rmsprop", "adam", "adamw", "lion"] = "adamw"
    learning_rate: float = 1e-3
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    sharpness: float = 0.0
    schedule: Literal["constant", "linear", "cosine", "one_cycle", "step"] = "one_cycle"
    warm_up: float = 0.0
    step_every: float = 1 / 3
    step_factor: float = 0.1
    gradient_clip: float | None = None
    ema: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    augment: tuple[str, ...] = ()
    critic_learning_rate: float | None = None
    critic_steps: int = 1
    gradient_penalty: float = 0.0
    patience: int = 0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: bool = False
    processes: int | Literal["auto"] = "auto"
