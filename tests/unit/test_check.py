from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from armlet.artifacts import Check, Compiled, Evaluated, Latency, Match, Measured, Score, StreamMeasured
from armlet.check import check_budgets, worst_class_drop
from armlet.spec.budget import Budgets

TRAINED = Score("accuracy", 0.92, 1000, "test", (0.9, 0.94))


def compiled(code: int = 10_000, constants: int = 20_000, arena: int = 4096) -> Compiled:
    return Compiled(
        "board", "aarch64-linux-gnu", "cortex-a72", (), "net", (), (), code, constants, arena, arena, (), (), True, ()
    )  # fmt: skip


def outcome(budgets: Budgets, what: str, **facts: object) -> str:
    score = facts.get("score", Score("accuracy", 0.91, 1000, "test", (0.86, 0.96)))
    measured = Measured("board", "emulator", facts.get("match"), None, facts.get("latency"))
    verdict = check_budgets(
        budgets, TRAINED, Evaluated(score, 1.0), facts.get("compiled", compiled()), measured
    )
    return next(check.outcome for check in verdict.checks if check.what == what)


@pytest.mark.parametrize(
    ("budgets", "what", "expected"),
    [
        (Budgets(), "accuracy", "no budget"),
        (Budgets(accuracy=0.91), "accuracy", "pass"),
        (Budgets(accuracy=0.9101), "accuracy", "fail"),
        (Budgets(accuracy_drop=0.01), "accuracy drop", "pass"),
        (Budgets(accuracy_drop=0.0099), "accuracy drop", "fail"),
        (Budgets(worst_class_accuracy_drop=0.04), "worst class drop", "pass"),
        (Budgets(worst_class_accuracy_drop=0.039), "worst class drop", "fail"),
        (Budgets(size="30000 B"), "size", "pass"),
        (Budgets(size="29999 B"), "size", "fail"),
        (Budgets(memory="4 KiB"), "memory", "pass"),
        (Budgets(memory="4095 B"), "memory", "fail"),
        (Budgets(latency="5 ms"), "latency", "not measured"),
    ],
)
def test_a_budget_met_exactly_is_met_and_one_more_fails(budgets, what, expected):
    assert outcome(budgets, what) == expected


def test_an_estimate_is_held_against_its_upper_bound():
    latency = Latency("estimated", 1.0, 2.0, 3.0, "counted")
    assert outcome(Budgets(latency="3 ms"), "latency", latency=latency) == "pass"
    assert outcome(Budgets(latency="2.9 ms"), "latency", latency=latency) == "fail"


def test_a_budget_that_could_not_be_measured_never_passes():
    verdict = check_budgets(
        Budgets(latency="5 ms"),
        TRAINED,
        Evaluated(TRAINED, 1.0),
        compiled(),
        Measured("b", "e", None, None, None),
    )
    assert not verdict.passes


def test_a_program_for_a_gpu_is_scored_as_it_ran_and_not_as_the_hosts_program():
    gpu, match = replace(compiled(), gpu="opencl", integer_only=False), Match(9, 9, 0.0, 1e-4, "sums")
    ran = Measured("gpu", "PoCL", match, None, None, score=replace(TRAINED, value=0.5))
    absent = Measured("gpu", "none", None, None, None)
    budgets = Budgets(accuracy=0.6)
    found = {c.what: c for c in check_budgets(budgets, TRAINED, Evaluated(TRAINED, 1.0), gpu, ran).checks}
    assert (found["accuracy"].outcome, found["same outputs"].outcome) == ("fail", "pass")
    verdict = check_budgets(budgets, TRAINED, Evaluated(TRAINED, 1.0), gpu, absent)
    found = {c.what: c for c in verdict.checks}
    assert (found["accuracy"].outcome, found["same outputs"].outcome) == ("not measured", "not measured")
    assert not check_budgets(Budgets(), TRAINED, Evaluated(TRAINED, 1.0), gpu, absent).passes


def test_outputs_that_differ_from_the_hosts_fail_even_without_budgets():
    differing = Match(500, 499, 0.5, 0.0, "exact")
    assert outcome(Budgets(), "same outputs", match=differing) == "fail"
    assert outcome(Budgets(), "same outputs", match=Match(500, 500, 0.0, 0.0, "exact")) == "pass"


def test_the_worst_class_is_the_one_that_lost_most():
    assert worst_class_drop(TRAINED, Score("accuracy", 0.9, 10, "test", (0.95, 0.84))) == pytest.approx(0.1)
    assert worst_class_drop(TRAINED, Score("accuracy", 0.9, 10, "test")) is None


@given(st.integers(1, 10**7), st.integers(1, 10**7))
def test_the_margin_is_negative_exactly_when_a_size_budget_fails(budget, size):
    measured = Measured("board", "e", None, None, None)
    verdict = check_budgets(
        Budgets(size=f"{budget} B"), TRAINED, Evaluated(TRAINED, 1.0), compiled(size, 0), measured
    )
    check = next(c for c in verdict.checks if c.what == "size")
    assert (check.margin < 0) == (check.outcome == "fail") == (size > budget)


def line(budgets: Budgets, what: str, **facts: object) -> Check:
    measured = Measured("board", "emulator", None, None, facts.get("latency"))
    verdict = check_budgets(
        budgets, TRAINED, Evaluated(TRAINED, 1.0), facts.get("compiled", compiled()), measured
    )
    return next(check for check in verdict.checks if check.what == what)


def test_a_budget_is_printed_as_it_was_set():
    assert line(Budgets(accuracy="90 %"), "accuracy").budget == "≥ 90.0 %"
    assert line(Budgets(accuracy="91.75 %"), "accuracy").budget == "≥ 91.75 %"
    assert line(Budgets(accuracy_drop="0.25 %"), "accuracy drop").budget == "≤ 0.25 points"


def test_a_size_that_would_round_to_its_budget_is_printed_in_bytes():
    check = line(Budgets(size="96 KiB"), "size", compiled=compiled(code=96 * 1024 + 1, constants=0))
    assert (check.budget, check.measured, check.outcome) == ("≤ 98304 B", "98305 B", "fail")


def test_a_budget_of_nothing_at_all_fails_without_a_margin():
    latency = Latency("estimated", 1.0, 2.0, 3.0, "counted")
    for check in (
        line(Budgets(latency="0 ms"), "latency", latency=latency),
        line(Budgets(size="0 B"), "size"),
    ):
        assert (check.outcome, check.margin) == ("fail", None)


def test_what_needs_labels_is_not_measured_where_there_are_none():
    budgets = Budgets(accuracy=0.9, accuracy_drop=0.01, psnr="20 dB", score_drop=0.5, size="1 MiB")
    measured = Measured("board", "emulator", None, None, None)
    checks = {c.what: c for c in check_budgets(budgets, None, None, compiled(), measured).checks}
    unmeasured = {what for what, check in checks.items() if check.outcome == "not measured"}
    assert unmeasured == {"accuracy", "PSNR", "accuracy drop", "score drop"}
    assert checks["accuracy"].budget == "≥ 90.0 %"
    assert checks["size"].outcome == "pass"
    bare = check_budgets(Budgets(), None, None, compiled(), measured)
    assert bare.passes
    assert bare.checks[0] == Check("accuracy", "", "not measured", None, "no budget")


def test_the_score_of_a_float16_program_is_said_to_be_that_of_the_float32_one():
    half = replace(compiled(), precision="float16")
    assert "samples, as float32)" in line(Budgets(), "accuracy", compiled=half).measured
    assert "float32" not in line(Budgets(), "accuracy").measured
    ran = Measured("gpu", "PoCL", None, None, None, score=TRAINED)
    on_gpu = check_budgets(Budgets(), TRAINED, Evaluated(TRAINED, 1.0), replace(half, gpu="opencl"), ran)
    assert "float32" not in on_gpu.checks[0].measured


def test_without_a_device_every_line_says_what_was_not_measured_and_where_the_rest_comes_from():
    half = Match(100, 90, 1e-6, 1e-4, "sums")
    stream = StreamMeasured("board", 10, half, None, None, None, None)
    measured = Measured("board", "no device", None, None, None, ran=False)
    facts = (TRAINED, Evaluated(TRAINED, 1.0), compiled(), replace(measured, reference=half), stream)
    verdict = check_budgets(Budgets(accuracy="90 %", size="30000 B"), *facts)
    lines = {check.what: check for check in verdict.checks}
    assert lines["accuracy"].measured == "92.00 % (1000 samples, by the program for this machine)"
    for what in ("same answers", "stream: same answers"):
        assert lines[what].measured.endswith(", by the program for this machine")
    for what in ("latency", "step latency", "same outputs", "stream: same outputs", "stream: same states"):
        assert (lines[what].measured, lines[what].outcome) == ("not measured: no device", "no budget")
    assert verdict.passes
    assert not check_budgets(Budgets(latency="1 s"), *facts).passes
    assert not check_budgets(Budgets(step_latency="1 s"), *facts).passes
