"""Runs programs for a board under QEMU's user-mode emulation, and counts what they execute.

The program is the static runner that the compiler links beside the library: `run INPUTS OUTPUTS N [--count]`.
Everything that could change a count from run to run is fixed: environment, paths, random seed.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from armlet.artifacts import Compiled, TensorInfo
from armlet.devices.base import Block, BlockCounts, ProgramFailed
from armlet.devices.plugin import build_plugin, qemu_version
from armlet.devices.samples import pack, sample_bytes, unpack
from armlet.errors import Problem, UsageError, nearest
from armlet.spec.target import Cache, Target

if TYPE_CHECKING:
    import numpy as np

_SEED = "1"  # what the guest sees as random: the canary of its stack, for one


class Emulator:
    """The emulated board of a target.

    Args:
        target: its `emulator` says which program and core.
        timeout_s: longest run of a program, None for no limit.

    Raises:
        UsageError: the target has no emulator, or one that does not know its core.
        MissingDependency: the emulator is not installed.
    """

    def __init__(self, target: Target, timeout_s: float | None = 3600.0) -> None:
        if target.emulator is None:
            where = "are compiled only" if target.compiled_only else "run on this machine itself"
            raise UsageError(f"target {target.name} has no emulator: its programs {where}")
        self._caches = target.caches
        self._program = target.emulator.program
        self._cpu = target.emulator.cpu
        self._timeout_s = timeout_s
        self._version = qemu_version(self._program)
        self._path = shutil.which(self._program) or self._program
        self._check_cpu(target.name)

    @property
    def description(self) -> str:
        """Program, version and core: "qemu-aarch64 7.2.22 -cpu cortex-a72"."""
        return f"{self._program} {'.'.join(map(str, self._version))} -cpu {self._cpu}"

    def program(self, folder: Path, compiled: Compiled) -> EmulatedProgram:
        """Return the compiled program of `folder` as something that takes arrays."""
        return EmulatedProgram(self, folder / "bin" / "run", compiled.outputs)

    def run(self, program: Path, samples: np.ndarray, outputs: tuple[TensorInfo, ...]) -> np.ndarray:
        """Run a program of one input and one output over samples.

        Args:
            program: the runner, linked statically for the target.
            samples: [N, *input shape without the batch], of the input's dtype.
            outputs: the program's one output.

        Returns:
            [N, *output shape without the batch].

        Raises:
            ProgramFailed: it crashed, exited with an error, ran too long or wrote too little or too much.
        """
        (answer,) = self.run_all(program, (samples,), outputs)
        return answer

    def run_all(
        self, program: Path, samples: tuple[np.ndarray, ...], outputs: tuple[TensorInfo, ...]
    ) -> tuple[np.ndarray, ...]:
        """Run a program of any inputs and outputs: as `run`, with one array for each of them."""
        n = len(samples[0])
        if n == 0:
            return unpack(b"", 0, outputs)
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "in").write_bytes(pack(samples))
            self._execute(program, ("in", "out", str(n)), Path(folder))
            out = Path(folder) / "out"
            if not out.is_file():
                raise ProgramFailed(f"{program} wrote no outputs")
            raw = out.read_bytes()
        expected = n * sample_bytes(outputs)
        if len(raw) != expected:
            raise ProgramFailed(f"{program} wrote {len(raw)} bytes for {n} samples, not {expected}")
        return unpack(raw, n, outputs)

    def count(self, program: Path, *sample: np.ndarray, simulate_caches: bool = True) -> BlockCounts:
        """Count what one inference executes, after a warm-up.

        Args:
            program: the runner, linked statically for the target.
            sample: one array for each input, with a batch of one.
            simulate_caches: also the target's L1 and L2 where it names them, two to four times slower.

        Returns:
            Exact counts between the entry's start and end, the same in every run; a few instructions of the
            calls that mark them are among them.

        Raises:
            ProgramFailed: as `run`, or the program never marked start and end.
            MissingDependency: QEMU is too old for the plugin, or there is no C compiler to build it.
            UsageError: the program is 32-bit code, whose instructions are not counted.
        """
        if self._program != "qemu-aarch64":  # what costs instructions reads AArch64 code, each of four bytes
            raise UsageError(f"instructions are counted in 64-bit code only, not under {self._program}")
        plugin = str(build_plugin(self._program)).replace(
            ",", ",,"
        )  # QEMU's way to write a comma in an option
        arguments = [plugin, "out=counts"]
        caches = self._caches if simulate_caches else None
        if caches is not None:
            arguments += [f"l1={_geometry(caches.l1)}", f"l2={_geometry(caches.l2)}"]
        with tempfile.TemporaryDirectory() as folder:
            options = ("-plugin", ",".join(arguments))
            (Path(folder) / "in").write_bytes(pack(sample))
            self._execute(program, ("in", "out", "1", "--count"), Path(folder), options)
            text = (Path(folder) / "counts").read_text(encoding="ascii")
        return BlockCounts(read_counts(text, program), caches is not None, self.description)

    def variant(self, program: Path) -> str:
        """Return which build of its kernels a program takes here, of those that have several.

        Raises:
            ProgramFailed: as `run`, or it has only one.
        """
        with tempfile.TemporaryDirectory() as folder:
            return self._execute(program, ("--variant",), Path(folder)).strip()

    def _check_cpu(self, target: str) -> None:
        # It exits with 0 or 1, by version. Options of a core follow its name after a comma.
        listing = subprocess.run([self._path, "-cpu", "help"], capture_output=True, text=True, check=False)
        known = re.findall(r"^\s+([\w.-]+)", listing.stdout, re.MULTILINE)
        if self._cpu.partition(",")[0] not in known:
            message = f"target {target}: {self._program} has no core {self._cpu!r}"
            raise UsageError(Problem(message, key="emulator.cpu", hint=nearest(self._cpu, known)))

    def _execute(
        self,
        program: Path,
        arguments: tuple[str, ...],
        folder: Path,
        qemu_options: tuple[str, ...] = (),
    ) -> str:
        """Run a program in a folder and return what it printed."""
        if not program.is_file():
            raise ProgramFailed(f"there is no program {program}")
        # Names relative to the working folder: the guest's stack holds them, and their length would shift it.
        (folder / "run").symlink_to(program.resolve())
        command = [self._path, "-cpu", self._cpu, "-seed", _SEED, *qemu_options, "./run", *arguments]
        try:
            done = subprocess.run(  # QEMU hands its environment on to the guest, onto the stack again
                command, cwd=folder, env={}, capture_output=True, text=True, errors="replace",
                timeout=self._timeout_s, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise ProgramFailed(
                f"{program} ran longer than {self._timeout_s:g} s under {self.description}"
            ) from None
        if done.returncode != 0:
            raise ProgramFailed(
                f"{program} {self._reason(done.returncode)}: {' '.join(command)}\n{done.stderr}".strip()
            )
        return done.stdout

    def _reason(self, code: int) -> str:
        if code == -signal.SIGILL:
            return f"uses an instruction that the target's core ({self._cpu}) lacks"
        if code == -signal.SIGSEGV:
            return f"read or wrote memory that is not its own under {self.description}"
        if code < 0:
            return f"was ended by {signal.Signals(-code).name} under {self.description}"
        return f"exited with {code} under {self.description}"


@dataclass(frozen=True, slots=True)
class EmulatedProgram:
    """A compiled program on an emulated board.

    Attributes:
        runner: the runner, linked statically for the target.
    """

    emulator: Emulator
    runner: Path
    outputs: tuple[TensorInfo, ...]

    def run_batch(self, samples: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        """Run the program over samples.

        Args:
            samples: for each input an array [N, *shape without the batch].

        Returns:
            For each output an array [N, *shape without the batch].
        """
        return self.emulator.run_all(self.runner, samples, self.outputs)


def _geometry(cache: Cache) -> str:
    return f"{cache.size}:{cache.ways}:{cache.line}"


def read_counts(text: str, program: Path) -> tuple[Block, ...]:
    """Return what the plugin wrote; addresses are those of the program's file, wherever it was loaded.

    Raises:
        ProgramFailed: the program did not mark the start and the end of an inference.
    """
    region, entry, *lines = (line.split()[1:] for line in text.splitlines())
    if region != ["1"]:
        raise ProgramFailed(f"{program} did not mark the start and the end of an inference")
    bias = int(entry[0], 16) - _entry_of(program)  # where a position-independent program was loaded
    return tuple(
        Block(int(address, 16) - bias, bytes.fromhex(code), int(executions), int(accesses), int(l1), int(l2))
        for address, executions, accesses, l1, l2, code in lines
    )


def _entry_of(program: Path) -> int:
    from elftools.elf.elffile import ELFFile

    with program.open("rb") as stream:
        return int(ELFFile(stream).header.e_entry)
