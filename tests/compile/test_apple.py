"""Programs for iOS: what an app links is whole Mach-O object code. Nothing here runs it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from tests.boards import requires_zig
from tests.compile.test_emit_parts import MODELS

import armlet as library
from armlet.artifacts import Compiled
from armlet.compile import link
from armlet.compile.emit import emit_program
from armlet.compile.lowered import LoweredProgram
from armlet.compile.macho import ARM64, read_macho
from armlet.compile.memory import ALIGNMENT
from armlet.compile.pipeline import compile_onnx
from armlet.compile.symbols import (
    APPLE_LACKS,
    APPLE_SYMBOLS,
    LIBC_SYMBOLS,
    LIBM_SYMBOLS,
    check_undefined,
    undefined_symbols,
)
from armlet.errors import ArmletError, UsageError
from armlet.program import load
from armlet.spec.budget import Budgets
from armlet.spec.load import load_target
from armlet.spec.target import Target, Toolchain

IOS, MACOS = 2, 1  # PLATFORM_IOS and PLATFORM_MACOS of mach-o/loader.h


def _zig(*words: str, folder: Path) -> str:
    command = [sys.executable, "-m", "ziglang", *words]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def phone(lowered_cnn: LoweredProgram, tmp_path_factory: pytest.TempPathFactory) -> tuple[Compiled, Path]:
    """A float network with constants, a softmax, and kernels that work in place."""
    target, folder = load_target("iphone-15"), tmp_path_factory.mktemp("iphone")
    return emit_program([lowered_cnn], target, "cnn", folder, packed=True), folder


@pytest.fixture(scope="module")
def members(phone: tuple[Compiled, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The objects of the static library."""
    folder = tmp_path_factory.mktemp("members")
    _zig("ar", "x", str(phone[1] / "lib" / "libcnn.a"), folder=folder)
    return {path.name: path for path in folder.iterdir()}


@requires_zig
def test_the_library_is_an_archive_of_objects_for_ios_17(phone, members):
    _, folder = phone
    library = folder / "lib" / "libcnn.a"
    assert library.read_bytes()[:8] == b"!<arch>\n"
    listed = _zig("ar", "t", str(library), folder=folder).split()
    assert {"cnn_entry.o", "cnn_kernels.o", "cnn_params.o"} <= set(listed) == set(members)
    for path in members.values():
        found = read_macho(path)
        assert (found.cpu_type, found.platform, found.least_version) == (ARM64, IOS, (17, 0)), path.name


@requires_zig
def test_it_exports_the_entry_and_needs_libsystem_alone(members):
    entry = read_macho(members["cnn_entry.o"])
    exported = {s.name for s in entry.symbols if s.is_external and s.section}
    assert exported == {"cnn_run"}
    needed = set(undefined_symbols(*members.values()))
    assert {"expf"} <= needed <= ((LIBC_SYMBOLS | LIBM_SYMBOLS | APPLE_SYMBOLS) - APPLE_LACKS)


@requires_zig
def test_the_parameters_lie_in_constant_memory_aligned(phone, members):
    _, folder = phone
    found = read_macho(members["cnn_params.o"])
    (section,) = [s for s in found.sections if s.size]
    assert section.name == "__TEXT,__const"
    assert section.size == (folder / "src" / "cnn_params.bin").stat().st_size
    (symbol,) = [s for s in found.symbols if s.name == "cnn_params"]
    assert found.sections[symbol.section - 1] == section
    assert symbol.address == section.address
    assert section.alignment == ALIGNMENT


@requires_zig
def test_sizes_are_those_of_the_loaded_sections(phone, members):
    compiled, folder = phone
    sections = [s for path in members.values() for s in read_macho(path).sections]
    text = sum(s.size for s in sections if s.name == "__TEXT,__text")
    assert text <= compiled.code_bytes < 1.1 * text
    n_parameters = (folder / "src" / "cnn_params.bin").stat().st_size
    assert n_parameters <= compiled.constant_bytes < 1.01 * n_parameters
    assert any(s.name.startswith("__DWARF") for s in sections)  # of which nothing is counted
    assert all(kernel.code_bytes for kernel in compiled.kernels)
    assert sum(k.code_bytes for k in {k.symbol: k for k in compiled.kernels}.values()) < compiled.code_bytes


@requires_zig
def test_what_ships_is_what_xcode_takes(phone):
    _, folder = phone
    assert {path.name for path in (folder / "lib").iterdir()} == {"libcnn.a", "cnn.h", "module.modulemap"}
    assert 'header "cnn.h"' in (folder / "lib" / "module.modulemap").read_text()
    assert not (folder / "bin").exists()
    assert not (folder / "src" / "Makefile").exists()
    assert " * Link libcnn.a; nothing else is needed." in (folder / "lib" / "cnn.h").read_text()


@requires_zig
def test_packed_constants_are_an_archive_for_ios_too(phone, tmp_path: Path):
    compiled, folder = phone
    _zig("ar", "x", str(folder / "packed" / "libcnn_packed.a"), folder=tmp_path)
    symbols = [s for path in tmp_path.iterdir() for s in read_macho(path).symbols]
    assert {"cnn_unpack", "cnn_run_unpacked"} <= {s.name for s in symbols if s.section and s.is_external}
    assert compiled.packed
    assert compiled.packed.constant_bytes >= compiled.packed.packed_bytes > 0


@requires_zig
def test_equal_input_gives_equal_bytes(phone, lowered_cnn: LoweredProgram, tmp_path: Path):
    _, folder = phone
    emit_program([lowered_cnn], load_target("iphone-15"), "cnn", tmp_path)
    assert (tmp_path / "lib" / "libcnn.a").read_bytes() == (folder / "lib" / "libcnn.a").read_bytes()


@requires_zig
@pytest.mark.parametrize("name", ["attention", "lstm"])
def test_a_program_links_with_the_library(name: str, tmp_path: Path):
    """For macOS, whose library of stubs zig brings; the objects differ from iOS's in the platform that they name."""
    target = load_target("iphone-15").model_copy(
        update={"triple": "aarch64-apple-macosx14.0", "toolchain": Toolchain(zig="aarch64-macos.14.0")}
    )
    onnx.save(MODELS[name](), tmp_path / "model.onnx")
    compile_onnx(tmp_path / "model.onnx", target, "net", tmp_path)
    (tmp_path / "main.c").write_text(
        '#include "net.h"\n#include <stddef.h>\nint main(void) { return net_run(NULL, NULL, NULL) - 1; }\n'
    )
    _zig(
        "cc", "-target", "aarch64-macos.14.0", "-I", "lib", "main.c", "lib/libnet.a", "-o", "main", folder=tmp_path
    )  # fmt: skip
    linked = read_macho(tmp_path / "main")
    assert (linked.cpu_type, linked.platform) == (ARM64, MACOS)
    assert "net_run" in {s.name for s in linked.symbols if s.section}


@requires_zig
def test_a_function_that_ios_lacks_is_refused(tmp_path: Path):
    target = load_target("iphone-15")
    (tmp_path / "unit.c").write_text("float exp10f(float); float f(float x) { return exp10f(x); }\n")
    link.compile_object(target, tmp_path / "unit.c", tmp_path / "unit.o", tmp_path)
    with pytest.raises(ArmletError, match="needs exp10f, which no app has"):
        check_undefined(target, tmp_path / "unit.o")


@requires_zig
def test_a_bundle_says_that_nothing_ran(armlet, tmp_path: Path):
    onnx.save(MODELS["lstm"](), tmp_path / "net.onnx")
    bundle = library.compile_onnx(
        tmp_path / "net.onnx", "iphone-15", output=tmp_path / "net.armlet", budgets={"size": "1 B"}
    )
    measured, checks = bundle.manifest.measured, {c.what: c for c in bundle.manifest.verdict.checks}
    assert (measured.ran, measured.device, measured.match, measured.latency) == (
        False, "no device", None, None,
    )  # fmt: skip
    assert checks["latency"].measured == checks["same outputs"].measured == "not measured: no device"
    assert checks["same answers"].measured.endswith(", by the program for this machine")
    assert checks["size"].outcome == "fail"
    assert bundle.check(Budgets(latency="1 ms")).passes is False
    page = (bundle.folder / "report.html").read_text()
    assert "there is no device that runs the program" in " ".join(page.split())
    assert {path.name for path in (bundle.folder / "examples").iterdir()} == {"main.c"}
    told = armlet("inspect", bundle.folder).stdout
    assert re.search(r"ran on +no device", told)
    with pytest.raises(UsageError, match="iphone-15 has no emulator: its programs are compiled only"):
        load(bundle.folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"compiled_only": False}, "programs for Apple's systems are built by zig and not run"),
        ({"toolchain": {"cc": "clang", "ar": "ar"}}, "programs for Apple's systems are built by zig"),
        ({"emulator": {"cpu": "max"}}, "compiled_only: emulator tells of programs that run"),
        ({"core": {"llvm_cpu": "apple-a16", "cost_model": "apple-a14"}}, "compiled_only: core.cost_model tells"),
        ({"variants": ["dotprod"]}, "has none"),
    ],
)  # fmt: skip
def test_what_can_not_be_is_refused(change: dict[str, object], message: str):
    given = load_target("iphone-15").model_dump(mode="json")
    with pytest.raises(ValueError, match=message):
        Target.model_validate(given | change)


def test_other_files_are_no_objects(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"\x7fELF")
    with pytest.raises(ArmletError, match="is no 64-bit Mach-O object"):
        read_macho(tmp_path / "file")
    (tmp_path / "file").write_bytes(np.array([0xFEEDFACF, ARM64, 0, 1, 9, 9, 0, 0], "<u4").tobytes())
    with pytest.raises(ArmletError, match="is no whole Mach-O object"):
        read_macho(tmp_path / "file")
