"""What lies behind a sequence's length changes no bit of what the compiled program answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.families.conftest import LENGTH, Case, on_host, program, quantized

from armlet.artifacts import InputSpec
from armlet.data.splits import Samples

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
    (Case("transformer", {"width": 8, "heads": 2, "depth": 1, "positions": "none"}, TEXT), "float"),
    (Case("transformer", {"width": 8, "heads": 2, "depth": 1, "patch": 5}, TEXT), "quantised"),
]


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
    answers = on_host(compiled, tmp_path, samples)
    assert np.ptp(answers, axis=0).max() > 1e-3
    np.testing.assert_array_equal(on_host(compiled, tmp_path, other), answers)


@pytest.mark.parametrize("case", [case for case, form in CASES if form == "float"], ids=str)
def test_an_empty_sequence_has_a_finite_answer(case: Case, tmp_path: Path) -> None:
    samples = case.samples()
    samples.inputs[1][:4] = 0
    network = case.build()
    answers = on_host(program(network, samples, tmp_path), tmp_path, samples)
    assert np.isfinite(answers).all()


def test_the_program_does_look_at_what_lies_before_the_length(tmp_path: Path) -> None:
    case, _ = CASES[1]
    samples = case.samples()
    compiled = program(case.build(), samples, tmp_path)
    whole = Samples(
        (with_other_padding(samples).inputs[0], np.full(len(samples), 10, "int32")), samples.targets
    )
    changed = np.abs(on_host(compiled, tmp_path, whole) - on_host(compiled, tmp_path, samples)).max(axis=1)
    assert (changed[samples.inputs[1] < 10] > 1e-3).all()
