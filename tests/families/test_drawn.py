"""Networks of every family with drawn shapes and options: torch, ONNX Runtime, host and emulated board agree."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tests.boards import requires_board
from tests.families.conftest import Case, answers, on_board, on_host, program, quantized

from armlet.artifacts import InputSpec
from armlet.models.families import FAMILIES as REGISTERED
from armlet.spec.model import Activation

# Always the same examples. They aren't made smaller where one fails: each takes seconds, and all are small.
STEADY = settings(
    derandomize=True,
    deadline=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

activations = st.sampled_from(get_args(Activation))
flags = st.booleans()


def widths(most: int, *, least: int = 1, layers: int = 2):
    return st.lists(st.integers(least, most), min_size=1, max_size=layers)


def pictures(least: int, most: int, multiple: int = 1):
    """Inputs of one picture whose height and width are multiples of a number."""
    extents = st.integers(-(-least // multiple), most // multiple).map(lambda n: n * multiple)
    return st.tuples(st.integers(1, 4), extents, extents).map(lambda shape: (InputSpec("input", shape),))


def rows(most: int = 20):
    return st.integers(1, most).map(lambda n: (InputSpec("input", (n,)),))


@st.composite
def sequences(draw, multiple: int = 1):
    """Inputs of frames, with a length beside them or without."""
    n_frames = multiple * draw(st.integers(1, 8 // multiple + 1))
    frames = InputSpec("input", (n_frames, draw(st.integers(1, 6))))
    return (frames, length_of(n_frames)) if draw(flags) else (frames,)


def length_of(extent: int) -> InputSpec:
    return InputSpec("length", (), "int32", extent + 1)


@st.composite
def fnns(draw):
    norm = draw(st.sampled_from(["batch", "none", "layer"]))
    # The normalisation of two or three values is a step where they are equal: no tolerance holds there.
    hidden = draw(widths(20, least=4 if norm == "layer" else 1, layers=3))
    options = {"hidden": hidden, "norm": norm, "activation": draw(activations)}
    return Case("fnn", options, draw(rows() | pictures(1, 5)))


@st.composite
def cnns(draw):
    channels = draw(widths(12, layers=3))
    options = {
        "channels": channels,
        "block": draw(st.sampled_from(["plain", "residual", "separable"])),
        "depth": draw(st.integers(1, 2)),
        "downsample": draw(st.sampled_from(["stride", "max_pool"])),
        "activation": draw(activations),
    }
    return Case("cnn", options, draw(pictures(2 ** (len(channels) - 1), 13)))


@st.composite
def resnets(draw):
    depth = draw(st.sampled_from([8, 18]))
    width = draw(st.sampled_from([0.25, 0.5])) if depth == 8 else 0.0625
    options = {"depth": depth, "width": width, "activation": draw(activations)}
    return Case("resnet", options, draw(pictures(4, 14)))


@st.composite
def mobilenets(draw):
    options = {
        "version": draw(st.sampled_from(["v1", "v2", "v3_small"])),
        "width": draw(st.sampled_from([0.1, 0.2])),
        "stem_stride": draw(st.integers(1, 2)),
    }
    return Case("mobilenet", options, draw(pictures(8, 15)))


@st.composite
def efficientnets(draw):
    return Case("efficientnet_lite", {"stem_stride": draw(st.integers(1, 2))}, draw(pictures(8, 15)))


@st.composite
def ds_cnns(draw):
    kernel = draw(st.lists(st.integers(1, 5), min_size=2, max_size=2))
    options = {
        "channels": draw(st.integers(1, 16)),
        "depth": draw(st.integers(1, 3)),
        "stem_kernel": kernel,
        "stem_stride": draw(st.integers(1, 2)),
        "activation": draw(activations),
    }
    return Case("ds_cnn", options, draw(pictures(max(kernel), 13)))


@st.composite
def rnns(draw):
    options = {
        "cell": draw(st.sampled_from(["gru", "elman", "elman_relu"])),
        "hidden": draw(widths(9)),
        "bidirectional": draw(flags),
        "readout": draw(st.sampled_from(["last", "mean"])),
    }
    return Case("rnn", options, draw(sequences()))


@st.composite
def lstms(draw):
    hidden = draw(widths(9))
    options = {
        "hidden": hidden,
        "bidirectional": draw(flags),
        "projection": draw(st.integers(0, min(hidden) - 1)),
        "readout": draw(st.sampled_from(["last", "mean"])),
    }
    return Case("lstm", options, draw(sequences()))


@st.composite
def transformers(draw):
    heads, patch = draw(st.sampled_from([1, 2, 3, 4])), draw(st.integers(1, 3))
    options = {
        "heads": heads,
        # See `fnns`: every block normalises its width.
        "width": heads * draw(st.integers(-(-4 // heads), 6)),
        "depth": draw(st.integers(1, 2)),
        "patch": patch,
        "expansion": draw(st.sampled_from([1.0, 0.5, 2.5])),
        "activation": draw(activations),
        "positions": draw(st.sampled_from(["learned", "sinusoidal", "none"])),
        "causal": draw(flags),
    }
    n_tokens = draw(st.integers(1, 8))
    tokens = (InputSpec("tokens", (n_tokens,), "int32", draw(st.integers(2, 30))), length_of(n_tokens))
    return Case("transformer", options, draw(st.just(tokens) | sequences(patch) | pictures(patch, 9, patch)))


@st.composite
def autoencoders(draw):
    options = {
        "activation": draw(activations),
        "norm": draw(st.sampled_from(["none", "batch"])),
        "output": draw(st.sampled_from(["linear", "sigmoid"])),
    }
    if draw(flags):
        inputs = draw(rows())
        options |= {"hidden": draw(widths(16)), "code": draw(st.integers(1, 6)), "variational": draw(flags)}
    else:
        channels = draw(widths(8, layers=3))
        inputs = draw(pictures(4, 12, 2 ** (len(channels) - 1)))
        code = draw(st.integers(0, 6))
        options |= {"channels": channels, "code": code, "shortcuts": draw(flags) and not code}
        options |= {"variational": draw(flags) and code > 0}
    return Case("autoencoder", options, inputs, inputs[0].shape)


@st.composite
def gans(draw):
    channels = draw(widths(8))
    (picture,) = draw(pictures(4, 12, 2 ** len(channels)))
    options = {"channels": channels, "activation": draw(activations)}
    return Case("gan", options, (InputSpec("input", (draw(st.integers(1, 12)),)),), picture.shape)


FAMILIES = {
    "fnn": fnns(), "cnn": cnns(), "resnet": resnets(), "mobilenet": mobilenets(),
    "efficientnet_lite": efficientnets(), "ds_cnn": ds_cnns(),
    "rnn": rnns(), "lstm": lstms(), "transformer": transformers(), "autoencoder": autoencoders(), "gan": gans(),
}  # fmt: skip
N_DRAWN = dict.fromkeys(FAMILIES, 3) | {
    "resnet": 2,
    "mobilenet": 1,
    "efficientnet_lite": 1,
}  # deep ones take long to export and compile

each_family = pytest.mark.parametrize("family", FAMILIES)


def tolerance(expected: np.ndarray, *, rounded: bool) -> float:
    """Return how far a compiled program may be from torch; see test_whole_way.py for the reasons."""
    largest = float(np.abs(expected).max())
    if not rounded:
        return 1e-4 * max(1.0, largest)
    # Where the answer hardly depends on the input, a step is a large part of what it spans.
    return max(0.06 * float(np.ptp(expected)), 3 * largest / 127)


def check_alike(case: Case, folder: Path, *, rounded: bool, board: str | None) -> None:
    """Carry a network to this machine's program, the ONNX file in between proven against torch; to a board's, too."""
    samples = case.samples()
    network = quantized(case.build(), samples) if rounded else case.build()
    expected = answers(network, samples)
    allowed = tolerance(expected, rounded=rounded)
    found = on_host(program(network, samples, folder), folder, samples)
    np.testing.assert_allclose(found, expected, rtol=0, atol=allowed)
    if board is not None:
        compiled, few = program(network, samples, folder, board), slice(6)
        there = on_board(compiled, folder, samples.take(few), board)
        if compiled.integer_only:
            assert np.array_equal(there, found[few])
        np.testing.assert_allclose(there, expected[few], rtol=0, atol=allowed)


@requires_board
def test_every_registered_family_is_drawn():
    assert set(FAMILIES) == set(REGISTERED) - {"module"}  # has no options of its own to draw from


@each_family
def test_a_drawn_network_answers_alike_in_torch_and_as_a_program_here_and_on_the_board(family: str) -> None:
    # A deep one takes half a minute on the board; test_whole_way.py has one there.
    boards = iter(() if family == "mobilenet" else ("raspberry-pi-4", "raspberry-pi-2"))

    @settings(STEADY, max_examples=N_DRAWN[family])
    @given(FAMILIES[family], flags)
    def check(case: Case, rounded: bool) -> None:
        with tempfile.TemporaryDirectory() as folder:
            check_alike(case, Path(folder), rounded=rounded, board=next(boards, None))

    check()
