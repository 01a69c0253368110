"""Runs an OpenCL program on this machine: on a GPU where there is one, else through PoCL, which is OpenCL on a CPU."""

from __future__ import annotations

import ctypes
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from armlet.artifacts import Compiled
from armlet.compile.opencl.emit import build_library
from armlet.devices.base import ProgramFailed
from armlet.devices.host import open_library, run_each
from armlet.errors import ArmletError
from armlet.spec.load import load_target

Array = npt.NDArray[np.generic]

MESSAGE_BYTES = 1024
"""As in the header of every program."""
_ABSENT = (2, 3, 4)
"""Codes of the driver that say that this machine has no device for the program; see `runtime/opencl/program.h.in`."""


class NoOpenClDevice(ArmletError):
    """This machine has no OpenCL library, no device, or none that has what a program needs."""


class OpenClProgram:
    """An open program. One thread at a time may run it.

    Args:
        folder: the program's, a bundle or the folder of a `Compiled`.
        compiled: what it is; its driver is built again, for this machine.

    Raises:
        NoOpenClDevice: nothing here can run it; says why.
        ProgramFailed: the device's compiler refuses the kernels, or a call of OpenCL fails; with the driver's message.
        MissingDependency: this machine has no C compiler.
    """

    def __init__(self, folder: Path, compiled: Compiled) -> None:
        symbol, host = compiled.symbol, load_target("host-opencl")
        with tempfile.TemporaryDirectory(prefix="armlet-opencl-") as scratch:
            library = Path(scratch) / f"lib{symbol}.so"
            build_library(symbol, host, folder / "src", folder / "lib", library)
            self._library = open_library(library)
        self.inputs, self.outputs = compiled.inputs, compiled.outputs
        self._run = getattr(self._library, f"{symbol}_run")
        self._run.argtypes = [ctypes.c_void_p] * 4
        close, device = (getattr(self._library, f"{symbol}_{name}") for name in ("close", "device"))
        close.argtypes, close.restype = [ctypes.c_void_p], None
        device.argtypes, device.restype = [ctypes.c_void_p], ctypes.c_char_p
        self._message = ctypes.create_string_buffer(MESSAGE_BYTES)
        self._program = ctypes.c_void_p()
        self._check(getattr(self._library, f"{symbol}_open")(ctypes.byref(self._program), self._message))
        self.device: str = device(self._program).decode(errors="replace")
        weakref.finalize(self, close, self._program)

    def run_batch(self, batches: Sequence[Array]) -> tuple[Array, ...]:
        """Run many samples, one after the other; as `HostProgram.run_batch`.

        Raises:
            UsageError: the number of inputs, a shape, a dtype or a number of samples is wrong; names the input.
            ProgramFailed: a call of OpenCL fails.
        """
        return run_each(self.inputs, self.outputs, batches, self._call)

    def _call(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
        pointers_in = (ctypes.c_void_p * len(inputs))(*(a.ctypes.data for a in inputs))
        pointers_out = (ctypes.c_void_p * len(outputs))(*(a.ctypes.data for a in outputs))
        self._check(self._run(self._program, pointers_in, pointers_out, self._message))

    def _check(self, code: int) -> None:
        if code:
            said = self._message.value.decode(errors="replace")
            raise (NoOpenClDevice if code in _ABSENT else ProgramFailed)(f"OpenCL: {said}")
