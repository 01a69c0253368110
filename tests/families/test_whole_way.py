"""Every family, over shapes and options: torch, ONNX Runtime, the host's program and the emulated board's agree."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from tests.boards import requires_board
from tests.families.conftest import (
    LENGTH,
    OWN,
    Case,
    N,
    answers,
    on_board,
    on_host,
    own,
    program,
    quantized,
)
from torch import nn

from armlet.artifacts import InputSpec
from armlet.data.splits import Samples
from armlet.devices.host import HostProgram, this_machine_has
from armlet.models.families import FAMILIES
from armlet.models.network import Network
from armlet.passes.manager import fingerprint

PICTURE = (InputSpec("input", (1, 12, 12)),)
COLOUR = (InputSpec("input", (3, 16, 16)),)
FRAMES = (InputSpec("input", (10, 3)),)
SPEECH = (*FRAMES, LENGTH)
TEXT = (InputSpec("tokens", (10,), "int32", 20), LENGTH)
ROW = (InputSpec("input", (9,)),)
LATENT = (InputSpec("input", (8,)),)

ENCODER = Case(
    "module",
    own("Encoder", n_inputs=3, width=16, heads=2, n_outputs=4, causal=True, frames_first=True),
    FRAMES,
)
CASES = [
    Case("fnn", {"hidden": [16], "norm": "batch"}, ROW),
    Case("fnn", {"hidden": [16, 8], "norm": "layer", "activation": "gelu"}, ROW),
    Case("cnn", {"channels": [8, 8], "block": "separable"}, PICTURE),
    Case("resnet", {"depth": 8, "width": 0.5, "stochastic_depth": 0.2}, COLOUR),
    Case("mobilenet", {"version": "v1", "width": 0.25}, COLOUR),
    Case("mobilenet", {"version": "v2", "width": 0.25, "dropout": 0.1}, COLOUR),
    Case("mobilenet", {"version": "v3_small", "width": 0.25}, COLOUR),
    Case("efficientnet_lite", {"stochastic_depth": 0.2}, COLOUR),
    Case("ds_cnn", {"channels": 16, "depth": 2, "stem_kernel": [4, 2]}, PICTURE),
    Case("rnn", {"cell": "elman", "hidden": [6]}, FRAMES),
    Case("rnn", {"cell": "elman_relu", "hidden": [6, 5], "readout": "mean"}, SPEECH),
    Case("rnn", {"cell": "gru", "hidden": [6, 5], "bidirectional": True}, SPEECH),
    Case("lstm", {"hidden": [6]}, FRAMES),
    Case("lstm", {"hidden": [8], "projection": 4, "bidirectional": True}, SPEECH),
    Case("lstm", {"hidden": [6, 5], "bidirectional": True, "readout": "mean"}, SPEECH),
    Case("transformer", {"width": 16, "heads": 2, "depth": 1, "patch": 4}, PICTURE),
    Case("transformer", {"width": 16, "heads": 4, "depth": 2, "patch": 5, "positions": "sinusoidal"}, FRAMES),
    Case("transformer", {"width": 16, "heads": 2, "depth": 1, "patch": 1, "causal": True}, SPEECH),
    Case(
        "transformer", {"width": 16, "heads": 2, "depth": 1, "positions": "none", "token_dropout": 0.3}, TEXT
    ),
    Case("autoencoder", {"hidden": [12], "code": 3}, ROW, (9,)),
    Case("autoencoder", {"channels": [4, 8], "code": 6, "variational": True}, PICTURE, (1, 12, 12)),
    Case("autoencoder", {"channels": [4, 8], "code": 0, "shortcuts": True}, PICTURE, (1, 12, 12)),
    Case("gan", {"channels": [8, 4], "critic_channels": [4, 8]}, LATENT, (1, 12, 12)),
    Case("module", OWN, PICTURE),
    Case("module", own("Sequences", cell="lstm", n_inputs=3, hidden=6, n_outputs=4), FRAMES),
    Case(
        "module", own("Sequences", cell="gru", n_inputs=3, hidden=6, n_outputs=4, bidirectional=True), FRAMES
    ),
    Case("module", own("Pooled", n_frames=10, n_inputs=3, width=8, n_outputs=4), SPEECH),
    Case("module", own("Attends", n_inputs=3, width=16, heads=4, n_outputs=4, causal=True), FRAMES),
    Case("module", own("Encoder", n_inputs=3, width=16, heads=4, n_outputs=4, norm_first=False), FRAMES),
    Case("module", own("Encoder", n_inputs=3, width=16, heads=4, n_outputs=4, causal=True), SPEECH),
    ENCODER,
    Case("module", own("Filled", n_inputs=3, width=16, heads=4, n_outputs=4), FRAMES),
    Case("module", own("Filled", n_inputs=3, width=16, heads=2, n_outputs=4, where=True), SPEECH),
    Case("module", own("Highest", n_inputs=3, width=8, n_outputs=4), SPEECH),
]
FOUR_BITS = {
    "kind": "quantize_static",
    "calibration_samples": 24,
    "weight_bits": 4,
    "weight_range": "mse",
    "equalize": True,
    "rounding": "adaround",
    "rounding_steps": 50,
    "bias_correction": True,
}
LEARNED = {
    "kind": "quantize_aware",
    "calibration_samples": 24,
    "weight_bits": 4,
    "train": {"epochs": 2, "batch_size": 8},
}
ON_BOARD = ["fnn", "cnn", "mobilenet", "rnn", "lstm", "transformer", "autoencoder", "gan", "module"]


def test_no_family_is_left_out() -> None:
    assert {case.family for case in CASES} == set(FAMILIES)


def each(cases: list[Case]):
    return pytest.mark.parametrize("case", cases, ids=str)


@each(CASES)
def test_a_float_network_answers_alike_in_torch_and_as_a_program(case: Case, tmp_path: Path) -> None:
    network, samples = case.build(), case.samples()
    expected = answers(network, samples)
    found = on_host(program(network, samples, tmp_path), tmp_path, samples)
    assert np.ptp(expected, axis=0).max() > 1e-3  # the answer depends on the input
    # Sums in another order: 1e-4 of the largest answer is a hundred roundings of float32.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * max(1.0, np.abs(expected).max()))


@each(CASES)
def test_a_quantised_network_answers_as_torch_says_it_is_quantised(case: Case, tmp_path: Path) -> None:
    samples = case.samples()
    network = quantized(case.build(), samples)
    expected = answers(network, samples)
    found = on_host(program(network, samples, tmp_path), tmp_path, samples)
    # Integers round halves away where torch rounds them to even, and a float layer between integer ones may round
    # its last bit otherwise: a step more or less now and then, which the layers behind it carry on.
    difference, span = np.abs(found - expected), np.ptp(expected)
    assert difference.max() <= 0.06 * span
    assert np.median(difference) <= 0.01 * span


@pytest.mark.parametrize("options", [FOUR_BITS, LEARNED], ids=["rounded", "learned"])
def test_weights_of_four_bits_answer_as_torch_says(options: dict[str, object], tmp_path: Path) -> None:
    case = Case("cnn", {"channels": [8, 8], "block": "separable"}, PICTURE)
    samples = case.samples()
    network = quantized(case.build(), samples, options, tmp_path / "work")
    weights = [p for p in network.quantization.parameters if p.dtype == "int8"]
    assert {p.bits for p in weights} == {4}
    compiled = program(network, samples, tmp_path)
    assert compiled.integer_only
    expected, found = answers(network, samples), on_host(compiled, tmp_path, samples)
    # All integers: what differs is how halves are rounded, a step or two of the answer's scale.
    steps = np.abs(found - expected) / next(reversed(network.quantization.activations)).scale
    assert steps.max() <= 3
    assert np.median(steps) == 0


WEIGHTS_ALONE = [
    *(next(case for case in CASES if case.family == family) for family in ("fnn", "cnn", "transformer")),
    *(case for case in CASES if case.family in ("rnn", "lstm")),
]


def weights_alone(case: Case, samples: Samples, **more: object) -> Network:
    options = {
        "kind": "quantize_static",
        "mode": "weight_only",
        "calibration_samples": 24,
        "rounding": "gptq",
        **more,
    }
    return quantized(case.build(), samples, options)


@pytest.mark.parametrize("grouped", [False, True])
@each(WEIGHTS_ALONE)
def test_integer_weights_in_float_arithmetic_answer_as_torch_says(
    case: Case, grouped: bool, tmp_path: Path
) -> None:
    samples = case.samples()
    width = [m.in_features for m in case.build().module.modules() if isinstance(m, nn.Linear)][-1]
    size = next(n for n in range(2, width + 1) if width % n == 0)
    groups = {"weights": "per_group", "group_size": size, "weight_bits": 4}
    network = weights_alone(case, samples, **(groups if grouped else {}))
    assert any(p.group for p in network.quantization.parameters) == grouped
    assert not network.quantization.activations
    compiled = program(network, samples, tmp_path)
    expected, found = answers(network, samples), on_host(compiled, tmp_path, samples)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * max(1.0, np.abs(expected).max()))


@each([Case("fnn", {"hidden": [64, 64]}, ROW), Case("lstm", {"hidden": [32, 32]}, FRAMES)])
def test_integer_weights_in_float_arithmetic_lie_in_the_program_as_bytes(case: Case, tmp_path: Path) -> None:
    samples = case.samples()
    network = weights_alone(case, samples)
    (tmp_path / "plain").mkdir()
    compiled, plain = program(network, samples, tmp_path), program(case.build(), samples, tmp_path / "plain")
    parameters = network.quantization.parameters
    saved = sum(3 * network.module.get_parameter(p.parameter).numel() - 4 * len(p.scales) for p in parameters)
    # Constants begin at multiples of some bytes.
    assert plain.constant_bytes - compiled.constant_bytes == pytest.approx(saved, abs=512)


FORMS = {
    "static": {"kind": "quantize_static", "calibration_samples": N},
    "dynamic": {"kind": "quantize_static", "mode": "dynamic"},
    "weights alone": {"kind": "quantize_static", "mode": "weight_only"},
    "groups": {"kind": "quantize_static", "mode": "weight_only", "weights": "per_group", "group_size": 8},
}


@pytest.mark.parametrize("form", FORMS)
def test_layers_that_are_copies_of_each_other_stay_two(form: str, tmp_path: Path) -> None:
    """As torch makes those of an encoder, before they are trained."""
    case = Case("module", own("Encoder", n_inputs=3, width=16, heads=2, n_outputs=4, depth=2), FRAMES)
    network, samples = case.build(), case.samples()
    first, second = network.module.encoder.layers
    second.load_state_dict(first.state_dict())
    small = quantized(network, samples, FORMS[form])
    before = fingerprint(small)
    found = on_host(program(small, samples, tmp_path), tmp_path, samples)
    assert fingerprint(small) == before
    expected = answers(small, samples)
    assert np.abs(found - expected).max() <= 0.06 * np.ptp(expected)
    stored = {t.name: t for t in onnx.load(tmp_path / "onnx" / "model.onnx").graph.initializer}
    weights = [f"encoder.layers.{n}.linear1.weight.quantized" for n in (0, 1)]
    assert stored[weights[0]].raw_data == stored[weights[1]].raw_data


@requires_board
@each([WEIGHTS_ALONE[1], WEIGHTS_ALONE[-1]])
def test_integer_weights_in_float_arithmetic_on_the_emulated_board(case: Case, tmp_path: Path) -> None:
    samples = case.samples()
    network = weights_alone(case, samples)
    host, board = (program(network, samples, tmp_path, name) for name in ("host", "raspberry-pi-4"))
    expected, found = on_host(host, tmp_path, samples), on_board(board, tmp_path, samples)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * max(1.0, np.abs(expected).max()))


@pytest.mark.skipif(not this_machine_has(("avx512vnni",)), reason="this CPU has no AVX-512 VNNI")
@pytest.mark.parametrize("mode", ["static", "dynamic"])
@each([next(case for case in reversed(CASES) if case.family == family) for family in ("cnn", "lstm")])
def test_wider_vectors_give_the_same_bits(case: Case, mode: str, tmp_path: Path) -> None:
    samples = case.samples()
    options = {"kind": "quantize_static", "mode": mode}
    network = quantized(
        case.build(), samples, options | ({"calibration_samples": N} if mode == "static" else {})
    )
    narrow, wide = (program(network, samples, tmp_path, name) for name in ("host", "x86-64-vnni"))
    expected, found = (
        HostProgram.load(tmp_path / name, compiled).run_batch(samples.inputs)[0]
        for name, compiled in (("host", narrow), ("x86-64-vnni", wide))
    )
    if wide.integer_only:
        assert np.array_equal(found, expected)
    # A float layer adds up in another order, which dynamic ranges carry on as a step.
    allowed = 1e-4 * max(1.0, np.abs(expected).max()) if mode == "static" else 0.02 * np.ptp(expected)
    np.testing.assert_allclose(found, expected, rtol=0, atol=allowed)


@requires_board
@pytest.mark.parametrize("name", ["raspberry-pi-2", "raspberry-pi-4"])
@each([ENCODER, *(next(case for case in reversed(CASES) if case.family == family) for family in ON_BOARD)])
def test_the_emulated_board_answers_as_the_host_does(case: Case, name: str, tmp_path: Path) -> None:
    samples = case.samples()
    network = quantized(case.build(), samples)
    host, board = (program(network, samples, tmp_path, target) for target in ("host", name))
    expected, found = on_host(host, tmp_path, samples), on_board(board, tmp_path, samples, name)
    if board.integer_only:
        assert np.array_equal(found, expected)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * max(1.0, np.abs(expected).max()))


@requires_board
@each([next(case for case in CASES if case.family == family) for family in ON_BOARD])
def test_a_float_network_answers_alike_in_32_bit_code(case: Case, tmp_path: Path) -> None:
    network, samples = case.build(), case.samples()
    expected, board = answers(network, samples), program(network, samples, tmp_path, "raspberry-pi-2")
    found = on_board(board, tmp_path, samples, "raspberry-pi-2")
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * max(1.0, np.abs(expected).max()))
