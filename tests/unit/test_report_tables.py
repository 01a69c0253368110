"""The terminal's tables say every check and every pass."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from armlet.artifacts import Check, Cost, Latency, PassRecord, Score, Verdict
from armlet.report.tables import passes_table, score_rows, verdict_table
from armlet.report.words import cost_change, headline, margin_text, verdict_sentence
from armlet.scores import METRICS


def printed(table: object) -> str:
    console = Console(width=140, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    console.print(table)
    return console.export_text()


def verdict(*outcomes: str) -> Verdict:
    return Verdict(
        "board", tuple(Check(f"check {i}", "≤ 5 ms", "4 ms", 0.2, o) for i, o in enumerate(outcomes))
    )


def test_the_verdict_table_says_every_check_and_the_bundle():
    text = printed(
        verdict_table(verdict("pass", "fail", "not measured", "no budget"), Path("build/[x].armlet"))
    )
    rows = [line.split() for line in text.splitlines()]
    assert rows[0] == ["check", "budget", "measured", "margin", "verdict"]
    assert rows[1] == ["check", "0", "≤", "5", "ms", "4", "ms", "20", "%", "left", "pass"]
    assert [" ".join(row[10:]) for row in rows[1:5]] == ["pass", "fail", "not measured", "no budget"]
    assert "1 of 3 checks fail, 1 of 3 not measured" in text
    assert "bundle: build/[x].armlet" in text


@pytest.mark.parametrize(
    ("outcomes", "word", "sentence"),
    [
        (["pass", "no budget"], "pass", "1 of 1 checks pass"),
        (["pass", "fail"], "fail", "1 of 2 checks fail"),
        (["pass", "not measured"], "not measured", "1 of 2 not measured"),
        (["no budget"], "no budget", "no budget is set: nothing was checked"),
        ([], "no budget", "no budget is set: nothing was checked"),
    ],
)
def test_the_headline_is_the_worst_check_and_never_better(outcomes, word, sentence):
    made = verdict(*outcomes)
    assert (headline(made), verdict_sentence(made)) == (word, sentence)
    assert made.passes == (word in ("pass", "no budget"))


def test_the_passes_table_says_costs_with_their_change():
    before, after = Score("accuracy", 0.92, 100, "test"), Score("accuracy", 0.905, 100, "test")
    big, small = Cost(4_000_000, 90_000, 360_000, 360_004), Cost(1_000_000, 30_000, 120_000, 120_004)
    records = (
        PassRecord("prune_channels", big, small, before, after, 12.34, (), True),
        PassRecord("distill", small, small, after, after, 1.0, (), False),
    )
    slow, fast = (Latency("estimated", 0.8 * t, t, 1.2 * t, "") for t in (3.0, 1.5))
    text = printed(passes_table(records, {"board": (slow, fast, None), "other": (None, None, None)}))
    assert "other" not in text  # nothing is known there
    for words in (
        "1 prune_channels",
        "117 KiB ÷3",
        "1 M ÷4",
        "board",
        "estimated",
        "3 ms",
        "1.5 ms ÷2",
        "90.50 %",
        "−1.50",
        "12.3",
    ):
        assert words in text
    assert "2 distill (changed nothing)" in text
    assert "±0.00" in text
    assert "packed" not in text
    sparse = PassRecord("prune_weights", big, replace(big, stored_bytes=90_004), before, after, 1.0, (), True)
    text = printed(passes_table((sparse,), {}))
    assert "packed" in text
    assert "87.9 KiB" in text


def test_below_the_passes_table_stands_what_changed_nothing_and_what_made_it_slower():
    score, cost = Score("accuracy", 0.9, 100, "test"), Cost(4_000_000, 90_000, 360_000, 360_004)
    records = (
        PassRecord("prune_channels", cost, cost, score, score, 1.0, ("norm keeps its channels",), False),
        PassRecord("quantize_static", cost, cost, score, score, 1.0, ("calibrated on 64 samples",), True),
    )
    times = [Latency("estimated", 0.8 * t, t, 1.2 * t, "") for t in (2.0, 2.02, 3.0)]
    text = printed(passes_table(records, {"board": tuple(times)}))
    remarks = text.splitlines()[-2:]
    assert [line.strip() for line in remarks] == [
        "1 prune_channels: norm keeps its channels",
        "2 quantize_static makes the program 1.5 times as slow on board",
    ]


def test_each_metric_of_a_score_is_a_row_with_its_own_label_and_unit():
    score = Score("psnr", 22.456, 200, "test", others=(("psnr_gain", 5.5), ("ssim", 0.81234)))
    assert score_rows(score) == (
        ("PSNR", "22.46 dB of 200 test samples"),
        ("PSNR gain", "5.50 dB"),
        ("SSIM", "0.8123"),
    )
    assert score_rows(Score("mape", 0.0661, 9, "test")) == (("MAPE", "6.61 % of 9 test samples"),)


def test_changes_of_a_cost_are_worded_as_factors():
    changes = [cost_change(*pair) for pair in ((10, 4), (4, 10), (1000, 1001), (0, 5), (7, 7))]
    assert changes == ["÷2.5", "×2.5", "", "", ""]


def test_margins_and_changes_are_worded_with_their_sign():
    assert [margin_text(m) for m in (None, 0.0, 0.125, -0.03)] == [
        "–",
        "0 % left",
        "12.5 % left",
        "missed by 3 %",
    ]
    assert [METRICS["accuracy"].change(0.5, x) for x in (0.5, 0.51, 0.49, 0.50001)] == [
        "±0.00 points", "+1.00 points", "−1.00 points", "±0.00 points",
    ]  # fmt: skip
