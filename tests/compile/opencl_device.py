"""Runs OpenCL programs on a device written for tests: it has float16, counts objects, and fails when told to."""

from __future__ import annotations

import ctypes
import re
import subprocess
from pathlib import Path

import numpy as np

from armlet.artifacts import Compiled
from armlet.compile.opencl.emit import build_library
from armlet.spec.load import load_target


class TestDevice:
    """A program's driver beside the device that it finds, in place of the system's.

    Args:
        folder: of the `Compiled`.
        compiled: the program.
        keep_names: whether the driver looks for the libraries that it names, and not for this device.
    """

    __test__ = False

    def __init__(self, folder: Path, compiled: Compiled, *, keep_names: bool = False) -> None:
        self.compiled, symbol = compiled, compiled.symbol
        device = folder / "libdevice.so"
        source = Path(__file__).with_suffix(".c")
        command = ["gcc", "-std=gnu11", "-O1", "-w", "-shared", "-fPIC", f'-DKERNELS="{symbol}_source.cl"']
        command += [f"-I{folder / 'src'}", str(source), "-o", str(device), "-ldl", "-lm"]
        subprocess.run(command, check=True, capture_output=True, text=True)
        driver = folder / "src" / f"{symbol}.c"
        if not keep_names:
            driver.write_text(_only(device, driver.read_text()))
        build_library(
            symbol, load_target("host-opencl"), folder / "src", folder / "lib", folder / "libdriver.so"
        )
        # Where it fails is counted from when it is loaded, so it is kept.
        self._device, self._driver = ctypes.CDLL(str(device)), ctypes.CDLL(str(folder / "libdriver.so"))

    def restart(self) -> None:
        """Count calls from here on."""
        ctypes.c_int.in_dll(self._device, "calls").value = 0

    @property
    def live(self) -> int:
        """Objects that are not released."""
        return ctypes.c_int.in_dll(self._device, "live").value

    def run(self, *arrays: np.ndarray) -> tuple[int, str, tuple[np.ndarray, ...]]:
        """Open the program, run it once, close it; return the code, the message and the outputs."""
        symbol, message = self.compiled.symbol, ctypes.create_string_buffer(1024)
        program = ctypes.c_void_p()
        outputs = tuple(np.empty(info.shape, info.dtype) for info in self.compiled.outputs)
        code = getattr(self._driver, f"{symbol}_open")(ctypes.byref(program), message)
        if code == 0:
            inputs = [np.ascontiguousarray(array) for array in arrays]
            code = getattr(self._driver, f"{symbol}_run")(
                program, _pointers(inputs), _pointers(outputs), message
            )
            close = getattr(self._driver, f"{symbol}_close")
            close.argtypes, close.restype = [ctypes.c_void_p], None
            close(program)
        else:
            assert not program
        return code, message.value.decode(), outputs


def _only(device: Path, driver: str) -> str:
    """Return a driver that looks for no other library."""
    names = f'library_names[] = {{"{device}", ""}};'
    return re.sub(r"library_names\[\] = \{.*?\};", names, driver, flags=re.DOTALL)


def _pointers(arrays: list[np.ndarray] | tuple[np.ndarray, ...]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(arrays))(*(a.ctypes.data for a in arrays))
