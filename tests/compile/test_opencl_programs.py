"""Whole OpenCL programs: what is written, rebuilt and refused, and what is said where nothing can run them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.boards import requires_opencl
from tests.compile.conftest import cnn_model
from tests.compile.test_float16 import model, quantized_dense, saved
from tests.compile.test_opencl_layers import gru_weights

from armlet.artifacts import Compiled
from armlet.bundle import Bundle
from armlet.compile.dump import Dump
from armlet.compile.opencl import select
from armlet.compile.pipeline import compile_onnx, lower_opencl
from armlet.compile.symbols import undefined_symbols
from armlet.devices.base import ProgramFailed
from armlet.devices.opencl import NoOpenClDevice, OpenClProgram
from armlet.errors import UnsupportedOperator
from armlet.program import load
from armlet.spec.load import load_target


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import onnx

    path = tmp_path_factory.mktemp("opencl") / "net.onnx"
    onnx.save(cnn_model(), path)
    return path


@pytest.fixture(scope="module")
def program(file: Path) -> tuple[Compiled, Path]:
    folder = file.parent / "program"
    return compile_onnx(file, load_target("host-opencl"), "net", folder), folder


def changed(folder: Path, to: Path, before: bytes, after: bytes) -> Path:
    """Copy a program whose kernels' source is another of the same length."""
    assert len(before) == len(after)
    shutil.copytree(folder, to)
    source = to / "src" / "net_source.cl"
    source.write_bytes(source.read_bytes().replace(before, after, 1))
    assert source.read_bytes() != (folder / "src" / "net_source.cl").read_bytes()
    return to


def test_equal_input_gives_equal_bytes(program, file: Path, tmp_path: Path):
    compiled, folder = program
    again = compile_onnx(file, load_target("host-opencl"), "net", tmp_path)
    assert again == compiled
    for name in ("lib/libnet.a", "lib/libnet.so", "lib/net.h", "src/net.c", "src/net_source.cl"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_what_is_compiled_says_so(program):
    compiled, folder = program
    assert (compiled.gpu, compiled.precision, compiled.fallbacks) == ("opencl", "float32", ())
    assert not compiled.integer_only
    assert [kernel.op for kernel in compiled.kernels] == ["conv2d", "max_pool2d"] * 2 + ["dense", "softmax"]
    assert sum(kernel.macs for kernel in compiled.kernels) == 8 * 9 * 256 + 13 * 72 * 64 + 208 * 10
    assert compiled.arena_bytes == compiled.arena_lower_bound == (8 * 256 + 8 * 64) * 4
    assert compiled.constant_bytes >= (folder / "src" / "net_source.cl").stat().st_size
    assert not (folder / "bin").exists()
    assert "dlopen" in undefined_symbols(shared_object(folder))


def shared_object(folder: Path) -> Path:
    subprocess.run(["ar", "x", "libnet.a"], cwd=folder / "lib", check=True)
    return (folder / "lib" / "net.o").rename(folder / "net.o")


def test_the_shipped_makefile_rebuilds_the_same_libraries(program, tmp_path: Path):
    _, folder = program
    shutil.copytree(folder, tmp_path / "copy")
    for name in ("libnet.a", "libnet.so"):
        (tmp_path / "copy" / "lib" / name).unlink()
    subprocess.run(["make", "-C", "src"], cwd=tmp_path / "copy", check=True, capture_output=True)
    for name in ("libnet.a", "libnet.so"):
        assert (tmp_path / "copy" / "lib" / name).read_bytes() == (folder / "lib" / name).read_bytes()


def test_the_stages_of_a_program_are_dumped(file: Path, tmp_path: Path):
    compile_onnx(file, load_target("host-opencl"), "net", tmp_path / "program", dump=Dump(tmp_path / "dump"))
    found = {path.name for path in (tmp_path / "dump").iterdir()}
    assert {
        "00-onnx.txt",
        "02-simplified.txt",
        "04-kernels",
        "06-kernels.cl",
        "08-entry.c",
        "09-arena.json",
    } <= found


@requires_opencl
def test_an_open_program_runs_many_samples(program):
    compiled, folder = program
    opened = OpenClProgram(folder, compiled)
    samples = np.random.default_rng(0).standard_normal((5, 1, 16, 16)).astype(np.float32)
    once, again = opened.run_batch((samples,))[0], opened.run_batch((samples[::-1],))[0]
    np.testing.assert_array_equal(once, again[::-1])
    np.testing.assert_allclose(once.sum(axis=1), 1, rtol=1e-5)
    assert opened.device


@requires_opencl
def test_the_messages_of_the_devices_compiler_are_said(program, tmp_path: Path):
    compiled, folder = program
    copy = changed(folder, tmp_path / "copy", b"float _ptr[4]", b"floet _ptr[4]")
    with pytest.raises(ProgramFailed, match=r"(?s)OpenCL: .*floet"):
        OpenClProgram(copy, compiled)


@requires_opencl
def test_a_kernel_that_computes_otherwise_is_found_out(program, tmp_path: Path):
    """What other tests compare would differ if the kernels' source were not what runs."""
    compiled, folder = program
    copy = changed(folder, tmp_path / "copy", b"_ptr[0] + (", b"_ptr[0] - (")
    sample = np.random.default_rng(0).standard_normal((1, 1, 16, 16)).astype(np.float32)
    right, wrong = (OpenClProgram(place, compiled).run_batch((sample,))[0] for place in (folder, copy))
    assert np.abs(right - wrong).max() > 1e-3


@requires_opencl
def test_a_bundle_of_an_onnx_file_is_checked_and_runs(file: Path, tmp_path: Path):
    import armlet

    bundle = armlet.compile_onnx(file, "host-opencl", output=tmp_path / "net.armlet")
    manifest = bundle.manifest
    assert manifest.compiled.gpu == "opencl"
    assert manifest.target.gpu is not None
    outcomes = {check.what: check.outcome for check in manifest.verdict.checks}
    assert (outcomes["same outputs"], outcomes["same answers"], outcomes["latency"]) == (
        "pass",
        "pass",
        "no budget",
    )
    assert {check.what: check.measured for check in manifest.verdict.checks}["latency"] == "not measured"
    sample = np.random.default_rng(0).standard_normal((1, 16, 16)).astype(np.float32)
    assert load(bundle.folder)(sample).shape == (10,)
    done = subprocess.run(
        ["gcc", "-std=c11", "-Ilib", "examples/main.c", "lib/libnet.a", "-ldl", "-lm", "-o", str(tmp_path / "main")],
        cwd=bundle.folder, check=True,
    )  # fmt: skip
    done = subprocess.run([tmp_path / "main"], check=True, capture_output=True, text=True)
    assert np.isclose(sum(map(float, done.stdout.split())), 1)


def without_a_platform(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OCL_ICD_VENDORS": str(tmp_path / "none")}
    command = [sys.executable, "-m", "armlet", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)


def test_without_a_device_nothing_is_said_to_be_right(file: Path, tmp_path: Path):
    (tmp_path / "none").mkdir()
    output = str(tmp_path / "net.armlet")
    done = without_a_platform(tmp_path, "compile", str(file), "-t", "host-opencl", "-o", output, "--quiet")
    assert done.returncode == 1, done.stderr
    manifest = Bundle.open(output).manifest
    assert [c.outcome for c in manifest.verdict.checks if c.what == "same outputs"] == ["not measured"]
    assert manifest.measured.match is manifest.measured.reference is None
    assert "no device (OpenCL: " in manifest.measured.device
    assert sorted(path.name for path in (tmp_path / "net.armlet" / "samples").iterdir()) == ["inputs.bin"]
    assert "no device (OpenCL" in (tmp_path / "net.armlet" / "report.html").read_text()


def test_float16_on_a_device_without_it(file: Path, tmp_path: Path):
    compiled = compile_onnx(file, load_target("host-opencl"), "net", tmp_path, precision="float16")
    assert compiled.precision == "float16"
    assert {kernel.dtype for kernel in compiled.kernels[:-1]} == {"float16"}
    source = (tmp_path / "src" / "net_source.cl").read_text()
    assert "__global half*" in source
    assert "#pragma OPENCL EXTENSION cl_khr_fp16 : enable" in source
    whole = compile_onnx(file, load_target("host-opencl"), "net", tmp_path / "whole")
    assert compiled.arena_bytes < 0.7 * whole.arena_bytes
    try:
        OpenClProgram(tmp_path, compiled)
    except NoOpenClDevice as error:
        assert "OpenCL" in str(error)  # noqa: PT017 - a device that has it opens the program


def test_a_quantised_network_is_refused_with_its_layers(tmp_path: Path):
    file = saved(quantized_dense(), tmp_path)
    said = r"OpenCL programs are float32 or float16, and these layers .*\n  weights \(Gemm\): it is quantised"
    with pytest.raises(UnsupportedOperator, match=said):
        lower_opencl(file)


def test_a_layer_whose_states_are_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import onnx

    onnx.save(model("LSTM", (2, 1, 3), gru_weights(1, 4, 3, 9), hidden_size=9), tmp_path / "net.onnx")
    monkeypatch.setattr(select, "LOCAL_BYTES", 3 * 9 * 4)
    lower_opencl(tmp_path / "net.onnx")
    monkeypatch.setattr(select, "LOCAL_BYTES", 3 * 9 * 4 - 1)
    with pytest.raises(UnsupportedOperator, match=r"layer \(LSTM\): its states take more than the 107 bytes"):
        lower_opencl(tmp_path / "net.onnx")
