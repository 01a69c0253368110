"""Runs a program that was compiled for this machine, through its shared library."""

from __future__ import annotations

import ctypes
import re
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from armlet.artifacts import Compiled, TensorInfo
from armlet.compile.memory import ALIGNMENT
from armlet.errors import ArmletError, UsageError

Array = npt.NDArray[np.generic]

_CPU_FLAGS: dict[str, str] = {
    "neon": "asimd", "dotprod": "asimddp", "fp16": "asimdhp", "i8mm": "i8mm", "sve": "sve",
    "sse4.2": "sse4_2", "avx2": "avx2", "avx512vnni": "avx512_vnni",
}  # fmt: skip
"""Linux's names of the features that targets have."""

_REFUSALS = {1: "a pointer is NULL", 2: "the arena is not aligned"}


class HostProgram:
    """A compiled program as a callable. Any number of threads may call it at the same time.

    Threads of its own that share the work of one call live as long as this does.

    Args:
        library: the program's `lib<symbol>.so`, compiled for this machine.
        symbol: its C prefix.
        inputs, outputs: as in its `Compiled`.
        arena_bytes: working memory that it needs.
        threads: that may compute one call.

    Raises:
        ArmletError: the library can't be loaded here, or has no such entry.
    """

    def __init__(
        self,
        library: Path,
        symbol: str,
        inputs: Sequence[TensorInfo],
        outputs: Sequence[TensorInfo],
        arena_bytes: int,
        threads: int = 1,
    ) -> None:
        try:
            self._library = open_library(library.resolve())
            self._entry = getattr(self._library, f"{symbol}_run")
        except (OSError, AttributeError) as error:
            raise ArmletError(f"{library} can't be loaded as the program {symbol!r}: {error}") from None
        self._entry.restype = ctypes.c_int
        self._entry.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        self._arena_bytes = arena_bytes
        self._local = threading.local()
        if threads > 1:
            getattr(self._library, f"{symbol}_start")()
            weakref.finalize(self, getattr(self._library, f"{symbol}_stop"))

    @classmethod
    def load(cls, folder: Path, compiled: Compiled) -> HostProgram:
        """Open the program that lies in `folder`, a bundle or the folder of a `Compiled`."""
        library = folder / "lib" / f"lib{compiled.symbol}.so"
        tensors = compiled.inputs, compiled.outputs
        return cls(library, compiled.symbol, *tensors, compiled.arena_bytes, compiled.threads)

    def run(self, *arrays: Array) -> tuple[Array, ...]:
        """Run one sample.

        Args:
            arrays: one for each input, of its exact shape (with the batch of one) and dtype.

        Raises:
            UsageError: the number, a shape or a dtype is wrong; names the input.
        """
        if len(arrays) != len(self.inputs):
            raise UsageError(f"the program takes {len(self.inputs)} inputs, not {len(arrays)}")
        for array, info in zip(arrays, self.inputs, strict=True):
            if array.shape != info.shape or array.dtype != info.dtype:
                raise UsageError(
                    f"input {info.name!r} is {array.dtype} {list(array.shape)}, the program takes {info.dtype} "
                    f"{list(info.shape)}"
                )
        inputs = [np.ascontiguousarray(a) for a in arrays]
        outputs = [np.empty(info.shape, info.dtype) for info in self.outputs]
        self._call(inputs, outputs)
        return tuple(outputs)

    def run_batch(self, batches: Sequence[Array]) -> tuple[Array, ...]:
        """Run many samples, one after the other.

        Args:
            batches: for each input [N, *shape[1:]], in the input's dtype.

        Returns:
            For each output [N, *shape[1:]].

        Raises:
            UsageError: the number of inputs, a shape, a dtype or a number of samples is wrong; names the input.
        """
        return run_each(self.inputs, self.outputs, batches, self._call)

    def run_many(self, samples: Array) -> Array:
        """Run many samples through a program with one input and one output; see `run_batch`."""
        if len(self.outputs) != 1:
            raise UsageError(f"the program has {len(self.outputs)} outputs, not one")
        return self.run_batch((samples,))[0]

    def _call(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
        pointers_in = (ctypes.c_void_p * len(inputs))(*(a.ctypes.data for a in inputs))
        pointers_out = (ctypes.c_void_p * len(outputs))(*(a.ctypes.data for a in outputs))
        code = self._entry(pointers_in, pointers_out, self._arena())
        if code:
            raise ArmletError(f"the compiled program refused its arguments: {_REFUSALS.get(code, code)}")

    def _arena(self) -> int:
        """Return the address of this thread's own arena."""
        memory: Array | None = getattr(self._local, "memory", None)
        if memory is None:
            memory = self._local.memory = np.empty(self._arena_bytes + ALIGNMENT, np.uint8)
        return -(-memory.ctypes.data // ALIGNMENT) * ALIGNMENT


def run_each(
    inputs: Sequence[TensorInfo],
    outputs: Sequence[TensorInfo],
    batches: Sequence[Array],
    call: Callable[[Sequence[Array], Sequence[Array]], None],
) -> tuple[Array, ...]:
    """Run many samples, one after the other.

    Args:
        inputs: of the program.
        outputs: of the program.
        batches: for each input [N, *shape[1:]], in the input's dtype.
        call: runs the program on one sample, given arrays for inputs and outputs, with a batch of one.

    Returns:
        For each output [N, *shape[1:]].

    Raises:
        UsageError: the number of inputs, a shape, a dtype or a number of samples is wrong; names the input.
    """
    if len(batches) != len(inputs):
        raise UsageError(f"the program takes {len(inputs)} inputs, not {len(batches)}")
    n_samples = len(batches[0])
    for array, info in zip(batches, inputs, strict=True):
        if array.shape != (n_samples, *info.shape[1:]) or array.dtype != info.dtype:
            raise UsageError(
                f"input {info.name!r} is {array.dtype} {list(array.shape)}, the program takes {info.dtype} "
                f"{[n_samples, *info.shape[1:]]}"
            )
    given = [np.ascontiguousarray(a) for a in batches]
    found = [np.empty((n_samples, *info.shape[1:]), info.dtype) for info in outputs]
    for i in range(n_samples):
        call([a[i : i + 1] for a in given], [a[i : i + 1] for a in found])
    return tuple(found)


def this_machine_has(features: Iterable[str]) -> bool:
    """Say whether this machine's CPU has the extensions, as Linux tells; a program that uses others would crash."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    told = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    flags = told.group(1).split() if told else []
    return all(_CPU_FLAGS[feature] in flags for feature in features)


def open_library(library: Path) -> ctypes.CDLL:
    """Load a shared library under a name of its own.

    The dynamic loader answers a path that it has seen with the library that lay there then: a bundle that was built
    again under the same name would run the old program.
    """
    with tempfile.TemporaryDirectory() as folder:
        alias = Path(folder) / library.name
        alias.symlink_to(library)
        return ctypes.CDLL(str(alias))
