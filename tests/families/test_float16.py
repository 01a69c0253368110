"""Programs in float16 on a board that computes in it: near float32, half the constants, fewer instructions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.boards import requires_board
from tests.families.conftest import Case, on_board, program
from tests.families.test_whole_way import CASES, COLOUR, FRAMES, PICTURE, ROW

from armlet.artifacts import Compiled
from armlet.data.splits import Samples
from armlet.devices.emulator import Emulator
from armlet.models.families import FAMILIES
from armlet.progress import Silent
from armlet.spec.load import load_target
from armlet.stages.compare import HALF_TOLERANCE
from armlet.stages.device import cost_of_a_call

BOARD = "raspberry-pi-5"

SMALL = [case for number, case in enumerate(CASES) if number not in (4, 7, 23, 24, 25, 28)]  # alike, or slow
WIDE = [
    Case("fnn", {"hidden": [256, 128], "norm": "batch"}, (ROW[0],)),
    Case("cnn", {"channels": [32, 64]}, PICTURE),
    Case("mobilenet", {"version": "v2", "width": 0.35}, COLOUR),
    Case("rnn", {"cell": "gru", "hidden": [100]}, FRAMES),
    Case("lstm", {"hidden": [72]}, FRAMES),
    Case("transformer", {"width": 64, "heads": 4, "depth": 2, "patch": 2}, PICTURE),
    Case("autoencoder", {"channels": [16, 32], "code": 12}, PICTURE, (1, 12, 12)),
    Case("gan", {"channels": [48, 32], "critic_channels": [4, 8]}, (CASES[22].inputs[0],), (1, 12, 12)),
]
"""Large enough that what a call costs is that of its kernels."""


def in_both(case: Case, samples: Samples, folder: Path) -> tuple[Compiled, Compiled]:
    """Compile a network in float32 and in float16, into folders of these names."""
    network = case.build()
    programs = []
    for precision in ("float32", "float16"):
        programs.append(program(network, samples, folder, BOARD, precision))
        (folder / BOARD).rename(folder / precision)
    return programs[0], programs[1]


def answers_of(compiled: Compiled, folder: Path, samples: Samples) -> np.ndarray:
    (folder / BOARD).symlink_to(folder / compiled.precision)
    found = on_board(compiled, folder, samples, BOARD)
    (folder / BOARD).unlink()
    return found


def instructions(folder: Path, samples: Samples) -> int:
    target, sample = load_target(BOARD), samples.take(slice(1)).inputs
    counts, _ = cost_of_a_call(folder / "bin" / "run", sample, target, Emulator(target), Silent())
    assert counts is not None
    return counts.instructions


def test_every_family_is_compiled_in_float16() -> None:
    assert {case.family for case in SMALL} == set(FAMILIES) - {"efficientnet_lite"}


@requires_board
@pytest.mark.parametrize("case", [*SMALL, *WIDE], ids=str)
def test_a_float16_program_answers_as_the_float32_one_does(case: Case, tmp_path: Path) -> None:
    samples = case.samples()
    whole, half = in_both(case, samples, tmp_path)
    expected, found = (answers_of(one, tmp_path, samples) for one in (whole, half))
    assert found.dtype == np.float32
    assert np.ptp(expected, axis=0).max() > 1e-3  # the answer depends on the input
    assert 0 < np.abs(found - expected).max() <= HALF_TOLERANCE * np.abs(expected).max()
    assert (whole.precision, half.precision) == ("float32", "float16")
    *inner, last = half.kernels
    assert {k.dtype for k in inner if k.schedule not in ("elementwise", "generic")} <= {"float16", "int32"}
    assert {k.precision for k in inner if k.schedule in ("elementwise", "generic")} <= {"float32"}
    assert (last.op, last.dtype) == ("convert", "float32")
    # Generic layers keep their constants in float32; Winograd's transforms grow weights otherwise.
    assert half.constant_bytes <= 0.6 * whole.constant_bytes


@requires_board
@pytest.mark.parametrize("case", WIDE, ids=str)
def test_a_float16_program_takes_fewer_instructions_and_half_the_constants(
    case: Case, tmp_path: Path
) -> None:
    samples = case.samples()
    whole, half = in_both(case, samples, tmp_path)
    assert half.constant_bytes <= 0.52 * whole.constant_bytes
    assert half.arena_bytes < whole.arena_bytes
    assert instructions(tmp_path / "float16", samples) < 0.9 * instructions(tmp_path / "float32", samples)
