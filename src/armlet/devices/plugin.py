"""Builds the QEMU plugin that counts blocks, once for each version of QEMU and of the plugin's source."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from filelock import FileLock

from armlet import digest
from armlet.errors import ArmletError, MissingDependency
from armlet.store import cache_root

_SOURCE = Path(__file__).parent.parent / "runtime" / "qemu_plugin.c"
_FLAGS = (
    "-std=c11", "-D_POSIX_C_SOURCE=200809L", "-O2", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared",
    "-fvisibility=hidden",
)  # fmt: skip
_OLDEST = (7, 2)  # the first that tells a plugin the program's entry point


def qemu_version(program: str) -> tuple[int, int, int]:
    """Return the version of a QEMU program.

    Raises:
        MissingDependency: there is no such program.
    """
    path = shutil.which(program)
    if path is None:
        raise MissingDependency(
            program, "running programs for a board without it", "apt-get install qemu-user"
        )
    text = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"version (\d+)\.(\d+)\.(\d+)", text)
    if found is None:
        raise ArmletError(f"{program} --version says {text.strip()!r}, which has no version")
    major, minor, patch = (int(part) for part in found.groups())
    return major, minor, patch


def plugin_api(version: tuple[int, int, int]) -> int:
    """Return the version of the plugin interface to build for; newer QEMUs still take version 3."""
    return 1 if version < (9, 0) else 2 if version < (9, 1) else 3


def plugin_file(program: str) -> Path:
    """Return where the plugin for this QEMU lies, whether or not it is built.

    Raises:
        MissingDependency: there is no QEMU, or it is too old.
    """
    version = qemu_version(program)
    if version[:2] < _OLDEST:
        raise MissingDependency(
            f"QEMU {'.'.join(map(str, _OLDEST))} or newer (found {'.'.join(map(str, version))})",
            "counting instructions",
            "apt-get install qemu-user on Debian 12, Ubuntu 24.04 or newer",
        )
    key = digest.of_json([digest.of_file(_SOURCE), list(_FLAGS), list(version)])
    return cache_root() / "tools" / key[:16] / "count.so"


def build_plugin(program: str) -> Path:
    """Return the plugin for this QEMU, built now if it is not there yet.

    Raises:
        MissingDependency: there is no QEMU, it is too old, or there is no C compiler.
        ArmletError: the compiler refused the source.
    """
    built = plugin_file(program)
    if built.is_file():
        return built
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise MissingDependency("gcc", "building the QEMU plugin", "apt-get install gcc libc6-dev")
    built.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(built.parent / "lock"):
        if built.is_file():  # another process was faster
            return built
        with tempfile.TemporaryDirectory(dir=built.parent) as scratch:
            fresh = Path(scratch) / built.name
            api = plugin_api(qemu_version(program))
            command = [compiler, *_FLAGS, f"-DPLUGIN_API={api}", "-o", str(fresh), str(_SOURCE)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise ArmletError(
                    f"building the QEMU plugin failed: {' '.join(command)}\n{done.stderr.strip()}"
                )
            fresh.replace(built)
    return built


if __name__ == "__main__":  # python -m armlet.devices.plugin: set-up builds it before anyone waits for it
    build_plugin("qemu-aarch64")
