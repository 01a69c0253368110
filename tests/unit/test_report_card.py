"""The model card names each metric of a task with its unit and what it says."""

from __future__ import annotations

from dataclasses import replace

from tests.unit.test_report_answers import generator
from tests.unit.test_report_page import history, report_input

from armlet.artifacts import Pretrained
from armlet.report import ReportInput
from armlet.report.card import CardInput, FileRow, render_card
from armlet.scores import METRICS


def card_of(report: ReportInput) -> str:
    passes = tuple(step.record for step in report.passes)
    files = (FileRow("model.onnx", 1234, "ab" * 32),)
    return render_card(
        CardInput(
            report.recipe, "full", report.data, report.trained, passes, files, ("armlet 1",),
            report.judge, report.pretrained,
        )
    )  # fmt: skip


def test_a_generators_card_tells_of_its_metrics_its_judge_and_the_untrained_network():
    card = card_of(generator())
    for name, value in (("frechet_distance", "0.5"), ("sample_precision", "25.00 %")):
        assert f"| {METRICS[name].label} | {value} | {METRICS[name].meaning} |" in card
    assert "The judge is a `cnn`" in card
    assert "87.65 % test accuracy" in card
    assert "Before training, the Fréchet distance was 12.75." in card
    assert "| class |" not in card


def test_a_classifiers_card_has_its_classes_and_no_judge():
    card = card_of(report_input())
    assert "| class | accuracy |" in card
    assert "judge" not in card
    assert "learned without labels" not in card


def test_a_card_tells_of_pretraining():
    card = card_of(replace(report_input(), pretrained=Pretrained(history(5, 0.9), "cpu", "fp32", 33.3)))
    assert "hidden parts of its inputs, for 5 epochs in 33 s." in card
