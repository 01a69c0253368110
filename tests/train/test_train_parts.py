"""Losses, schedules and optimisers agree with their papers; scores count hits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from armlet.artifacts import InputSpec
from armlet.errors import ArmletError, UsageError
from armlet.metrics import score_classification
from armlet.models.network import architecture_of, build
from armlet.spec.train import TrainSpec
from armlet.train import TrainOptions
from armlet.train.distillation.losses import distillation_loss
from armlet.train.losses import task_loss
from armlet.train.optim import learning_rate_at, make_optimizer

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.0, 0.3, -0.2]])
TEACHER = torch.tensor([[1.0, 0.0, -1.0], [-0.5, 2.0, 0.1]])
LABELS = torch.tensor([0, 2])


def softmax(rows: np.ndarray) -> np.ndarray:
    exponents = np.exp(rows - rows.max(axis=1, keepdims=True))
    return exponents / exponents.sum(axis=1, keepdims=True)


def test_the_distillation_loss_is_the_divergence_of_hinton_2015() -> None:
    p, q = (softmax(logits.numpy().astype("float64") / 3) for logits in (TEACHER, LOGITS))
    expected = 9 * (p * np.log(p / q)).sum(axis=1).mean()
    # float32 logarithms, a few roundings of 6e-8
    assert float(distillation_loss(LOGITS, TEACHER, 3.0)) == pytest.approx(expected, rel=1e-5)
    assert float(distillation_loss(TEACHER, TEACHER, 3.0)) == pytest.approx(0, abs=1e-7)


def test_label_smoothing_is_that_of_szegedy_2016() -> None:
    targets = 0.9 * np.eye(3)[LABELS.numpy()] + 0.1 / 3
    expected = -(targets * np.log(softmax(LOGITS.numpy().astype("float64")))).sum(axis=1).mean()
    assert float(
        task_loss("classification", LOGITS, LABELS, TrainOptions(label_smoothing=0.1))
    ) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("schedule", "done", "share"),
    [
        ("constant", 0.0, 1.0),
        ("constant", 0.9, 1.0),
        ("cosine", 0.0, 1.0),
        ("cosine", 0.5, 0.5),
        ("one_cycle", 0.0, 0.04),
        ("one_cycle", 0.25, 1.0),
        ("one_cycle", 0.625, 0.5),
    ],
)
def test_a_schedule_has_its_known_points(schedule: str, done: float, share: float) -> None:
    options = TrainOptions(schedule=schedule, learning_rate=0.2)
    assert learning_rate_at(round(done * 1000), 1000, options) == pytest.approx(0.2 * share)


@given(
    st.sampled_from(["constant", "cosine", "one_cycle"]),
    st.integers(1, 500).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n - 1))),
)
def test_a_rate_is_always_positive_and_never_above_the_highest(schedule: str, place: tuple[int, int]) -> None:
    n_steps, step = place
    rate = learning_rate_at(step, n_steps, TrainOptions(schedule=schedule, learning_rate=0.3))
    assert 0 < rate <= 0.3


def test_only_weights_decay() -> None:
    module = build(architecture_of("fnn", {"hidden": [4]}, (InputSpec("input", (3,)),), (2,)), 0).module
    optimizer = make_optimizer(module, TrainOptions(weight_decay=0.1))
    decayed = {id(p) for g in optimizer.param_groups if g["weight_decay"] for p in g["params"]}
    names = {name for name, p in module.named_parameters() if id(p) in decayed}
    assert names == {"layer1.linear.weight", "classifier.weight"}


def test_train_options_have_the_fields_and_defaults_of_the_recipe() -> None:
    assert TrainOptions(**TrainSpec().model_dump()) == TrainOptions()


def test_a_score_counts_hits_over_all_and_in_each_class() -> None:
    labels = np.array([0, 0, 0, 1, 1, 3])
    score = score_classification(np.array([0, 0, 1, 1, 0, 3]), labels, 4, "test")
    assert (score.value, score.per_class) == (4 / 6, (2 / 3, 1 / 2, 0.0, 1.0))
    assert (score.metric, score.n_samples, score.split) == ("accuracy", 6, "test")


def test_of_equal_logits_the_first_counts_for_integers_and_floats_alike() -> None:
    logits = np.array([[3, 3, 1], [0, 5, 5]], np.int8)
    for kind in (np.int8, np.float32):
        assert score_classification(logits.astype(kind), np.array([0, 1]), 3, "test").value == 1.0


def test_predictions_that_do_not_fit_the_labels_are_refused() -> None:
    with pytest.raises(UsageError, match="no samples"):
        score_classification(np.zeros((0, 3)), np.zeros(0, np.int64), 3, "test")
    with pytest.raises(UsageError, match=r"shape .2, 4. for 2 labels of 3 classes"):
        score_classification(np.zeros((2, 4)), np.zeros(2, np.int64), 3, "test")


def test_answers_that_are_no_numbers_get_no_score() -> None:
    with pytest.raises(ArmletError, match="predictions for the test split are not numbers"):
        score_classification(np.array([[0.0, np.nan], [1.0, 0.0]]), np.array([1, 0]), 2, "test")


def test_cross_entropy_of_even_odds_is_the_logarithm_of_the_classes() -> None:
    assert float(
        task_loss("classification", torch.zeros(5, 7), torch.arange(5), TrainOptions())
    ) == pytest.approx(math.log(7))
