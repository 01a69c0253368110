"""The model card names each metric of a task with its unit and what it says."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.unit.test_report_answers import generator
from tests.unit.test_report_page import history, report_input

from armlet.artifacts import Pretrained
from armlet.report import ReportInput, render_report
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


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"fraction": "5 %"}, "of which 5.0 % kept their labels"),
        ({"per_class": 20}, "of which at most 20 of each class kept their labels"),
    ],
)
def test_card_and_page_tell_how_many_labels_there_were(asked, said, tmp_path):
    report = report_input()
    data = report.recipe.data.model_validate({"kind": "fashion-mnist", **asked})
    report = replace(report, recipe=report.recipe.model_copy(update={"data": data}))
    assert said in card_of(report)
    render_report(report, tmp_path / "report.html")
    assert said.replace("kept", "keep") in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "their labels" not in card_of(report_input())
