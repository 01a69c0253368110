from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from armlet.devices import plugin
from armlet.devices.base import ProgramFailed
from armlet.devices.emulator import Emulator
from armlet.devices.plugin import build_plugin, plugin_api, plugin_file, qemu_version
from armlet.errors import MissingDependency
from armlet.spec.target import Target


def put_on_path(folder: Path, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a `qemu-aarch64` that says it has that version the only program."""
    program = folder / "qemu-aarch64"
    program.write_text(f"#!/bin/sh\necho 'qemu-aarch64 version {version} (Debian)'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def test_the_plugin_is_built_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARMLET_CACHE", str(tmp_path))

    built = build_plugin("qemu-aarch64")
    stamp = built.stat().st_mtime_ns

    assert built == plugin_file("qemu-aarch64")
    assert build_plugin("qemu-aarch64") == built
    assert built.stat().st_mtime_ns == stamp
    assert {p.name for p in built.parent.iterdir()} <= {"count.so", "lock"}  # nothing half-built is left


def test_processes_that_build_it_together_agree(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "armlet.devices.plugin"]
    environment = {**os.environ, "ARMLET_CACHE": str(tmp_path)}
    processes = [subprocess.Popen(command, env=environment) for _ in range(3)]

    assert [process.wait(timeout=60) for process in processes] == [0, 0, 0]
    assert len(list(tmp_path.rglob("*.so"))) == 1


def test_another_version_of_qemu_gets_a_plugin_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = plugin_file("qemu-aarch64")
    put_on_path(tmp_path, "8.2.2", monkeypatch)

    assert qemu_version("qemu-aarch64") == (8, 2, 2)
    assert plugin_file("qemu-aarch64") != ours


# The versions of the interface as QEMU's own header lists them.
@pytest.mark.parametrize(
    ("version", "api"), [((7, 2, 0), 1), ((8, 2, 9), 1), ((9, 0, 0), 2), ((9, 1, 0), 3), ((10, 2, 1), 3)]
)
def test_the_source_compiles_for_every_plugin_interface(
    version: tuple[int, int, int], api: int, tmp_path: Path
) -> None:
    assert plugin_api(version) == api
    command = ["gcc", *plugin._FLAGS, "-pedantic", f"-DPLUGIN_API={api}", "-o", str(tmp_path / "count.so")]
    subprocess.run([*command, str(plugin._SOURCE)], check=True)


def test_a_qemu_that_is_too_old_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_on_path(tmp_path, "6.2.0", monkeypatch)

    with pytest.raises(MissingDependency, match=r"missing: QEMU 7\.2 or newer \(found 6\.2\.0\)"):
        plugin_file("qemu-aarch64")


def test_a_qemu_that_refuses_the_plugin_says_why(
    board: Target, network_program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARMLET_CACHE", str(tmp_path))
    monkeypatch.setattr(plugin, "plugin_api", lambda version: 99)

    with pytest.raises(
        ProgramFailed, match="plugin requires API version 99, but this QEMU supports only up to"
    ):
        Emulator(board).count(network_program, np.zeros((1, 64), np.float32))


def test_a_missing_qemu_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(MissingDependency, match="apt-get install qemu-user"):
        qemu_version("qemu-aarch64")


def test_a_missing_compiler_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_on_path(tmp_path, "7.2.0", monkeypatch)
    monkeypatch.setenv("ARMLET_CACHE", str(tmp_path / "cache"))

    with pytest.raises(MissingDependency, match="apt-get install gcc"):
        build_plugin("qemu-aarch64")
