"""Programs that zig builds: for any Arm Linux, and for Android without its SDK."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from elftools.elf.elffile import ELFFile
from tests.boards import requires_board, requires_zig
from tests.compile.test_emit_parts import MODELS

from armlet import digest
from armlet.artifacts import Compiled
from armlet.compile import link
from armlet.compile.emit import emit_program
from armlet.compile.emit.entry import write_block
from armlet.compile.lowered import LoweredProgram
from armlet.compile.pipeline import compile_onnx
from armlet.compile.symbols import DRIVER_SYMBOLS, EXTENSIONS_SYMBOL, LIBC_SYMBOLS, LIBM_SYMBOLS
from armlet.devices.emulator import Emulator
from armlet.devices.host import HostProgram
from armlet.errors import MissingDependency
from armlet.spec.load import load_target
from armlet.spec.target import Target, Toolchain

ANDROID = ("android-arm64", "android-armv7")
TARGETS = ("arm64-linux-musl", *ANDROID)


@pytest.fixture(scope="module", params=["attention", "lstm"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    onnx.save(MODELS[request.param](), path)
    return path


def _target(name: str) -> Target:
    target = load_target(name)
    if name != "raspberry-pi-2":
        return target
    return target.model_copy(
        update={"toolchain": Toolchain(zig="arm-linux-musleabihf")}
    )  # without Debian's gcc


@requires_zig
@requires_board
@pytest.mark.parametrize("name", [*TARGETS, "raspberry-pi-2"])
def test_the_same_bits_as_on_this_machine(name: str, model: Path, host: Target, tmp_path: Path):
    samples = np.random.default_rng(0).normal(0, 1, (20, 10, 12)).astype(np.float32)
    here = compile_onnx(model, host, "net", tmp_path / "host")
    expected = HostProgram.load(tmp_path / "host", here).run_many(samples)

    target = _target(name)
    compiled = compile_onnx(model, target, "net", tmp_path / name)

    found = Emulator(target).run(tmp_path / name / "bin" / "run", samples, compiled.outputs)
    np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))
    assert len(np.unique(found)) > 100
    assert compiled.integer_only


@pytest.fixture(scope="module", params=ANDROID)
def android(
    request: pytest.FixtureRequest, lowered_cnn: LoweredProgram, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Target, Compiled, Path]:
    """A float network with a softmax, which needs libm."""
    target, folder = load_target(request.param), tmp_path_factory.mktemp(request.param)
    return target, emit_program([lowered_cnn], target, "cnn", folder), folder


@requires_zig
@requires_board
def test_a_float_network_answers_as_on_this_machine(android, host_cnn, tmp_path: Path):
    target, compiled, folder = android
    samples = np.random.default_rng(1).standard_normal((5, *compiled.inputs[0].shape[1:])).astype(np.float32)
    found = Emulator(target).run(folder / "bin" / "run", samples, compiled.outputs)
    np.testing.assert_allclose(found, host_cnn.reference(samples), rtol=0, atol=1e-5)


@requires_zig
def test_a_phone_can_load_the_shared_library(android):
    target, _, folder = android
    with (folder / "lib" / "libcnn.so").open("rb") as stream:
        file = ELFFile(stream)
        dynamic = list(file.get_section_by_name(".dynamic").iter_tags())
        symbols = list(file.get_section_by_name(".dynsym").iter_symbols())
        loaded = [s for s in file.iter_segments() if s["p_type"] == "PT_LOAD"]
    needed = {tag.needed for tag in dynamic if tag.entry.d_tag == "DT_NEEDED"}
    assert needed <= {"libc.so", "libm.so"}
    assert {tag.soname for tag in dynamic if tag.entry.d_tag == "DT_SONAME"} == {"libcnn.so"}
    assert not [tag for tag in dynamic if tag.entry.d_tag == "DT_TEXTREL"]
    assert all(s["p_align"] >= (4096 if target.is_arm32 else 16384) for s in loaded)
    assert not [s for s in loaded if s["p_flags"] & 3 == 3]  # written and executed
    defined = {s.name for s in symbols if s["st_shndx"] != "SHN_UNDEF"}
    assert defined == {"cnn_run"}
    wanted = {s.name for s in symbols if s["st_shndx"] == "SHN_UNDEF" and s.name}
    if not target.is_arm32:  # there zig's own copies are linked in beside its division
        assert needed == {"libc.so", "libm.so"}
        assert {"expf", "memcpy"} <= wanted
    assert wanted <= LIBC_SYMBOLS | LIBM_SYMBOLS


@requires_zig
def test_the_shipped_makefile_rebuilds_the_same_libraries(android, tmp_path: Path):
    _, _, folder = android
    shutil.copytree(folder, tmp_path / "copy")
    made = ("lib/libcnn.a", "lib/libcnn.so", "bin/run")
    for name in made:
        (tmp_path / "copy" / name).unlink()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path}

    subprocess.run(
        ["make", "-C", "src"], cwd=tmp_path / "copy", env=environment, check=True, capture_output=True
    )

    for name in made:
        assert digest.of_file(tmp_path / "copy" / name) == digest.of_file(folder / name), name


@requires_zig
def test_debug_information_does_not_ship(android):
    _, _, folder = android
    with (folder / "src" / "cnn_kernels.o").open("rb") as stream:
        names = [section.name for section in ELFFile(stream).iter_sections()]
    assert ".text" in names
    assert not [name for name in names if ".debug" in name]


@requires_zig
def test_changed_constants_are_compiled_anew(tmp_path: Path):
    """The compiler keeps what it compiled, and does not look into what the assembler includes."""
    target, objects = load_target("arm64-linux-musl"), []
    for constants in (b"a" * 64, b"b" * 64):
        source = write_block("net_params", constants, tmp_path, target)
        link.compile_object(target, source, tmp_path / "net.o", tmp_path)
        objects.append((tmp_path / "net.o").read_bytes())
    assert b"a" * 64 in objects[0]
    assert b"b" * 64 in objects[1]


@requires_zig
def test_a_function_that_android_lacks_is_refused(tmp_path: Path):
    target = load_target("android-arm64")
    (tmp_path / "unit.c").write_text("float exp10f(float); float f(float x) { return exp10f(x); }\n")
    link.compile_object(target, tmp_path / "unit.c", tmp_path / "unit.o", tmp_path)
    with pytest.raises(link.ToolFailed, match="undefined symbol: exp10f"):
        link.link_shared(target, tmp_path / "unit.o", tmp_path / "libunit.so")


@requires_zig
@requires_board
def test_one_library_for_phones_of_several_kinds(lowered_cnn: LoweredProgram, tmp_path: Path):
    """It asks Android's C library which instructions the CPU has."""
    given = load_target("android-arm64").model_dump()
    target = Target.model_validate(given | {"variants": ["dotprod"], "emulator": {"cpu": "max"}})
    emit_program([lowered_cnn] * 2, target, "cnn", tmp_path)
    with (tmp_path / "lib" / "libcnn.so").open("rb") as stream:
        symbols = list(ELFFile(stream).get_section_by_name(".dynsym").iter_symbols())
    assert EXTENSIONS_SYMBOL in {s.name for s in symbols if s["st_shndx"] == "SHN_UNDEF"}
    assert Emulator(target).variant(tmp_path / "bin" / "run") == "dotprod"


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(link, "find_spec", lambda name: None)
    target = load_target("android-arm64")
    assert link.missing_tools(target) == ("ziglang",)
    with pytest.raises(MissingDependency, match=r"missing: ziglang, .* pip install 'ziglang>=0.17,<0.18'"):
        link.compile_object(target, tmp_path / "unit.c", tmp_path / "unit.o", tmp_path)


@requires_zig
def test_a_phone_can_load_a_program_for_its_gpu(host_cnn, tmp_path: Path):
    onnx.save(host_cnn.model, tmp_path / "model.onnx")
    compiled = compile_onnx(tmp_path / "model.onnx", load_target("android-opencl"), "net", tmp_path)
    with (tmp_path / "lib" / "libnet.so").open("rb") as stream:
        file = ELFFile(stream)
        needed = {
            t.needed for t in file.get_section_by_name(".dynamic").iter_tags() if t.entry.d_tag == "DT_NEEDED"
        }
        symbols = list(file.get_section_by_name(".dynsym").iter_symbols())
    assert needed == {"libc.so", "libdl.so"}
    defined = {s.name for s in symbols if s["st_shndx"] != "SHN_UNDEF"}
    assert defined == {"net_open", "net_run", "net_device", "net_close"}
    wanted = {s.name for s in symbols if s["st_shndx"] == "SHN_UNDEF" and s.name}
    assert wanted <= LIBC_SYMBOLS | DRIVER_SYMBOLS
    assert (compiled.gpu, compiled.triple) == ("opencl", "aarch64-linux-android")
