"""What people look at is what the program answered: the first samples, none of them changed."""

from __future__ import annotations

import base64

import numpy as np
import pytest

from armlet import artifact_json
from armlet.artifacts import Task
from armlet.data.splits import Samples
from armlet.exhibits import Exhibits, Pictures
from armlet.metrics import Scorer, make_exhibits, n_of_trained
from armlet.metrics.exhibits import confidence_bins, error_histogram

RNG = np.random.default_rng(3)
GENERATION, DENOISING = Task("generation", (1, 6, 5)), Task("denoising", (3, 6, 5))


def values(*shape: int) -> np.ndarray:
    return RNG.random(shape).astype(np.float32)


def pixels(pictures: Pictures) -> np.ndarray:
    return np.frombuffer(base64.b64decode(pictures.pixels), np.uint8).reshape(pictures.shape)


def test_a_generator_shows_its_first_pictures_the_trained_networks_and_real_ones():
    made, trained, real = (values(n, 1, 6, 5) * 2 - 1 for n in (70, 16, 70))
    assert n_of_trained(GENERATION) == 16
    shown = make_exhibits(GENERATION, Samples((values(70, 4),), real), made, trained).pictures
    assert [(p.name, p.shape) for p in shown] == [
        ("compiled program", (64, 6, 5, 1)), ("trained network", (16, 6, 5, 1)), ("real", (64, 6, 5, 1)),
    ]  # fmt: skip
    for picture, source in zip(shown, (made, trained, real), strict=True):
        expected = (source[: len(pixels(picture))] + 1) / 2 * 255
        assert np.abs(pixels(picture) - expected.transpose(0, 2, 3, 1)).max() <= 0.5


def test_a_denoiser_shows_input_answers_and_the_clean_picture_in_colour_and_cuts_off_what_is_no_colour():
    noisy, made, trained, clean = (values(9, 3, 6, 5) for _ in range(4))
    made[0] = 7.0
    made[1] = -7.0
    shown = make_exhibits(DENOISING, Samples((noisy,), clean), made, trained[:8]).pictures
    assert [p.name for p in shown] == ["noisy input", "compiled program", "trained network", "clean picture"]
    assert {p.shape for p in shown} == {(8, 6, 5, 3)}
    assert (pixels(shown[1])[0] == 255).all()
    assert (pixels(shown[1])[1] == 0).all()
    assert np.abs(pixels(shown[0]) - noisy[:8].transpose(0, 2, 3, 1) * 255).max() <= 0.5


def test_answers_that_are_no_pictures_are_not_shown_as_such():
    task = Task("denoising", (12,))
    assert n_of_trained(task) == 0
    assert make_exhibits(task, Samples((values(9, 12),), values(9, 12)), values(9, 12), None) == Exhibits()


def test_forecasts_keep_their_order_and_are_the_first_seven_days_of_half_hours():
    came, answers = values(400, 2), values(400, 2)
    found = make_exhibits(Task("forecast", (2,)), Samples((values(400, 3),), came), answers, None).forecasts
    assert found.came == tuple(came[:336, 0].tolist())
    assert found.forecast == tuple(answers[:336, 0].tolist())


def test_every_error_is_counted_once_even_where_one_is_zero_or_all_are_the_same():
    labels = np.array([0] * 60 + [1] * 40)
    for errors in (
        np.exp(RNG.normal(size=100)) * (1 + 50 * labels),
        np.append(values(99), 0.0),
        np.full(100, 2.0),
    ):
        found = error_histogram(errors.astype(np.float64), labels)
        assert (sum(found.normal), sum(found.anomalies)) == (60, 40)
        assert all(a < b for a, b in zip(found.edges, found.edges[1:], strict=False))


def test_anomalies_are_counted_where_their_errors_lie():
    targets = np.zeros((6, 1), np.float32)
    outputs = np.array([[0.1], [0.1], [0.2], [3.0], [3.0], [9.0]], np.float32)
    samples = Samples((targets,), targets, np.array([0, 0, 0, 1, 1, 1]))
    found = make_exhibits(Task("anomaly", (1,)), samples, outputs, None).errors
    assert (found.normal[0], found.anomalies[-1]) == (2, 1)
    assert (found.edges[0], found.edges[-1]) == pytest.approx((0.01, 81.0))


def test_the_gaps_of_the_confidence_bins_add_up_to_the_calibration_error():
    logits, labels = RNG.normal(size=(500, 5)).astype(np.float32) * 2, RNG.integers(0, 5, 500)
    bins = confidence_bins(logits, labels)
    score = Scorer(Task("classification", (5,))).score(logits, Samples((logits,), labels, labels), "test")
    assert sum(b.n_samples for b in bins) == 500
    error = sum(b.n_samples * abs(b.confidence - b.accuracy) for b in bins) / 500
    assert error == pytest.approx(dict(score.others)["expected_calibration_error"], abs=1e-5)


def test_a_classifier_shows_how_sure_both_networks_are():
    labels = RNG.integers(0, 3, 50)
    before, after = RNG.normal(size=(2, 50, 3)).astype(np.float32)
    samples = Samples((before,), labels, labels)
    found = make_exhibits(Task("classification", (3,)), samples, after, before).reliability
    assert found.trained == confidence_bins(before, labels)
    assert found.compiled == confidence_bins(after, labels)


def test_exhibits_are_read_as_they_were_written():
    made = values(70, 1, 6, 5)
    exhibits = make_exhibits(GENERATION, Samples((values(70, 4),), made), made, made[:16])
    assert artifact_json.from_json(Exhibits, artifact_json.to_json(exhibits)) == exhibits
