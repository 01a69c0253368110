"""What compression changed is counted class by class, and the surest answers come first."""

from __future__ import annotations

import numpy as np
import pytest

from armlet.metrics import find_changes, score_classification
from armlet.metrics.changes import MOST_INPUTS


def logits_of(classes: list[int], n_classes: int = 3, height: float = 4.0) -> np.ndarray:
    return height * np.eye(n_classes, dtype=np.float32)[classes]


def test_lost_and_gained_answers_are_counted_in_the_class_they_belong_to():
    labels = np.array([0, 0, 1, 1, 2, 2])
    found = find_changes(logits_of([0, 0, 1, 0, 1, 2]), logits_of([0, 1, 1, 1, 0, 2]), labels)
    assert (found.n_samples, found.n_changed, found.n_lost, found.n_gained) == (6, 3, 1, 1)
    assert [(c.n_samples, c.n_changed, c.n_lost, c.n_gained) for c in found.classes] == [
        (2, 1, 1, 0), (2, 1, 0, 1), (2, 1, 0, 0),
    ]  # fmt: skip
    assert {x.index for x in found.inputs} == {1, 3, 4}
    assert [(x.label, x.before, x.after) for x in found.inputs if x.index == 4] == [(2, 1, 0)]


def test_the_inputs_that_the_network_was_surest_of_come_first_and_not_all_are_kept():
    n = MOST_INPUTS + 10
    heights = np.random.default_rng(0).uniform(1, 9, n).astype(np.float32)
    before = logits_of([0] * n) / 4 * heights[:, None]
    found = find_changes(before, logits_of([1] * n), np.zeros(n, np.int64))
    assert found.n_changed == n
    assert [x.index for x in found.inputs] == np.argsort(-heights)[:MOST_INPUTS].tolist()
    first = found.inputs[0]
    assert first.confidence_before == pytest.approx(1 / (1 + 2 * np.exp(-heights.max())), rel=1e-5)


def test_equal_answers_change_nothing():
    found = find_changes(logits_of([0, 1, 2]), logits_of([0, 1, 2], height=1.0), np.array([0, 0, 0]))
    assert (found.n_changed, found.inputs) == (0, ())


def test_the_calibration_error_is_the_gap_between_confidence_and_accuracy():
    # Every answer is 90 % sure, and 60 % are right.
    labels = np.array([0] * 6 + [1] * 4)
    logits = np.log(np.tile(np.array([[0.9, 0.1]], np.float32), (10, 1)))
    score = score_classification(logits, labels, 2, "test")
    assert dict(score.others)["expected_calibration_error"] == pytest.approx(0.3, abs=1e-5)
