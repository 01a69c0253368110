"""Every family as an OpenCL program, on this machine's OpenCL device: as torch and ONNX Runtime answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.boards import requires_opencl
from tests.compile.opencl_device import TestDevice
from tests.families.conftest import OWN, Case, answers, own, program
from tests.families.test_whole_way import COLOUR, FRAMES, LATENT, PICTURE, ROW, SPEECH, TEXT

from armlet.devices.opencl import OpenClProgram
from armlet.models.families import FAMILIES
from armlet.stages.compare import FLOAT_TOLERANCE, HALF_TOLERANCE

CASES = [
    Case("fnn", {"hidden": [16, 8], "norm": "layer", "activation": "gelu"}, ROW),
    Case("cnn", {"channels": [8, 8], "block": "separable"}, PICTURE),
    Case("resnet", {"depth": 8, "width": 0.5, "stochastic_depth": 0.2}, COLOUR),
    Case("mobilenet", {"version": "v3_small", "width": 0.25}, COLOUR),
    Case("ds_cnn", {"channels": 16, "depth": 2, "stem_kernel": [4, 2]}, PICTURE),
    Case("rnn", {"cell": "gru", "hidden": [6, 5], "bidirectional": True}, SPEECH),
    Case("lstm", {"hidden": [70]}, FRAMES),
    Case("lstm", {"hidden": [8], "projection": 4, "bidirectional": True}, SPEECH),
    Case("transformer", {"width": 16, "heads": 2, "depth": 1, "patch": 1, "causal": True}, SPEECH),
    Case("transformer", {"width": 16, "heads": 2, "depth": 1, "positions": "none"}, TEXT),
    Case("autoencoder", {"channels": [4, 8], "code": 0, "shortcuts": True}, PICTURE, (1, 12, 12)),
    Case("gan", {"channels": [8, 4], "critic_channels": [4, 8]}, LATENT, (1, 12, 12)),
    Case("module", OWN, PICTURE),
    Case("module", own("Filled", n_inputs=3, width=16, heads=2, n_outputs=4, where=True), SPEECH),
]


def test_every_family_is_among_them() -> None:
    assert {case.family for case in CASES} == set(FAMILIES) - {"efficientnet_lite"}  # of v2's blocks


@requires_opencl
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_network_answers_alike_in_torch_and_through_opencl(case: Case, tmp_path: Path) -> None:
    network, samples = case.build(), case.samples()
    expected = answers(network, samples)
    compiled = program(network, samples, tmp_path, "host-opencl")
    found = OpenClProgram(tmp_path / "host-opencl", compiled).run_batch(samples.inputs)[0]
    assert np.ptp(expected, axis=0).max() > 1e-3  # the answer depends on the input
    np.testing.assert_allclose(
        found, expected, rtol=0, atol=FLOAT_TOLERANCE * max(1.0, np.abs(expected).max())
    )
    assert (compiled.gpu, compiled.precision, compiled.fallbacks) == ("opencl", "float32", ())


@pytest.mark.parametrize("number", [1, 5, 7, 9])
def test_a_network_in_float16_is_near_the_one_in_float32(number: int, tmp_path: Path) -> None:
    case = CASES[number]
    network, samples = case.build(), case.samples()
    expected = answers(network, samples)
    compiled = program(network, samples, tmp_path, "host-opencl", "float16")
    device = TestDevice(tmp_path / "host-opencl", compiled)
    found = []
    for i in range(len(samples)):
        code, message, outputs = device.run(*(array[i : i + 1] for array in samples.inputs))
        assert (code, device.live) == (0, 0), message
        found.append(outputs[0])
    difference = np.abs(np.concatenate(found) - expected)
    assert 0 < difference.max() <= HALF_TOLERANCE * max(1.0, np.abs(expected).max())
    assert compiled.precision == "float16"
