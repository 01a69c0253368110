"""Adversarial training: a generator against a critic that learns to tell its pictures from real ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from armlet.data.splits import Samples
from armlet.metrics import Scorer
from armlet.models.gan import build_critic
from armlet.models.network import Architecture
from armlet.registry import Registry
from armlet.train.distillation.student import plain, plain_state
from armlet.train.distillation.teaching import Teaching
from armlet.train.evaluation import predict
from armlet.train.objectives import NETWORK, Batch, Turn, Validation, on_device
from armlet.train.options import TrainOptions
from armlet.train.randomness import stream

CRITIC = "critic"


@dataclass(frozen=True, slots=True)
class AdversarialLoss:
    """What both sides make small.

    Attributes:
        critic: mean loss of the critic's answers [N, 1] to real and to generated pictures.
        generator: mean loss of the generator, from the critic's answers to its pictures.
    """

    critic: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor], Tensor]


ADVERSARIAL_LOSSES: Registry[AdversarialLoss] = Registry("adversarial loss")

# Lim and Ye 2017, "Geometric GAN".
ADVERSARIAL_LOSSES.register("hinge")(
    AdversarialLoss(
        lambda real, made: functional.relu(1 - real).mean() + functional.relu(1 + made).mean(),
        lambda made: -made.mean(),
    )
)
# Goodfellow et al. 2014, section 3: the generator raises log D instead of lowering log (1 - D).
ADVERSARIAL_LOSSES.register("non_saturating")(
    AdversarialLoss(
        lambda real, made: functional.softplus(-real).mean() + functional.softplus(made).mean(),
        lambda made: functional.softplus(-made).mean(),
    )
)
# Arjovsky, Chintala and Bottou 2017; needs a gradient penalty or spectral normalisation.
ADVERSARIAL_LOSSES.register("wasserstein")(
    AdversarialLoss(lambda real, made: made.mean() - real.mean(), lambda made: -made.mean())
)


class Adversarial:
    """The critic's turn in each step, and the generator's in each `critic_steps`-th.

    A generator that learns from its teacher alone (alpha 1) has no critic, and a turn in each step.

    Args:
        network: the generator, on its device.
        architecture: of the generator; the critic's options are among its own.
        scorer: of generated pictures.
        options: loss, rates and penalty.
        seed: of the critic's weights.
        teaching: what the generator learns beside what the critic says.
    """

    def __init__(
        self,
        network: nn.Module,
        architecture: Architecture,
        scorer: Scorer,
        options: TrainOptions,
        seed: int,
        teaching: Teaching | None = None,
    ) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(stream(seed, 3))
            critic = build_critic(architecture.options, architecture.output_shape)
        critic = critic.to(next(network.parameters()).device)
        student = teaching.student if teaching else network
        self._has_critic = teaching is None or teaching.alpha < 1
        self.modules: Mapping[str, nn.Module] = (
            {CRITIC: critic, NETWORK: student} if self._has_critic else {NETWORK: student}
        )
        share = (options.critic_learning_rate or options.learning_rate) / options.learning_rate
        self.rates: Mapping[str, float] = {CRITIC: share}
        self._loss = ADVERSARIAL_LOSSES["hinge" if options.loss == "auto" else options.loss]
        self._scorer, self._options, self._teaching = scorer, options, teaching

    def turns(self, modules: Mapping[str, nn.Module], batch: Batch) -> Iterator[Turn]:
        """The critic's turn, and perhaps the generator's, each on new random numbers."""
        generator, critic = modules[NETWORK], modules.get(CRITIC)
        if critic is not None:
            with torch.no_grad():
                made = plain(generator)(torch.randn_like(batch.inputs[0]))
            yield CRITIC, lambda: self._critic_loss(critic, batch.targets, made)
        if critic is None or (batch.step + 1) % self._options.critic_steps == 0:
            numbers = torch.randn_like(batch.inputs[0])
            yield NETWORK, lambda: self._generator_loss(critic, generator, numbers)

    def _generator_loss(self, critic: nn.Module | None, generator: nn.Module, numbers: Tensor) -> Tensor:
        if self._teaching is None:
            return self._criticized(critic, generator(numbers))
        said = generator(numbers)
        return self._teaching.loss(said, self._criticized(critic, said.answer), (numbers,), None, None)

    def _criticized(self, critic: nn.Module | None, made: Tensor) -> Tensor:
        if critic is None:
            return made.new_zeros(())
        critic.requires_grad_(False)  # its own gradients would be thrown away
        answers = critic(made).float()
        critic.requires_grad_(True)
        return self._loss.generator(answers)

    def _critic_loss(self, critic: nn.Module, real: Tensor, made: Tensor) -> Tensor:
        # One batch of both: half the calls, and one power iteration of spectral normalisation.
        answers = critic(torch.cat([real, made])).float()
        loss = self._loss.critic(*answers.split(len(real)))
        if self._options.gradient_penalty:
            loss = loss + self._options.gradient_penalty * gradient_penalty(critic, real, made)
        return loss

    def validate(self, modules: Mapping[str, nn.Module], samples: Samples) -> Validation:
        """Score pictures from the validation split's random numbers; the score stands for the loss too."""
        network = plain(modules[NETWORK])
        made = predict(network, on_device(samples.inputs, network)).cpu()
        if not bool(torch.isfinite(made).all()):
            return Validation(float("nan"))
        score = self._scorer.score(made.numpy(), samples, "validation")
        return Validation(score.value, score.metric, score.value)

    def result(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The generator comes out."""
        return plain_state(state) if self._teaching else state


def gradient_penalty(critic: nn.Module, real: Tensor, made: Tensor) -> Tensor:
    """Return the mean of (norm of the critic's gradient - 1)² between real and generated pictures [N, C, H, W].

    Source: Gulrajani et al. 2017, "Improved Training of Wasserstein GANs".
    """
    share = torch.rand(len(real), 1, 1, 1, device=real.device)
    between = (share * real + (1 - share) * made).detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    penalty: Tensor = ((gradient.flatten(1).norm(dim=1) - 1) ** 2).mean()
    return penalty
