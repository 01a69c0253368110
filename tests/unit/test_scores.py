"""Metrics of every task against their definitions, and budgets on them."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from armlet.artifacts import Compiled, Evaluated, Measured, Score, Task
from armlet.check import check_budgets
from armlet.data.splits import Samples
from armlet.errors import ArmletError, UsageError
from armlet.metrics import Scorer
from armlet.scores import METRICS, TASK_METRICS, loss_of_score
from armlet.spec.budget import Budgets

RNG = np.random.default_rng(0)


def rows(n: int, width: int) -> np.ndarray:
    return RNG.normal(size=(n, width)).astype(np.float32)


def anomalies(labels: np.ndarray) -> tuple[np.ndarray, Samples]:
    """Answers that are worse for anomalies, though not always."""
    x = rows(len(labels), 4)
    return x + rows(len(labels), 4) * (0.5 + labels[:, None]), Samples((x,), x, labels)


def test_roc_auc_and_average_precision_are_those_of_scikit_learn():
    labels = (RNG.random(400) < 0.2).astype(np.int64)
    outputs, samples = anomalies(labels)
    errors = np.square(outputs.astype(np.float64) - samples.targets).mean(axis=1)
    score = Scorer(Task("anomaly", (4,))).score(outputs, samples, "test")
    assert score.value == pytest.approx(roc_auc_score(labels, errors), abs=1e-6)
    assert dict(score.others)["average_precision"] == pytest.approx(
        average_precision_score(labels, errors), abs=1e-6
    )


def test_where_everything_is_normal_the_score_is_the_reconstruction_error():
    outputs, samples = anomalies(np.zeros(30, np.int64))
    score = Scorer(Task("anomaly", (4,))).score(outputs, samples, "validation")
    assert score.metric == "reconstruction_error"
    assert score.value == pytest.approx(np.square(outputs - samples.targets).mean(), rel=1e-6)


def test_mape_does_not_change_with_the_unit_of_what_is_forecast():
    targets = (3 + RNG.random((50, 1))).astype(np.float32)
    samples = Samples((rows(50, 3),), targets)
    scaled = Samples(samples.inputs, targets * np.float32(8))
    scorer = Scorer(Task("forecast", (1,)))
    score = scorer.score(targets * np.float32(1.1), samples, "test")
    assert score.value == pytest.approx(0.1, abs=1e-6)
    assert scorer.score(targets * np.float32(8 * 1.1), scaled, "test").value == pytest.approx(
        score.value, rel=1e-6
    )


def test_psnr_gain_is_what_halving_the_noise_brings():
    clean = RNG.random((20, 1, 16, 16)).astype(np.float32) * 0.4 + 0.3
    noise = (RNG.normal(size=clean.shape) * 0.05).astype(np.float32)
    samples = Samples((clean + noise,), clean)
    score = Scorer(Task("denoising", (1, 16, 16))).score(clean + noise / 2, samples, "test")
    others = dict(score.others)
    assert others["psnr_gain"] == pytest.approx(20 * np.log10(2), abs=1e-4)
    assert score.value == pytest.approx(20 * np.log10(2 / 0.05), abs=0.2)
    assert 0.5 < others["ssim"] < 1
    perfect = Scorer(Task("denoising", (1, 16, 16))).score(clean, samples, "test")
    assert dict(perfect.others)["ssim"] == pytest.approx(1, abs=1e-6)


def test_answers_of_another_shape_or_not_numbers_are_refused():
    scorer, samples = Scorer(Task("forecast", (2,))), Samples((rows(3, 2),), rows(3, 2))
    with pytest.raises(UsageError, match=r"answers of shape \(3, 1\)"):
        scorer.score(rows(3, 1), samples, "test")
    with pytest.raises(ArmletError, match="NaN"):
        scorer.score(np.full((3, 2), np.nan), samples, "test")
    with pytest.raises(UsageError, match="no samples"):
        scorer.score(rows(0, 2), samples.take(slice(0)), "test")


def test_every_metric_of_a_task_has_a_budget_and_a_way_to_write_it():
    for names in TASK_METRICS.values():
        for name in names:
            assert name in Budgets.model_fields
            assert METRICS[name].text(0.5)
            assert METRICS[name].meaning


def test_changes_are_written_with_their_sign_and_unit():
    assert METRICS["psnr"].change(20.0, 19.5) == "−0.50 dB"
    assert METRICS["roc_auc"].change(0.9, 0.95) == "+0.05"
    assert METRICS["mape"].change(0.05, 0.05) == "±0.00 points"
    assert loss_of_score("mape", 0.05, 0.06) == pytest.approx(0.01)
    assert loss_of_score("accuracy", 0.9, 0.8) == pytest.approx(0.1)


COMPILED = Compiled("host", "x", "x", (), "x", (), (), 1, 1, 1, 1, (), (), True, ())
MEASURED = Measured("host", "x", None, None, None)


def outcomes(budgets: dict[str, object], before: Score, after: Score) -> dict[str, tuple[str, str]]:
    verdict = check_budgets(
        Budgets.model_validate(budgets), before, Evaluated(after, 1.0), COMPILED, MEASURED
    )
    return {
        check.what: (check.outcome, check.measured)
        for check in verdict.checks
        if check.outcome != "no budget"
    }


def test_a_budget_is_a_least_or_a_most_by_its_metric():
    before, after = Score("mape", 0.05, 9, "test"), Score("mape", 0.06, 9, "test")
    assert outcomes({"mape": 0.055}, before, after) == {METRICS["mape"].label: ("fail", "6.00 % (9 samples)")}
    assert outcomes({"mape": "6 %"}, before, after)[METRICS["mape"].label][0] == "pass"
    assert outcomes({"score_drop": 0.02}, before, after)["score drop"] == ("pass", "5.00 % to 6.00 %")
    assert outcomes({"score_drop": 0.005}, before, after)["score drop"][0] == "fail"


def test_a_budget_in_decibels_is_held_against_a_further_metric():
    after = Score("psnr", 22.0, 9, "test", others=(("psnr_gain", 5.5), ("ssim", 0.8)))
    found = outcomes({"psnr_gain": "6 dB", "ssim": 0.75}, after, after)
    assert (found["PSNR gain"][0], found["SSIM"][0]) == ("fail", "pass")


def test_a_metric_that_the_task_has_not_is_not_measured_and_never_passes():
    score = Score("mape", 0.05, 9, "test")
    found = outcomes({"roc_auc": 0.9, "accuracy_drop": 0.1}, score, score)
    assert {outcome for outcome, _ in found.values()} == {"not measured"}
