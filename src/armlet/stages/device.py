"""What runs a target's programs, and what one call of a program costs there."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from armlet.artifacts import Compiled, Counts, Latency, ProgramCost
from armlet.progress import Progress
from armlet.spec.recipe import Precision, Threads
from armlet.spec.target import Target

if TYPE_CHECKING:
    import numpy as np

    from armlet.data.splits import Splits
    from armlet.devices.emulator import Emulator
    from armlet.devices.opencl import OpenClProgram
    from armlet.models.network import Network


def emulator_of(target: Target) -> Emulator | None:
    """Return the emulated board of a target, None where its programs run otherwise or nowhere."""
    if target.emulator is None:
        return None
    from armlet.devices.emulator import Emulator

    return Emulator(target)


def open_on_gpu(folder: Path, compiled: Compiled) -> tuple[OpenClProgram | None, str]:
    """Open an OpenCL program on this machine's device; return it and what the device is.

    Where there is no device for it, None and the reason.
    """
    from armlet.devices.opencl import NoOpenClDevice, OpenClProgram

    try:
        program = OpenClProgram(folder, compiled)
    except NoOpenClDevice as reason:
        return None, f"no device ({reason})"
    return program, f"{program.device}, through OpenCL on this machine"


def cost_of_a_call(
    runner: Path,
    sample: tuple[np.ndarray, ...],
    target: Target,
    emulator: Emulator | None,
    progress: Progress,
    threads: int = 1,
) -> tuple[Counts | None, Latency | None]:
    """Return counts and latency of one call: timed on this machine, or counted and estimated on the emulated board.

    Both are None where nothing runs the program, and of a program for a GPU: the one that it is for is not here.

    Args:
        runner: the program's `bin/run`.
        sample: one array for each input, with a batch of one.
        target: what it is compiled for.
        emulator: `emulator_of` the target.
        progress: told what is counted.
        threads: that may compute the call.
    """
    if target.compiled_only or target.gpu is not None:
        return None, None
    if emulator is None:
        from armlet.bench.protocol import measure_host

        return None, measure_host(runner, *sample, threads=threads)
    if target.core.cost_model is None:  # then a latency budget is "not measured"
        return None, None
    from armlet.bench.cycles import count_cycles, estimate_latency

    progress.start("count instructions under emulation")
    counts = count_cycles(emulator.count(runner, *sample), runner, target)
    return counts, estimate_latency(counts, target, threads)


def variant_of(runner: Path, target: Target, emulator: Emulator | None) -> str | None:
    """Return which build of its kernels a program takes on its device, None where it has only one."""
    if not target.variants or target.compiled_only:
        return None
    if emulator is not None:
        return emulator.variant(runner)
    from armlet.compile.link import run_tool

    return run_tool([str(runner), "--variant"], runner.parent, "the compiled program").strip()


def program_cost(
    network: Network,
    splits: Splits,
    target: Target,
    symbol: str,
    progress: Progress,
    kernels: tuple[bool, Precision, Threads] = (False, "float32", 1),
) -> ProgramCost:
    """Compile a network for a target and count what one inference costs; the program is not kept.

    Kernels are chosen by whether constants must not grow for the sake of speed, the precision, and the threads.

    Raises:
        UnsupportedOperator: it can't be compiled.
        MissingDependency: a tool chain or the emulator is not installed.
    """
    from armlet.compile.pipeline import compile_onnx
    from armlet.export import export_onnx

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        export_onnx(network, splits.train, folder)
        compiled = compile_onnx(
            folder / "model.onnx",
            target,
            symbol,
            folder,
            small=kernels[0],
            precision=kernels[1],
            threads=kernels[2],
        )
        sample = splits.test.take(slice(1)).inputs
        runner, emulator = folder / "bin" / "run", emulator_of(target)
        _, latency = cost_of_a_call(runner, sample, target, emulator, progress, kernels[2])
    return ProgramCost(target.name, compiled.size_bytes, compiled.arena_bytes, latency)
