"""The boards that tests build programs for and run them on, emulated: with sdot, without it, and in 32-bit code."""

from __future__ import annotations

import shutil
from importlib.util import find_spec

import pytest

from armlet.compile.link import install_command
from armlet.compile.link import missing_tools as missing_tools_of
from armlet.devices.base import opencl_drivers
from armlet.spec.load import load_target

BOARDS = ("raspberry-pi-2", "raspberry-pi-4", "raspberry-pi-5")


def missing_tools() -> list[str]:
    """Return what this machine lacks of the boards' compilers and emulators."""
    targets = [load_target(name) for name in BOARDS]
    emulators = {target.emulator.program for target in targets if target.emulator is not None}
    lacking = {emulator for emulator in emulators if shutil.which(emulator) is None}
    return sorted(lacking.union(*map(missing_tools_of, targets)))


requires_board = pytest.mark.skipif(
    bool(missing_tools()), reason=f"needs {', '.join(missing_tools())}: scripts/setup installs them"
)
requires_zig = pytest.mark.skipif(
    find_spec("ziglang") is None, reason=f"needs ziglang: {install_command('ziglang')}"
)


def opencl_is_missing() -> str:
    """Say what programs for GPUs lack on this machine, or nothing."""
    return (
        ""
        if opencl_drivers() and shutil.which("gcc")
        else "needs an OpenCL driver: apt-get install pocl-opencl-icd"
    )


requires_opencl = pytest.mark.skipif(bool(opencl_is_missing()), reason=opencl_is_missing())
