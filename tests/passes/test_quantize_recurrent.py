"""Recurrent layers and embeddings among the others: ranked by sensitivity, left float, given four bits by a budget."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.families.conftest import LENGTH, Case, program
from tests.passes.test_conformance import spec
from tests.passes.test_families import context_of

from armlet.artifacts import InputSpec, PassRecord
from armlet.models.network import Network, executable
from armlet.passes import PreconditionFailed, run_pass
from armlet.passes.quantize.common import four_bit_bytes

SEQUENCES = Case("lstm", {"hidden": [8, 6]}, (InputSpec("input", (10, 3)),))
SPEECH = Case(
    "rnn", {"cell": "gru", "hidden": [6], "bidirectional": True}, (InputSpec("input", (10, 3)), LENGTH)
)
TEXTS = Case(
    "transformer",
    {"width": 16, "heads": 2, "depth": 1, "positions": "none"},
    (InputSpec("tokens", (10,), "int32", 20), LENGTH),
)


def quantize(case: Case, network: Network, work: Path, **options: object) -> tuple[Network, PassRecord]:
    made = spec("quantize_static", {"calibration_samples": 48, **options})
    return run_pass(made, network, context_of(case, network, work))


def integer_weights(network: Network) -> dict[str, int]:
    return {p.parameter: p.bits for p in network.quantization.parameters if p.dtype == "int8"}


def layers_of(network: Network) -> set[str]:
    return {name.rpartition(".")[0] for name in integer_weights(network)}


def ranked(record: PassRecord) -> list[str]:
    start = "sensitivity of "
    return [n.removeprefix(start).partition(":")[0] for n in record.notes if n.startswith(start)]


@pytest.mark.parametrize("mode", ["static", "weight_only"])
@pytest.mark.parametrize("case", [SEQUENCES, SPEECH, TEXTS], ids=str)
def test_every_layer_with_integer_weights_is_ranked_and_the_first_stays_float(case, mode, tmp_path):
    network = case.build()
    every, _ = quantize(case, network, tmp_path / "every", mode=mode)
    kept, record = quantize(case, network, tmp_path / "kept", mode=mode, keep_float=1)
    assert len(ranked(record)) == len(set(ranked(record)))
    assert set(ranked(record)) == layers_of(every)
    assert layers_of(kept) == layers_of(every) - {ranked(record)[0]}


@pytest.mark.parametrize(
    ("case", "pattern"),
    [(SEQUENCES, "recurrent_weight"), (TEXTS, "embedding")],
    ids=["recurrent", "embedding"],
)
def test_a_layer_that_rounding_destroys_comes_first(case, pattern, tmp_path):
    network = case.build()
    name, weight = next((n, p) for n, p in network.module.named_parameters() if pattern in n)
    options = {"mode": "weight_only", "keep_float": 1, "weights": "per_tensor"}
    _, calm = quantize(case, network, tmp_path / "calm", **options)
    with torch.no_grad():  # one huge weight leaves no steps to the others
        weight.flatten(0, -2)[0, 0] = 60.0
    _, record = quantize(case, network, tmp_path / "spoiled", **options)
    layer = name.rpartition(".")[0]
    assert layer in ranked(calm)
    assert ranked(record)[0] == layer


@pytest.mark.parametrize("mode", ["static", "weight_only"])
@pytest.mark.parametrize("case", [SEQUENCES, TEXTS], ids=["recurrent", "embedding"])
def test_a_budget_is_met_without_counting_on_rows_that_keep_eight_bits(case, mode, tmp_path):
    network = case.build()
    eight, _ = quantize(case, network, tmp_path / "eight", mode=mode)
    four, _ = quantize(case, network, tmp_path / "four", mode=mode, weight_bits=4)
    least, most = four_bit_bytes(four), four_bit_bytes(eight)
    budget = (least + most) // 2
    mixed, record = quantize(case, network, tmp_path / "mixed", mode=mode, weight_budget=f"{budget} B")
    assert least < four_bit_bytes(mixed) <= budget
    bits = integer_weights(mixed)
    assert set(bits.values()) == {4, 8}
    tables = {n for n in bits if "embedding" in n}
    assert all(bits[n] == 8 for n in tables)
    n_four = sum(b == 4 for b in bits.values())
    assert any(f"{n_four} of {len(bits) - len(tables)} weights have 4 bits" in n for n in record.notes)
    with pytest.raises(PreconditionFailed, match="of 4 bits everywhere are still"):
        quantize(case, network, tmp_path / "none", mode=mode, weight_budget=f"{least - 1} B")


@pytest.mark.parametrize("case", [SEQUENCES, SPEECH], ids=str)
def test_weights_alone_change_recurrent_answers_by_their_rounding(case, tmp_path):
    network = case.build()
    inputs = [torch.from_numpy(x) for x in case.samples(seed=3).inputs]
    with torch.no_grad():
        expected = network.module(*inputs).numpy()
    errors = []
    for bits in (8, 4):
        quantized, record = quantize(
            case, network, tmp_path / str(bits), mode="weight_only", weight_bits=bits
        )
        with torch.no_grad():
            found = executable(quantized)(*inputs).numpy()
        errors.append(float(np.abs(found - expected).max() / np.ptp(expected)))
        assert (
            f"{len(layers_of(quantized))} layers have integer weights and compute in float" in record.notes[0]
        )
    assert 0 < errors[0] < 0.03
    assert errors[0] < errors[1] < 0.5


@pytest.mark.parametrize(
    "case",
    [
        Case("lstm", {"hidden": [8], "projection": 4}, (InputSpec("input", (10, 3)),)),
        Case("rnn", {"cell": "gru", "hidden": [12]}, (InputSpec("input", (10, 3)),)),
    ],
    ids=["projection", "two factors"],
)
def test_a_recurrent_layer_without_an_integer_form_is_named_by_the_pass_and_the_program(case, tmp_path):
    network = case.build()
    if case.family == "rnn":
        factorized = spec("factorize", {"ratio": 0.7})
        network, _ = run_pass(factorized, network, context_of(case, network, tmp_path / "factors"))
    small, record = quantize(case, network, tmp_path / "small")
    why = "stays float: a projection, or a recurrent weight in two factors, has no integer form"
    (note,) = [note for note in record.notes if why in note]
    layer = note.partition(" (")[0]
    assert layer.startswith("layers.0")
    assert not {f"{layer}.{name}" for name in ("weight", "recurrent_weight")} & integer_weights(small).keys()
    compiled = program(small, case.samples(), tmp_path)
    assert not compiled.integer_only
    reasons = [f.reason for f in compiled.fallbacks if f.layer == layer]
    assert any(reason.startswith("stays float") for reason in reasons)
    assert "float32" in {k.precision for k in compiled.kernels if layer in (k.layer, *k.joined)}


def test_what_stays_float_beside_layers_that_quantise_while_they_run_is_named(tmp_path):
    network = SEQUENCES.build()
    quantized, _ = quantize(SEQUENCES, network, tmp_path, mode="dynamic", calibration_samples=512)
    compiled = program(quantized, SEQUENCES.samples(), tmp_path)
    assert "dynamic_dense" in {kernel.op for kernel in compiled.kernels}
    floats = {kernel.layer for kernel in compiled.kernels if kernel.op == "lstm"}
    assert len(floats) == 2
    assert {f.layer for f in compiled.fallbacks} == floats
    reason = "stays float: its input is not quantised while the program runs"
    assert {f.reason for f in compiled.fallbacks} == {reason}
