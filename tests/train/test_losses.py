"""Each loss agrees with its paper or with torch's own, and the recipe knows the same names as the training does."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch
from torch.nn import functional

from armlet.spec import misfits
from armlet.spec.train import Augmentation, Loss
from armlet.train import TrainOptions
from armlet.train.adversarial import ADVERSARIAL_LOSSES, gradient_penalty
from armlet.train.augment import AUGMENTATIONS
from armlet.train.losses import CLASS_LOSSES, NUMBER_LOSSES, task_loss

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.0, 0.3, -0.2], [1.0, 1.0, -3.0]])
LABELS = torch.tensor([0, 2, 1])


def loss(name: str, **others: float) -> float:
    return float(task_loss("classification", LOGITS, LABELS, TrainOptions(loss=name, **others)))


def test_a_focal_loss_without_focus_is_cross_entropy_and_with_it_that_of_lin_2017() -> None:
    assert loss("focal", focal_gamma=0.0) == pytest.approx(loss("cross_entropy"))
    p = functional.softmax(LOGITS.double(), dim=1)[torch.arange(3), LABELS].numpy()
    assert loss("focal", focal_gamma=2.0) == pytest.approx(-((1 - p) ** 2 * np.log(p)).mean(), rel=1e-5)


def test_hinge_is_torchs_margin_loss_of_several_classes() -> None:
    assert loss("hinge") == pytest.approx(float(functional.multi_margin_loss(LOGITS, LABELS)), rel=1e-6)


def test_bce_is_torchs_of_one_hot_targets() -> None:
    expected = functional.binary_cross_entropy_with_logits(LOGITS, functional.one_hot(LABELS, 3).float())
    assert loss("bce") == pytest.approx(float(expected))


def test_kl_is_cross_entropy_less_the_entropy_of_the_targets() -> None:
    assert loss("kl") == pytest.approx(loss("cross_entropy"), rel=1e-6)
    smoothed = np.array([1 - 0.3 + 0.1, 0.1, 0.1])
    entropy = -(smoothed * np.log(smoothed)).sum()
    smooth = {"label_smoothing": 0.3}
    assert loss("kl", **smooth) == pytest.approx(loss("cross_entropy", **smooth) - entropy, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("mse", (1 + 9) / 2), ("mae", (1 + 3) / 2), ("huber", (0.5 * 1 + 2 * (3 - 1)) / 2), ("auto", 5.0)],
)
def test_losses_of_numbers_have_their_known_values(name: str, expected: float) -> None:
    outputs, targets = torch.tensor([[1.0], [5.0]]), torch.tensor([[2.0], [2.0]])
    options = TrainOptions(loss=name, huber_delta=2.0)
    assert float(task_loss("forecast", outputs, targets, options)) == pytest.approx(expected)


def test_a_critic_that_changes_by_one_a_unit_pays_no_gradient_penalty() -> None:
    torch.manual_seed(0)
    weight = torch.randn(12)
    real, made = torch.randn(5, 3, 2, 2), torch.randn(5, 3, 2, 2)
    for length, expected in ((1.0, 0.0), (3.0, 4.0)):
        direction = length * weight / weight.norm()
        penalty = gradient_penalty(lambda x, d=direction: (x.flatten(1) @ d)[:, None], real, made)
        assert float(penalty) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", list(ADVERSARIAL_LOSSES))
def test_an_adversarial_loss_falls_for_the_critic_that_is_right_and_the_generator_that_deceives(
    name: str,
) -> None:
    found = ADVERSARIAL_LOSSES[name]
    right, wrong = torch.full((4, 1), 0.5), torch.full((4, 1), -0.5)
    assert found.critic(right, wrong) < found.critic(wrong, right)
    assert found.generator(right) < found.generator(wrong)


def test_a_recipe_knows_the_names_that_training_has() -> None:
    assert set(get_args(Loss)) == {"auto", *CLASS_LOSSES, *NUMBER_LOSSES, *ADVERSARIAL_LOSSES}
    assert set(misfits._LOSSES["classification"]) == set(CLASS_LOSSES)
    assert set(misfits._LOSSES["generation"]) == set(ADVERSARIAL_LOSSES)
    assert set(misfits._NUMBER_LOSSES) == set(NUMBER_LOSSES)
    assert set(get_args(Augmentation)) == set(AUGMENTATIONS)
    dims = {"picture": 4, "sequence": 3, "row": 2, "text": 2}
    for form, names in misfits._AUGMENTATIONS.items():
        fitting = [
            name
            for name in AUGMENTATIONS
            if dims[form] in AUGMENTATIONS[name].dims and AUGMENTATIONS[name].tokens == (form == "text")
        ]
        assert sorted(names) == sorted(fitting)
