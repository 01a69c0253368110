"""Times bundles' programs on a device, or counts what they execute on an emulated board."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from armlet.artifacts import (
    Benchmark,
    BenchmarkRun,
    Comparison,
    DeviceFacts,
    Match,
    Protocol,
)
from armlet.bench.protocol import (
    INPUTS,
    PROGRAM,
    Runner,
    carry,
    compare_turns,
    cpu_name,
    latency_of,
    summarize,
    time_in_turns,
)
from armlet.bundle import SAMPLES_FOLDER, Bundle
from armlet.check import check_latency
from armlet.devices.board import Board, DeviceFailed, Workplace
from armlet.devices.probe import probe, state
from armlet.devices.routes import EMULATOR, HOST, open_board
from armlet.devices.samples import pack, sample_bytes, unpack
from armlet.errors import MissingDependency, UsageError, VerificationFailed
from armlet.progress import Progress
from armlet.stages.compare import compare
from armlet.stages.device import cost_of_a_call, emulator_of

if TYPE_CHECKING:
    import numpy as np

    Arrays = tuple[np.ndarray, ...]

_N_COMPARED = 4  # samples whose answers are compared
_OUTPUTS = "out"
_WHOLE = ("int32", "int64")
_RUNS_ON = {"arm": ("armv7l", "armv8l", "aarch64", "arm64"), "aarch64": ("aarch64", "arm64")}
"""Names that `uname -m` gives machines which run code for a triple's architecture; an armv8l is a 64-bit one."""


def bench_bundles(
    folders: Sequence[str | Path],
    device: str,
    protocol: Protocol,
    *,
    latency_ms: float | None = None,
    timeout_s: float = 600.0,
    progress: Progress,
) -> BenchmarkRun:
    """Measure programs on one device, in turns where they are several.

    Args:
        folders: bundles; each but the first is compared with the first.
        device: host, emulator, or the address of a board.
        protocol: how they are timed.
        latency_ms: most time for one inference, instead of the bundles' own budgets.
        timeout_s: longest wait for one command on the device.
        progress: told what is done.

    Raises:
        UsageError: no such device, or something that is no bundle.
        MissingDependency: a program that leads to the device is not installed.
        DeviceFailed: it can't be reached, can't run the program, or went away.
        ProgramFailed: a program crashed.
        VerificationFailed: the device's answers differ from those of the same program here.
    """
    _check_numbers(protocol, timeout_s)
    bundles = [Bundle.open(folder) for folder in folders]
    for bundle in bundles:
        _refuse_without_runner(bundle)
    if device == EMULATOR:
        found = [_count(bundle, progress) for bundle in bundles]
        comparisons: tuple[Comparison, ...] = ()
    else:
        board = open_board(device, timeout_s)
        found, comparisons = _time(bundles, board, protocol, progress)
    budgets = [bundle.manifest.budgets.latency if latency_ms is None else latency_ms for bundle in bundles]
    checks = (
        check_latency(f"latency of {b.program}", budget, b.latency)
        for b, budget in zip(found, budgets, strict=True)
    )
    return BenchmarkRun(tuple(found), comparisons, tuple(checks))


def _check_numbers(protocol: Protocol, timeout_s: float) -> None:
    seconds = (protocol.seconds, timeout_s)
    if protocol.samples < 1 or not all(0 < s < math.inf for s in seconds):
        raise UsageError("--samples, --seconds and --timeout are finite and above zero")
    if protocol.processes < 2 or protocol.processes % 2:
        raise UsageError(
            f"--processes {protocol.processes}: an even number, as each half is held against the other"
        )


def _refuse_without_runner(bundle: Bundle) -> None:
    target = bundle.manifest.target
    if target.compiled_only:
        raise UsageError(
            f"{bundle.folder} has no runner: programs for {target.name} are compiled and not run"
        )
    if target.gpu is not None:
        raise UsageError(
            f"{bundle.folder} has no runner: programs for {target.name} compute on a GPU, and are not timed"
        )


def _count(bundle: Bundle, progress: Progress) -> Benchmark:
    """Count what one inference executes on the emulated board of the bundle's target."""
    facts = bundle.manifest
    emulator = emulator_of(facts.target)
    if emulator is None:
        raise UsageError(f"target {facts.target.name} has no emulated board: its programs run on the host")
    sample = tuple(array[:1] for array in _samples(bundle))
    counts, latency = cost_of_a_call(bundle.folder / "bin" / "run", sample, facts.target, emulator, progress)
    return Benchmark(
        str(bundle.folder), facts.name, facts.target.name, emulator.description,
        None, None, None, None, None, counts, latency, None,
    )  # fmt: skip


def _time(
    bundles: Sequence[Bundle], board: Board, protocol: Protocol, progress: Progress
) -> tuple[list[Benchmark], tuple[Comparison, ...]]:
    """Time programs on a board, after what they answer there was held against what they answer here."""
    with ExitStack() as stack:
        progress.start(f"connect to {board.name}")
        places = [stack.enter_context(board.open()) for _ in bundles]
        device = probe(places[0])
        threads = [bundle.manifest.compiled.threads for bundle in bundles]
        cpus = [_pinned(protocol, device, n) for n in threads]
        answers = []
        for bundle, place in zip(bundles, places, strict=True):
            _check_fits(bundle, device, board.name)
            progress.start(f"carry {bundle.manifest.name} to {board.name}, and compare its answers")
            answers.append(_carry_and_compare(bundle, place))
        runners = [
            Runner(place, pinned, f"{bundle.manifest.name} on {board.name}")
            for bundle, place, pinned in zip(bundles, places, cpus, strict=True)
        ]
        progress.start(f"time on {board.name}", protocol.processes * len(bundles))
        before = state(places[0])
        readings = time_in_turns(runners, protocol, progress)
        after = state(places[0])
    timings = [summarize(*of_one) for of_one in zip(readings, cpus, threads, strict=True)]
    is_host = board.name == HOST
    found = [
        Benchmark(
            str(bundle.folder), bundle.manifest.name, bundle.manifest.target.name, board.name,
            device, before, after, protocol, timing, None,
            latency_of(timing, cpu_name() if is_host else _describe(device, timing.cpus), is_host=is_host),
            match, notes,
        )
        for bundle, timing, (match, notes) in zip(bundles, timings, answers, strict=True)
    ]  # fmt: skip
    return found, compare_turns([str(bundle.folder) for bundle in bundles], readings)


def _samples(bundle: Bundle) -> Arrays:
    """Return samples that the program takes: those of the bundle where it has some, else drawn ones."""
    import numpy as np

    from armlet.stages.imported import random_samples

    inputs = bundle.manifest.inputs
    kept = bundle.folder / SAMPLES_FOLDER / "inputs.bin"
    if kept.is_file():
        raw = kept.read_bytes()
        found = unpack(raw, len(raw) // sample_bytes(inputs), inputs)
        return tuple(array[:_N_COMPARED] for array in found)
    # A one is a token of every vocabulary, and a length that every sequence has.
    whole = {
        i: np.ones((_N_COMPARED, *x.shape[1:]), x.dtype) for i, x in enumerate(inputs) if x.dtype in _WHOLE
    }
    drawn = iter(random_samples(tuple(x for i, x in enumerate(inputs) if i not in whole), _N_COMPARED))
    return tuple(whole[i] if i in whole else next(drawn) for i in range(len(inputs)))


def _check_fits(bundle: Bundle, device: DeviceFacts, name: str) -> None:
    """Refuse a program that the device's CPU can't run."""
    compiled = bundle.manifest.compiled
    machine = compiled.triple.split("-")[0]
    architecture = "arm" if machine.startswith("arm") else machine
    target = bundle.manifest.target.name
    if device.machine not in _RUNS_ON.get(architecture, (architecture,)):
        raise DeviceFailed(
            f"{bundle.folder} holds a program for {architecture} ({target}), and {name} is a {device.machine}:"
            " make a bundle for a target of that kind, or use --device emulator"
        )
    lacking = sorted(set(compiled.features) - set(device.features))
    if lacking:
        raise DeviceFailed(
            f"{bundle.folder}: target {target} has {', '.join(lacking)}, which {name} lacks:"
            " compile for a target without it (armlet devices probe proposes one)"
        )


def _carry_and_compare(bundle: Bundle, place: Workplace) -> tuple[Match | None, tuple[str, ...]]:
    """Put runner and samples into a workplace; compare the answers there with those of the program here."""
    from armlet.program import open_route
    from armlet.stages.imported import worst

    compiled, samples = bundle.manifest.compiled, _samples(bundle)
    carry(place, bundle.folder / "bin" / "run", pack(samples))
    n = len(samples[0])
    done = place.execute([f"./{PROGRAM}", INPUTS, _OUTPUTS, str(n)])
    if done.code:
        hint = " (is its folder mounted noexec? ssh://...?folder=DIR)" if done.code == 126 else ""
        raise DeviceFailed(
            f"{bundle.folder}: the program exited with {done.code} on the device: {done.stderr.strip()}{hint}"
        )
    raw = place.get(_OUTPUTS)
    if len(raw) != n * sample_bytes(compiled.outputs):
        raise DeviceFailed(f"{bundle.folder}: the program wrote {len(raw)} bytes of answers on the device")
    answers = unpack(raw, n, compiled.outputs)
    try:
        expected = open_route(bundle.folder, compiled, bundle.manifest.target)(samples)
    except MissingDependency as error:
        return None, (f"answers not compared: {error}",)
    match = worst([compare(a, e, compiled, compiled) for a, e in zip(answers, expected, strict=True)])
    if not match.holds:
        raise VerificationFailed(
            f"{bundle.folder}: answers on the device differ from those of the same program here by up to"
            f" {match.max_abs_difference:g}, more than {match.tolerance:g}: {match.reason}"
        )
    return match, ()


def _pinned(protocol: Protocol, device: DeviceFacts, threads: int) -> tuple[int, ...]:
    """Return the CPUs to pin to: those that were asked for, or the last of the fastest, one for each thread."""
    numbers = [core.number for core in device.cores]
    if unknown := [cpu for cpu in protocol.cpus if cpu not in numbers]:
        raise UsageError(f"--cpus {unknown[0]}: the device has {', '.join(map(str, numbers))}")
    if protocol.cpus:
        return protocol.cpus
    fastest_last = sorted(device.cores, key=lambda core: (core.max_mhz or 0.0, core.number))
    return tuple(sorted(core.number for core in fastest_last[-threads:])) or (0,)


def _describe(device: DeviceFacts, cpus: tuple[int, ...]) -> str:
    names = sorted({core.name for core in device.cores if core.number in cpus}) or ["an unknown core"]
    return ", ".join([*([device.model] if device.model else []), *names])
