"""Pages of generators, denoisers, forecasts and anomalies show answers, and say what their scores mean."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from html import unescape

import numpy as np
import pytest
from PIL import Image
from tests.unit.test_report_page import BIG, Reader, history, render, report_input

from armlet.artifacts import Pretrained, Score, Trained
from armlet.exhibits import ConfidenceBin, ErrorHistogram, Exhibits, Forecasts, Pictures, Reliability
from armlet.report import ReportInput
from armlet.report.pictures import mosaic, png, strips
from armlet.scores import METRICS, TASK_METRICS
from armlet.spec.recipe import Recipe

RNG = np.random.default_rng(5)
CNN = {"kind": "cnn"}
MODELS = {
    "generation": {"kind": "gan"},
    "denoising": {"kind": "autoencoder"},
    "anomaly": {"kind": "autoencoder"},
}


def pictures(name: str, n: int, *, channels: int = 1) -> Pictures:
    pixels = RNG.integers(0, 256, (n, 7, 5, channels), np.uint8)
    return Pictures(name, pixels.shape, base64.b64encode(pixels.tobytes()).decode())


def page_of(task: str, exhibits: Exhibits, **changes: object) -> ReportInput:
    """A made-up build for a task: every metric of it, and exhibits."""
    made = report_input()
    kind = {"forecast": "electricity-demand", "anomaly": "shuttle"}.get(task)
    data = {"kind": kind} if kind else {"kind": "fashion-mnist", "task": task}
    sections = {"name": "made-up", "data": data, "model": MODELS.get(task, {"kind": "lstm"})}
    if task == "generation":
        sections["judge"] = {"model": CNN}
    first, *others = TASK_METRICS[task]
    score = Score(first, 0.5, 200, "test", others=tuple((name, 0.25) for name in others))
    learned = tuple(replace(e, metric=first, validation_score=0.3) for e in history(3, 0.9))
    trained = replace(made.trained, score=score, history=learned)
    return replace(
        made,
        recipe=Recipe.model_validate(sections),
        data=replace(made.data, class_names=()),
        trained=trained,
        passes=(),
        evaluated=replace(made.evaluated, score=score),
        exhibits=exhibits,
        **changes,
    )


def plots_of(page: str) -> dict[str, str]:
    found = re.findall(r'<svg[^>]*aria-label="([^"]*)".*?</svg>', page, re.DOTALL)
    return {unescape(label).partition(". ")[0]: unescape(label).partition(". ")[2] for label in found}


GENERATED = Exhibits((pictures("compiled program", 16), pictures("trained network", 4), pictures("real", 16)))
DENOISED = Exhibits(tuple(pictures(name, 3) for name in ("noisy input", "compiled program", "clean picture")))


def generator() -> ReportInput:
    made = page_of("generation", GENERATED)
    untrained = Score("frechet_distance", 12.75, 200, "test")
    judge = Trained(
        BIG, Score("accuracy", 0.8765, 10_000, "test"), history(6, 0.9), "cpu", "fp32", 77.2, False
    )
    return replace(made, trained=replace(made.trained, untrained_score=untrained), judge=judge)


def test_a_generators_page_shows_pictures_and_tells_of_the_judge_and_of_the_untrained_network(tmp_path):
    page = render(generator(), tmp_path)
    text = Reader(page).text.replace("\N{NO-BREAK SPACE}", "")
    assert plots_of(page).keys() >= {"Made by the compiled program", "Made by the trained network", "Real"}
    assert page.count("data:image/png;base64,") == 3
    for words in (
        "in the features of a judge: a cnn of 93322 parameters", "for 6 epochs in 77 s", "87.65 % test accuracy",
        "Untrained", "12.75", "no published \"FID\"",
    ):  # fmt: skip
        assert words in text, words


def test_a_generator_has_no_validation_loss_which_would_be_its_score_again(tmp_path):
    page = render(generator(), tmp_path)
    assert "training loss" in plots_of(page)["Loss"]
    assert "loss (hinge)" in page
    assert "Validation Fréchet distance" in plots_of(page)


def test_the_pictures_of_a_page_load_nothing_from_outside(tmp_path):
    loads = Reader(render(generator(), tmp_path)).loads
    assert {place.partition(",")[0] for place in loads if not place.startswith("#")} == {
        "data:image/png;base64"
    }


def test_a_denoisers_page_shows_what_went_in_what_came_out_and_what_was_meant(tmp_path):
    page = render(page_of("denoising", DENOISED), tmp_path)
    assert "noisy input, compiled program, clean picture" in plots_of(page)["Test samples"]
    for name in ("noisy input", "compiled program", "clean picture"):
        assert f">{name}</text>" in page
    assert "loss (mse)" in page
    assert "test PSNR (dB)" in page


def test_a_forecasts_page_shows_its_course_and_says_where_there_are_gaps(tmp_path):
    whole = page_of("forecast", Exhibits(forecasts=Forecasts((0.5, 1.0, 1.5), (0.6, 0.9, 1.4))))
    limited = replace(
        whole,
        recipe=whole.recipe.model_copy(
            update={"data": whole.recipe.data.model_copy(update={"test_limit": 3})}
        ),
    )
    page = render(whole, tmp_path)
    assert "between 0.5 and 1.5" in plots_of(page)["Forecasts"]
    assert "gaps" not in Reader(page).text
    assert "gaps between them" in Reader(render(limited, tmp_path)).text


def test_a_page_on_anomalies_shows_how_far_their_errors_are_apart(tmp_path):
    errors = ErrorHistogram((0.01, 0.1, 1.0, 10.0), (90, 10, 0), (0, 1, 4))
    page = render(page_of("anomaly", Exhibits(errors=errors)), tmp_path)
    said = plots_of(page)["Reconstruction errors"]
    assert "normal: 100 samples, half of them up to 0.1" in said
    assert "anomalies: 5 samples, half of them up to 10" in said
    assert "mathdefault" not in page, "a tick's label is written as a formula"


def test_a_classifiers_page_shows_how_sure_it_is(tmp_path):
    before = (ConfidenceBin(30, 0.45, 0.5), ConfidenceBin(70, 0.95, 0.9))
    after = (ConfidenceBin(100, 0.8, 0.75),)
    page = render(report_input(exhibits=Exhibits(reliability=Reliability(before, after))), tmp_path)
    assert "45 % sure and 50 % right" in plots_of(page)["Confidence and accuracy"]
    assert "compiled program: 80 % sure and 75 % right" in plots_of(page)["Confidence and accuracy"]


@pytest.mark.parametrize("task", [task for task in TASK_METRICS if task != "classification"])
def test_a_page_explains_the_metrics_of_its_task_and_no_others(task, tmp_path):
    reader = Reader(render(page_of(task, Exhibits()), tmp_path))
    assert reader.open == []
    for name, metric in METRICS.items():
        assert (metric.meaning in reader.text) == (name in TASK_METRICS[task]), name
    assert "Accuracy of each class" not in reader.text
    assert "What it answers" not in reader.text


def test_pretraining_has_its_curve_and_its_seconds(tmp_path):
    made = report_input(pretrained=Pretrained(history(5, 0.9), "cpu", "fp32", 33.3))
    recipe = made.recipe.model_dump(mode="json")
    recipe |= {"model": {"kind": "transformer", "patch": 7}, "pretrain": {"mask": 0.4}, "passes": []}
    page = render(replace(made, recipe=Recipe.model_validate(recipe)), tmp_path)
    assert "pre-training ends at validation loss" in plots_of(page)["Pre-training loss"]
    assert "(40.0 % of them) for 5 epochs on cpu in fp32, 33 s" in Reader(page).text
    assert "pre-training" not in Reader(render(report_input(), tmp_path)).text


def decoded(svg: str) -> np.ndarray:
    data = re.search(r'base64,([^"]*)"', svg).group(1)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGBA")).astype(int)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_mosaic_has_each_picture_in_its_place_and_nothing_between_them(channels):
    source = pictures("x", 5, channels=channels)
    pixels = np.frombuffer(base64.b64decode(source.pixels), np.uint8).reshape(source.shape).astype(int)
    shown = decoded(mosaic(source, "Title", 3))
    assert shown.shape == (2 * 7 + 1, 3 * 5 + 2, 4)
    for i in range(5):
        top, left = 8 * (i // 3), 6 * (i % 3)
        part = shown[top : top + 7, left : left + 5]
        assert (part[..., 3] == 255).all()
        assert (
            np.abs(part[..., :3] - pixels[i]).max() <= 255 / 31 / 2 + 1
        )  # half a step of 32 shades, rounded
    assert (shown[7, :, 3] == 0).all()
    assert (shown[:, 5, 3] == 0).all()
    assert (shown[8:, 12:, 3] == 0).all(), "where the sixth picture would be"


def test_strips_are_named_and_below_each_other():
    svg = strips([pictures("<first>", 3), pictures("second", 3)], "Title")
    assert svg.index("&lt;first&gt;</text>") < svg.index("second</text>")
    tops = [float(top) for top in re.findall(r'<image x="92" y="([\d.]+)"', svg)]
    heights = [float(height) for height in re.findall(r'<image[^>]* height="([\d.]+)"', svg)]
    assert tops[1] == pytest.approx(tops[0] + heights[0], abs=0.01)


def test_a_png_is_what_others_read(tmp_path):
    lines = (bytes([0, 255, 8]), bytes([16, 24, 32]))
    image = Image.open(io.BytesIO(png(1, 3, lines)))
    image.verify()
    assert np.array_equal(
        np.asarray(Image.open(io.BytesIO(png(1, 3, lines))).convert("L")), [[0, 255, 8], [16, 24, 32]]
    )
