"""What lies behind a sequence's length changes no bit of what the compiled program answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.boards import BOARDS, requires_board
from tests.families.conftest import (
    LENGTH,
    Case,
    answers,
    on_board,
    on_host,
    own,
    program,
    quantized,
)

from armlet.analysis.graph import trace
from armlet.artifacts import InputSpec
from armlet.data.splits import Samples
from armlet.passes.quantize.placement import place

SPEECH = (InputSpec("input", (10, 3)), LENGTH)
TEXT = (InputSpec("tokens", (10,), "int32", 20), LENGTH)

CASES = [
    (Case("rnn", {"cell": "elman_relu", "hidden": [6, 5], "readout": "mean"}, SPEECH), "float"),
    (Case("rnn", {"cell": "gru", "hidden": [6, 5], "bidirectional": True}, SPEECH), "float"),
    (
        Case("rnn", {"cell": "gru", "hidden": [6], "bidirectional": True, "readout": "mean"}, SPEECH),
        "quantised",
    ),
    (Case("lstm", {"hidden": [6], "bidirectional": True, "readout": "mean"}, SPEECH), "float"),
    (Case("lstm", {"hidden": [8], "projection": 4, "bidirectional": True}, SPEECH), "quantised"),
    (Case("transformer", {"width": 8, "heads": 2, "depth": 1, "patch": 5}, SPEECH), "float"),
    (
        Case("transformer", {"width": 8, "heads": 2, "depth": 1, "patch": 1, "causal": True}, SPEECH),
        "quantised",
    ),
    # Of one head the mask has the shape of the scores.
    (
        Case("transformer", {"width": 8, "heads": 1, "depth": 1, "patch": 1, "causal": True}, SPEECH),
        "quantised",
    ),
    (Case("transformer", {"width": 8, "heads": 2, "depth": 1, "positions": "none"}, TEXT), "float"),
    (Case("transformer", {"width": 8, "heads": 2, "depth": 1, "patch": 5}, TEXT), "quantised"),
    (Case("module", own("Pooled", n_frames=10, n_inputs=3, width=8, n_outputs=4), SPEECH), "quantised"),
    (Case("module", own("Highest", n_inputs=3, width=8, n_outputs=4), SPEECH), "float"),
    (Case("module", own("Filled", n_inputs=3, width=8, heads=2, n_outputs=4, fill="-1e4"), SPEECH), "float"),
]
INTEGERS = [case for case, form in CASES if form == "quantised" and "projection" not in case.options]
LEARNED = {"kind": "quantize_aware", "calibration_samples": 24, "train": {"epochs": 2, "batch_size": 8}}


def with_other_padding(samples: Samples) -> Samples:
    """Put something else, and large, behind the length of each sample."""
    values, lengths = samples.inputs
    behind = np.arange(values.shape[1]) >= lengths[:, None]
    other = (values + 7) % 20 if values.dtype == "int32" else np.full_like(values, -1e3)
    behind = behind if values.ndim == 2 else behind[:, :, None]
    return Samples((np.where(behind, other, values).astype(values.dtype), lengths), samples.targets)


@pytest.mark.parametrize(("case", "form"), CASES, ids=str)
def test_the_program_answers_the_same_whatever_lies_behind_the_length(
    case: Case, form: str, tmp_path: Path
) -> None:
    samples = case.samples()
    other = with_other_padding(samples)
    assert not np.array_equal(other.inputs[0], samples.inputs[0])
    network = quantized(case.build(), samples) if form == "quantised" else case.build()
    compiled = program(network, samples, tmp_path)
    found = on_host(compiled, tmp_path, samples)
    assert np.ptp(found, axis=0).max() > 1e-3
    np.testing.assert_array_equal(on_host(compiled, tmp_path, other), found)


@pytest.mark.parametrize("case", [case for case, form in CASES if form == "float"], ids=str)
def test_an_empty_sequence_has_a_finite_answer(case: Case, tmp_path: Path) -> None:
    samples = case.samples()
    samples.inputs[1][:4] = 0
    network = case.build()
    assert np.isfinite(on_host(program(network, samples, tmp_path), tmp_path, samples)).all()


@pytest.mark.parametrize("options", [None, LEARNED], ids=["static", "learned"])
@pytest.mark.parametrize("case", INTEGERS, ids=str)
def test_a_length_leaves_nothing_in_float(
    case: Case, options: dict[str, object] | None, tmp_path: Path
) -> None:
    network, samples = case.build(), case.samples()
    placement = place(trace(network.module, case.inputs), ())
    assert placement.notes == ()
    after = quantized(network, samples, options, tmp_path / "work")
    compiled = program(after, samples, tmp_path)
    assert compiled.integer_only
    assert compiled.fallbacks == ()
    expected, found = answers(after, samples), on_host(compiled, tmp_path, samples)
    steps = np.abs(found - expected) / next(reversed(after.quantization.activations)).scale
    assert np.median(steps) <= 1
    assert np.abs(found - expected).max() <= 0.06 * np.ptp(expected)


def test_what_reads_a_length_in_float_is_named() -> None:
    case = Case("transformer", {"width": 8, "heads": 2, "depth": 1, "patch": 5}, TEXT)
    notes = place(trace(case.build().module, case.inputs), ("norm", "blocks.0.attention")).notes
    assert "clamp stays float: blocks.0.attention (softmax), which reads it, is" in notes
    assert "clamp_2 stays float: div, which reads it, is" in notes


@requires_board
@pytest.mark.parametrize("name", BOARDS)
@pytest.mark.parametrize("case", [INTEGERS[0], INTEGERS[1], INTEGERS[-1]], ids=str)
def test_the_emulated_board_gives_the_bits_of_the_host(case: Case, name: str, tmp_path: Path) -> None:
    samples = case.samples()
    network = quantized(case.build(), samples)
    host, board = (program(network, samples, tmp_path, target) for target in ("host", name))
    found = on_board(board, tmp_path, samples, name)
    np.testing.assert_array_equal(found, on_host(host, tmp_path, samples))


def test_the_program_does_look_at_what_lies_before_the_length(tmp_path: Path) -> None:
    case, _ = CASES[1]
    samples = case.samples()
    compiled = program(case.build(), samples, tmp_path)
    whole = Samples(
        (with_other_padding(samples).inputs[0], np.full(len(samples), 10, "int32")), samples.targets
    )
    changed = np.abs(on_host(compiled, tmp_path, whole) - on_host(compiled, tmp_path, samples)).max(axis=1)
    assert (changed[samples.inputs[1] < 10] > 1e-3).all()
