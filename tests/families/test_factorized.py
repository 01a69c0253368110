"""Factorised networks of every kind as programs: they answer as torch does, float and quantised."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.families.conftest import Case, answers, on_host, program, quantized
from tests.families.test_whole_way import COLOUR, FRAMES, LATENT, PICTURE, ROW, SPEECH

from armlet.analysis.cost import cost_of
from armlet.analysis.graph import trace
from armlet.models.network import Network
from armlet.passes.factorize.candidates import candidates

CASES = [
    (Case("fnn", {"hidden": [16, 12], "norm": "layer"}, ROW), "tucker"),
    (Case("cnn", {"channels": [8, 8], "block": "residual", "downsample": "stride"}, PICTURE), "tucker"),
    (Case("cnn", {"channels": [8, 8], "block": "residual", "downsample": "stride"}, PICTURE), "spatial"),
    (Case("cnn", {"channels": [8, 8], "block": "residual", "downsample": "stride"}, PICTURE), "cp"),
    (Case("ds_cnn", {"channels": 16, "depth": 1, "stem_kernel": [4, 1]}, COLOUR), "cp"),
    (Case("mobilenet", {"version": "v2", "width": 0.25}, COLOUR), "tucker"),
    (Case("rnn", {"cell": "gru", "hidden": [6, 5], "bidirectional": True}, SPEECH), "tucker"),
    (Case("lstm", {"hidden": [9, 8], "readout": "mean"}, SPEECH), "tucker"),
    (Case("transformer", {"width": 16, "heads": 2, "depth": 1, "patch": 5}, FRAMES), "tucker"),
    (Case("autoencoder", {"channels": [4, 8], "code": 6}, PICTURE, (1, 12, 12)), "tucker"),
    (Case("gan", {"channels": [8, 4], "critic_channels": [4, 8]}, LATENT, (1, 12, 12)), "tucker"),
]
each = pytest.mark.parametrize(("case", "convolutions"), CASES, ids=[f"{c}-{m}" for c, m in CASES])


def factorized(case: Case, convolutions: str) -> Network:
    """The network with every rank halved, whether that saves anything or not."""
    network = case.build()
    before = cost_of(network)
    for layer in candidates(network.module, trace(network.module, case.inputs), convolutions)[0]:
        layer.apply(network.module, tuple(max(1, full // 2) for full in layer.full))
    assert cost_of(network).macs != before.macs
    return network


@each
def test_a_factorised_network_answers_alike_in_torch_and_as_a_program(
    case, convolutions, tmp_path: Path
) -> None:
    network, samples = factorized(case, convolutions), case.samples()
    expected = answers(network, samples)
    found = on_host(program(network, samples, tmp_path), tmp_path, samples)
    # As of whole networks: sums in another order.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * max(1.0, np.abs(expected).max()))


@pytest.mark.parametrize(
    ("case", "convolutions"), [CASES[1], CASES[2], CASES[3], CASES[8], CASES[10]], ids=str
)
def test_a_factorised_network_is_quantised_like_any_other(case, convolutions, tmp_path: Path) -> None:
    samples = case.samples()
    network = quantized(factorized(case, convolutions), samples)
    expected = answers(network, samples)
    found = on_host(program(network, samples, tmp_path), tmp_path, samples)
    difference, span = np.abs(found - expected), np.ptp(expected)
    assert difference.max() <= 0.06 * span
    assert np.median(difference) <= 0.01 * span
