from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from armlet.artifacts import Check, Evaluated, Latency, Measured, Score, Verdict
from armlet.bundle import Bundle, Manifest
from armlet.errors import UsageError
from armlet.regression import chance_of_drop, pack_right, regressions, unpack_right
from armlet.report.junit import write_junit

N = 1000


@given(st.binary(max_size=70).map(lambda raw: bytes(b & 1 for b in raw)))
def test_what_is_right_comes_back(right: bytes) -> None:
    assert unpack_right(pack_right(right), len(right)) == [bool(b) for b in right]


@given(st.integers(0, 60), st.integers(0, 60))
def test_the_chance_is_the_binomial_tests(lost: int, gained: int) -> None:
    expected = binomtest(lost, lost + gained, 0.5, "greater").pvalue if lost + gained else 1.0
    assert chance_of_drop(lost, gained) == pytest.approx(expected)


def test_the_chance_among_many_changes_is_found_in_time() -> None:
    assert chance_of_drop(10_100, 9_900) == pytest.approx(binomtest(10_100, 20_000, 0.5, "greater").pvalue)


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    """A small bundle's manifest; only what is compared matters."""
    import onnx
    from onnx import TensorProto, helper

    import armlet

    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 8))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 8))],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9),
        tmp_path / "n.onnx",
    )
    made = armlet.compile_onnx(tmp_path / "n.onnx", "host", output=tmp_path / "n.armlet")
    return replace(
        made.manifest,
        evaluated=scored(range(900)),
        measured=Measured("host", "here", None, None, Latency("estimated", 0.9, 1.0, 1.1, "")),
    )


def scored(right: range, metric: str = "accuracy", value: float | None = None) -> Evaluated:
    flags = np.isin(np.arange(N), list(right)).astype(np.uint8)
    score = Score(metric, flags.mean() if value is None else value, N, "test")
    return Evaluated(score, 1.0, None, pack_right(flags.tobytes()) if value is None else None)


def outcomes(new: Manifest, old: Manifest, tolerance: float = 0.0) -> dict[str, str]:
    checks = regressions(Bundle(Path("new"), new), Bundle(Path("old"), old), tolerance)
    return {check.what.removesuffix(" beside baseline"): check.outcome for check in checks}


def test_a_bundle_is_no_worse_than_itself(manifest: Manifest) -> None:
    assert outcomes(manifest, manifest) == dict.fromkeys(("accuracy", "latency", "size", "memory"), "pass")


def test_what_counts_of_a_program_for_a_gpu_is_its_own_score(manifest: Manifest) -> None:
    def on_gpu(score: Score | None) -> Manifest:
        measured = replace(manifest.measured, score=score, latency=None)
        return replace(manifest, compiled=replace(manifest.compiled, gpu="opencl"), measured=measured)

    better, worse = (on_gpu(Score("accuracy", value, N, "test")) for value in (0.9, 0.8))
    assert outcomes(better, better)["accuracy"] == outcomes(better, worse)["accuracy"] == "pass"
    assert outcomes(worse, better)["accuracy"] == "fail"
    assert outcomes(on_gpu(None), better)["accuracy"] == "no budget"


@pytest.mark.parametrize(
    ("right", "expected"),
    [
        (range(895), "fail"),  # five lost, none gained: p = 1/32
        (range(896), "pass"),  # four lost: p = 1/16
        (range(20, 915), "pass"),  # twenty lost, fifteen gained: p = 0.25
        (range(60, 920), "fail"),  # sixty lost, twenty gained
        (range(1000), "pass"),
    ],
)
def test_a_drop_fails_where_chance_does_not_explain_it(
    manifest: Manifest, right: range, expected: str
) -> None:
    assert outcomes(replace(manifest, evaluated=scored(right)), manifest)["accuracy"] == expected


def test_costs_may_be_worse_by_the_tolerance(manifest: Manifest) -> None:
    slower = replace(manifest.measured, latency=Latency("estimated", 0.9, 1.03, 1.1, ""))
    bigger = replace(manifest, size_bytes=round(manifest.size_bytes * 1.03), measured=slower)

    assert outcomes(bigger, manifest, 0.02) == {
        "accuracy": "pass",
        "latency": "fail",
        "size": "fail",
        "memory": "pass",
    }
    assert set(outcomes(bigger, manifest, 0.04).values()) == {"pass"}


def test_a_timing_may_be_worse_by_what_timings_replicate_within(manifest: Manifest) -> None:
    def timed(ms: float) -> Manifest:
        latency = Latency("measured (host)", ms, ms, ms, "")
        return replace(manifest, measured=replace(manifest.measured, latency=latency))

    assert outcomes(timed(1.04), timed(1.0))["latency"] == "pass"
    assert outcomes(timed(1.06), timed(1.0))["latency"] == "fail"
    assert outcomes(timed(9.0), manifest)["latency"] == "no budget"  # an estimate is no measurement


def test_scores_without_single_answers_may_be_worse_by_the_tolerance(manifest: Manifest) -> None:
    old = replace(manifest, evaluated=scored(range(0), "reconstruction_error", 1.0))
    new = replace(manifest, evaluated=scored(range(0), "reconstruction_error", 1.03))
    (what,) = set(outcomes(new, old)) - {"latency", "size", "memory"}
    assert outcomes(new, old, 0.02)[what] == "fail"
    assert outcomes(new, old, 0.04)[what] == "pass"
    assert outcomes(old, new)[what] == "pass"
    with pytest.raises(UsageError, match="scored by other metrics"):
        outcomes(new, manifest)


def test_bundles_for_different_targets_are_not_compared(manifest: Manifest) -> None:
    other = replace(manifest, target=manifest.target.model_copy(update={"name": "board"}))
    with pytest.raises(UsageError, match="is for board, the bundle for host"):
        outcomes(manifest, other)


def test_junit_says_what_failed(tmp_path: Path) -> None:
    checks = (
        Check("size", "≤ 96 KiB", "97 KiB", -0.01, "fail"),
        Check("latency", "≤ 5 ms", "not measured", None, "not measured"),
        Check("memory", "", "4 KiB", None, "no budget"),
        Check("accuracy", "≥ 90 %", "91 %", 0.01, "pass"),
    )
    write_junit(Verdict("board", checks), "net", tmp_path / "out.xml")

    suite = ET.parse(tmp_path / "out.xml").getroot()
    assert suite.attrib == {
        "name": "net for board", "tests": "4", "failures": "1", "errors": "1", "skipped": "1",
    }  # fmt: skip
    assert [[child.tag for child in case] for case in suite] == [
        ["failure"],
        ["error"],
        ["skipped"],
        ["system-out"],
    ]
    assert suite[0][0].get("message") == "budget ≤ 96 KiB, measured 97 KiB"
