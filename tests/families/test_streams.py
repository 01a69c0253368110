"""Networks that take a sequence step by step: torch, ONNX Runtime, the program here and the one on the board agree."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.boards import requires_board
from tests.families.conftest import (
    LENGTH,
    Case,
    answers,
    quantized,
)

from armlet.artifacts import InputSpec
from armlet.compile.emit.examples import write_stream_example
from armlet.compile.pipeline import compile_onnx
from armlet.data.streams import in_whole_steps, steps_of
from armlet.devices.emulator import Emulator
from armlet.devices.host import HostProgram
from armlet.errors import UsageError
from armlet.export import export_stream
from armlet.models.network import executable
from armlet.models.streaming import stream_form
from armlet.spec.load import load_target

FRAMES = (InputSpec("input", (10, 3)),)
SPEECH = (*FRAMES, LENGTH)
TEXT = (InputSpec("tokens", (10,), "int32", 20), LENGTH)

CASES = [
    (Case("rnn", {"cell": "elman", "hidden": [6]}, FRAMES), 1),
    (Case("rnn", {"cell": "elman_relu", "hidden": [6], "readout": "mean"}, SPEECH), 2),
    (Case("rnn", {"cell": "gru", "hidden": [6, 5], "readout": "mean"}, SPEECH), 3),
    (Case("lstm", {"hidden": [6, 5]}, FRAMES), 5),
    (Case("lstm", {"hidden": [8], "projection": 4, "readout": "mean"}, SPEECH), 1),
    (Case("transformer", {"width": 16, "heads": 2, "depth": 2, "patch": 1, "causal": True}, SPEECH), 1),
    (
        Case(
            "transformer",
            {"width": 16, "heads": 2, "depth": 1, "patch": 5, "causal": True, "positions": "sinusoidal"},
            FRAMES,
        ),
        5,
    ),
    (
        Case("transformer", {"width": 16, "heads": 4, "depth": 1, "causal": True, "positions": "none"}, TEXT),
        2,
    ),
]


def each(cases):
    return pytest.mark.parametrize(("case", "frames"), cases, ids=lambda value: str(value))


def compiled(network, samples, frames: int, folder: Path, target: str = "host"):
    export_stream(network, samples, frames, folder)  # compares torch and ONNX Runtime with the whole network
    place = folder / target
    place.mkdir()
    return place, compile_onnx(folder / "stream.onnx", load_target(target), "net_step", place)


def run(step, state_shape, samples, frames: int):
    """Every step's (frames, state before, answer, state after), and the answers behind the last steps."""
    found, last = [], []
    for sequence in steps_of(samples, frames):
        state = np.zeros(state_shape, np.float32)
        for part in sequence:
            answer, after = step(part, state)
            found.append((part, state, answer, after))
            state = after
        last.append(answer[0])
    return [np.concatenate(parts) for parts in zip(*found, strict=True)], np.stack(last)


@pytest.mark.parametrize(
    ("case", "frames", "quantize"),
    [(*case, True) for case in CASES] + [(*CASES[i], False) for i in (2, 4, 5)],
    ids=lambda value: str(value),
)
def test_a_program_for_streams_ends_with_the_answer_to_the_whole_sequence(case, frames, quantize, tmp_path):
    samples = case.samples()
    network = quantized(case.build(), samples) if quantize else case.build()
    place, info = compiled(network, samples, frames, tmp_path)
    program = HostProgram.load(place, info)
    cut = in_whole_steps(samples, frames)
    _, found = run(program.run, info.inputs[1].shape, cut, frames)
    expected = answers(network, cut)
    assert np.ptp(expected, axis=0).max() > 1e-3  # the answer depends on the input
    # Float sums in another order; in front of integers a last bit may become a step, of which there are few here.
    tolerance = 0.06 * np.ptp(expected) if quantize else 1e-4 * max(1.0, np.abs(expected).max())
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


@each([(case, frames) for case, frames in CASES if LENGTH in case.inputs])
def test_each_step_answers_for_the_frames_so_far(case, frames):
    samples = case.samples(n=4)
    network = case.build()
    form = stream_form(network, frames)
    step, state = executable(form.network), form.start.expand(4, -1)
    sequences = torch.from_numpy(samples.inputs[0])
    with torch.no_grad():
        for end in range(frames, sequences.shape[1] + 1, frames):
            answer, state = step(sequences[:, end - frames : end], state)
            expected = network.module(sequences, torch.full((4,), end, dtype=torch.int32))
            torch.testing.assert_close(answer, expected, rtol=0, atol=1e-5)


@requires_board
@each([CASES[3], CASES[4], CASES[5]])
def test_the_emulated_board_takes_the_same_steps(case, frames, tmp_path):
    samples = case.samples(n=6)
    network = quantized(case.build(), samples)
    place, info = compiled(network, samples, frames, tmp_path)
    board, board_info = compiled(network, samples, frames, tmp_path, "raspberry-pi-4")
    cut = in_whole_steps(samples, frames)
    steps, _ = run(HostProgram.load(place, info).run, info.inputs[1].shape, cut, frames)
    emulator = Emulator(load_target("raspberry-pi-4"))
    found = emulator.run_all(board / "bin" / "run", tuple(steps[:2]), board_info.outputs)
    for ours, theirs in zip(found, steps[2:], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * max(1.0, np.abs(theirs).max()))


def test_the_code_of_a_step_does_not_grow_with_the_frames_it_takes(tmp_path):
    case = Case("lstm", {"hidden": [8]}, (InputSpec("input", (64, 3)),))
    samples = case.samples()
    sizes = []
    for frames in (16, 64):
        folder = tmp_path / str(frames)
        sizes.append(compiled(case.build(), samples, frames, folder)[1].code_bytes)
    assert abs(sizes[1] - sizes[0]) < 0.1 * sizes[0]


def test_the_example_of_a_program_for_streams_builds_and_runs(tmp_path):
    case, frames = CASES[0]
    place, info = compiled(case.build(), case.samples(), frames, tmp_path)
    write_stream_example(info, place)
    subprocess.run(
        [shutil.which("gcc") or "gcc", "-std=c11", "-Wall", "-Wextra", "-Werror", "-pedantic", "-I", "lib",
         "examples/main.c", "lib/libnet_step.a", "-lm", "-o", "app"], cwd=place, check=True,
    )  # fmt: skip
    done = subprocess.run([place / "app"], capture_output=True, text=True, check=True)
    program, state = HostProgram.load(place, info), np.zeros(info.inputs[1].shape, np.float32)
    for _ in range(10):
        answer, state = program.run(np.zeros(info.inputs[0].shape, np.float32), state)
    np.testing.assert_allclose([float(line) for line in done.stdout.split()], answer[0], rtol=1e-4)


@pytest.mark.parametrize(
    ("case", "frames", "reason"),
    [
        (Case("lstm", {"hidden": [6], "bidirectional": True}, FRAMES), 1, "reads sequences backwards"),
        (Case("transformer", {"width": 16, "patch": 5}, FRAMES), 5, "see those behind them"),
        (Case("transformer", {"width": 16, "patch": 5, "causal": True}, FRAMES), 2, "not whole tokens of 5"),
        (Case("lstm", {"hidden": [6]}, FRAMES), 3, "sequences of 10 frames can't be taken 3 at a time"),
        (Case("fnn", {"hidden": [6]}, (InputSpec("input", (9,)),)), 1, "it takes no sequences"),
    ],
    ids=lambda value: str(value),
)
def test_what_can_not_be_streamed_says_why(case, frames, reason):
    with pytest.raises(UsageError, match=reason):
        stream_form(case.build(), frames)


RECIPE = """\
name: tiny-stream
data: {kind: electricity-demand, limit: 400, test_limit: 40, validation: 20 %}
model: {kind: lstm, hidden: [8]}
train: {epochs: 1}
stream: {frames: 4}
passes: [{kind: quantize_static, calibration_samples: 32}]
budgets: {step_latency: 1 s}
"""


def test_a_recipe_with_a_stream_makes_a_bundle_that_streams(armlet, tmp_path):
    import armlet as library

    recipe = tmp_path / "tiny-stream.yaml"
    recipe.write_text(RECIPE)
    done = armlet("run", recipe, "-t", "host", "-o", tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    (target,) = json.loads(done.stdout)["targets"]
    outcomes = {check["what"]: check["outcome"] for check in target["checks"]}
    assert outcomes["step latency"] == outcomes["stream: same answers"] == "pass"
    program = library.load(target["bundle"])
    sequence = np.random.default_rng(0).standard_normal(program.inputs[0].shape[1:], np.float32)
    stream = program.stream()
    for _ in range(2):
        for frames in np.split(sequence, len(sequence) // 4):
            answer = stream(frames)
        np.testing.assert_allclose(answer, program(sequence), atol=0.05 * np.abs(answer).max())
        assert stream.n_frames == len(sequence)
        stream.reset()
    with pytest.raises(library.UsageError, match="has shape"):
        stream(sequence)
    page = (Path(target["bundle"]) / "report.html").read_text(encoding="utf-8")
    assert "tiny_stream_step_run" in page
    assert "tiny_stream_step_run: 4 at a time" in armlet("inspect", target["bundle"]).stdout
