"""Programs of every family for several threads: the bits of one thread, on this machine and on the emulated board."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.boards import requires_board
from tests.families.conftest import Case, on_board, program, quantized
from tests.families.test_whole_way import CASES, COLOUR, FRAMES, PICTURE, ROW

from armlet.artifacts import Compiled, InputSpec
from armlet.compile.emit import threads
from armlet.compile.pipeline import compile_onnx
from armlet.data.splits import Samples
from armlet.devices.host import HostProgram
from armlet.models.families import FAMILIES
from armlet.models.network import Network
from armlet.spec.load import load_target
from armlet.spec.recipe import Threads

BOARD = "raspberry-pi-5"
ONE_EACH = [
    Case("fnn", {"hidden": [96, 40], "norm": "batch"}, ROW),
    *(CASES[number] for number in (2, 3, 6, 8, 11, 13, 15, 18, 21, 22, 30)),
]
FORMS = [(case, "int8") for case in ONE_EACH]
FORMS += [
    (case, "float32") for case in ONE_EACH if case.family in ("fnn", "cnn", "resnet", "lstm", "transformer")
]
FORMS += [(case, "dynamic") for case in ONE_EACH if case.family in ("fnn", "transformer")]
WIDE = [
    Case("cnn", {"channels": [32, 64], "block": "separable"}, (InputSpec("input", (1, 24, 24)),)),
    Case("resnet", {"depth": 8}, COLOUR),
    Case("lstm", {"hidden": [96, 96]}, FRAMES),
    Case("transformer", {"width": 96, "heads": 4, "depth": 1, "patch": 2}, PICTURE),
]
"""Large enough that some kernels are parted."""


def in_form(case: Case, samples: Samples, form: str) -> Network:
    network = case.build()
    if form == "int8":
        return quantized(network, samples)
    return (
        quantized(network, samples, {"kind": "quantize_static", "mode": "dynamic"})
        if form == "dynamic"
        else network
    )


def compiled_for(n: Threads, folder: Path, target: str) -> Compiled:
    place = folder / target
    if place.exists():
        place.rename(folder / f"{target}-before-{n}")
    place.mkdir()
    model = folder / "onnx" / "model.onnx"
    return compile_onnx(model, load_target(target), "network", place, threads=n)


def test_every_family_is_compiled_for_threads() -> None:
    assert {case.family for case in ONE_EACH} == set(FAMILIES) - {"efficientnet_lite"}


@pytest.mark.parametrize(("case", "form"), FORMS, ids=str)
def test_whatever_can_be_parted_gives_the_bits_of_one_thread(
    case: Case, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = case.samples()
    network = in_form(case, samples, form)
    one = program(network, samples, tmp_path)
    expected = HostProgram.load(tmp_path / "host", one).run_batch(samples.inputs)
    monkeypatch.setattr(threads, "LEAST_MACS", 1)
    monkeypatch.setattr(threads, "LEAST_BYTES", 1)
    several = compiled_for(4, tmp_path, "host")
    found = HostProgram.load(tmp_path / "host", several).run_batch(samples.inputs)
    assert any(kernel.parallel for kernel in several.kernels)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


@requires_board
@pytest.mark.parametrize("form", ["float32", "int8"])
@pytest.mark.parametrize("case", WIDE, ids=str)
def test_the_board_s_threads_give_the_bits_of_one(case: Case, form: str, tmp_path: Path) -> None:
    samples = case.samples(n=8)
    network = in_form(case, samples, form)
    one = program(network, samples, tmp_path, BOARD)
    expected = on_board(one, tmp_path, samples, BOARD)
    two = compiled_for(2, tmp_path, BOARD)
    assert any(kernel.parallel for kernel in two.kernels)
    np.testing.assert_array_equal(on_board(two, tmp_path, samples, BOARD), expected)
    assert np.ptp(expected, axis=0).max() > 1e-3  # the answer depends on the input
