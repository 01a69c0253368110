"""How latency is measured on a device: pinned, warmed up until stable, in turns of fresh processes, with its spread.

A fresh process for each turn draws new addresses for code, stack and heap, which one process alone would keep; the
turns are pooled, so that such luck shows in the interval. Reading the clock costs tens of nanoseconds, so where a call
is short, each reading spans so many calls that this is a small share of it. Several programs take turns, so that what
the device does beside them meets all alike.
"""

from __future__ import annotations

import math
import os
import platform
import re
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from armlet.artifacts import Comparison, Latency, Protocol, Timing
from armlet.bench.stats import bootstrap_medians, interval, percentile
from armlet.devices.base import ProgramFailed
from armlet.devices.board import Workplace
from armlet.devices.local import LocalBoard
from armlet.devices.samples import pack
from armlet.progress import Progress

if TYPE_CHECKING:
    import numpy as np

QUICK = Protocol(samples=10_000, seconds=2.5, processes=6)
"""What a run does for each program; `armlet bench` takes its time."""
PROGRAM, INPUTS = "run", "in"
"""Names of the runner and of its samples in a workplace."""

_PILOT_READINGS = 5
_FEWEST_READINGS = 20  # of one process
_SHORTEST_READING_NS = 20_000.0  # reading the clock is then below half a percent of it
_MOST_CALLS = 100_000  # in one reading; only a program that does nothing would need more
_FEWEST_WARM_UPS = 6
_ENOUGH_PROCESSES = 6  # with fewer, intervals that should hold 95 % of medians hold as few as half
_SETTLED = 0.02  # largest difference between the medians of three processes in a row after warm-up
_TRUSTED = 0.05  # what replications of a measurement may differ by
_NS_PER_MS = 1e6


def measure_host(
    program: Path, *sample: np.ndarray, threads: int = 1, protocol: Protocol = QUICK, timeout_s: float = 600.0
) -> Latency:
    """Measure one inference on this machine: threads pinned to as many CPUs, input and weights in the cache.

    Args:
        program: the runner linked for this machine.
        sample: one array for each input, with a batch of one.
        threads: that the program computes a call with; where there are fewer CPUs, they share all of these.
        protocol: how.
        timeout_s: longest run of one process.

    Returns:
        5th percentile, median and 95th percentile of the readings of all processes.

    Raises:
        ProgramFailed: the program crashed, ran too long, or printed no times.
    """
    with LocalBoard(timeout_s).open() as place:
        carry(place, program, pack(sample))
        cpus = tuple(sorted(os.sched_getaffinity(0))[-threads:])  # interrupts tend to go to the first ones
        (readings,) = time_in_turns([Runner(place, cpus, str(program))], protocol)
        timing = summarize(readings, cpus, threads)
    return latency_of(timing, cpu_name(), is_host=True)


def carry(place: Workplace, program: Path, samples: bytes) -> None:
    """Put a runner program and the bytes of its samples into a workplace, where a `Runner` finds them."""
    place.put(PROGRAM, program.read_bytes(), executable=True)
    place.put(INPUTS, samples)


def latency_of(timing: Timing, device: str, *, is_host: bool) -> Latency:
    """Return what budgets are held against: the median, and the 5th and 95th percentile."""
    what = (
        f"{timing.n} runs" if timing.calls == 1
        else f"{timing.n} readings, each the mean of {timing.calls} runs in a row,"
    )  # fmt: skip
    threads = "one thread" if timing.threads == 1 else f"{timing.threads} threads"
    pinned = f"CPU{'s' * (len(timing.cpus) > 1)} {', '.join(map(str, timing.cpus))}"
    how = (
        f"measured on {device}, {threads} pinned to {pinned}: {what} in {timing.processes} fresh"
        f" processes after warm-up; 95 % confidence of the median {timing.median_low:.4g} to"
        f" {timing.median_high:.4g} ms; every other process against the rest: {100 * timing.noise:.1f} %"
    )
    if timing.unstable:
        how += f"; not stable: {'; '.join(timing.unstable)}"
    return Latency(
        "measured (host)" if is_host else "measured (device)", timing.p5, timing.p50, timing.p95, how
    )


def compare_host(
    programs: Sequence[Path], *, rounds: int = 15, timeout_s: float = 600.0
) -> tuple[float, ...]:
    """Time programs against each other on this machine: they take turns, so that what disturbs it disturbs all.

    Args:
        programs: runners linked for this machine, of one input shape [1, 1], float32.
        rounds: turns of each, at least 1; a turn is a fresh process of some readings.
        timeout_s: longest run of one process.

    Returns:
        For each program the nanoseconds of one inference: the median over its turns of their medians.

    Raises:
        ProgramFailed: as `measure_host`.
    """
    cpus = (max(os.sched_getaffinity(0)),)
    protocol = Protocol(_FEWEST_READINGS * rounds, seconds=rounds, processes=rounds)
    with ExitStack() as stack:
        runners = []
        for program in programs:
            place = stack.enter_context(LocalBoard(timeout_s).open())
            carry(place, program, bytes(4))
            runners.append(Runner(place, cpus, str(program)))
        found = time_in_turns(runners, protocol)
    medians = [[percentile(turn, 0.5) for turn in readings.processes] for readings in found]
    return tuple(percentile(of_one, 0.5) for of_one in medians)


def cpu_name() -> str:
    """Return the name of this machine's CPU, its architecture where it has no name."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return platform.machine()
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found.group(1).strip() if found else platform.machine()


@dataclass(frozen=True, slots=True)
class Readings:
    """What a program's processes read, one list for each.

    Attributes:
        calls: inferences in a row that each reading is the mean of.
        processes: nanoseconds of one inference.
        settled: whether the warm-up ended because the times were steady.
    """

    calls: int
    processes: tuple[tuple[float, ...], ...]
    settled: bool


@dataclass(frozen=True, slots=True)
class Runner:
    """A runner program in a workplace, with its samples, that times itself on the first of them.

    Attributes:
        cpus: that it pins itself to.
        name: for messages.
    """

    place: Workplace
    cpus: tuple[int, ...]
    name: str

    def read(self, readings: int, calls: int) -> list[float]:
        """Return the nanoseconds of one call, `readings` times, from one fresh process."""
        cpus = ",".join(map(str, self.cpus))
        command = [
            f"./{PROGRAM}",
            INPUTS,
            os.devnull,
            "1",
            "--time",
            str(readings),
            str(calls),
            cpus,
        ]
        done = self.place.execute(command)
        if done.is_illegal_instruction:
            raise ProgramFailed(
                f"{self.name} uses an instruction that this CPU lacks: compile for its target"
            )
        if done.code != 0:
            raise ProgramFailed(
                f"{self.name}: {' '.join(command)} exited with {done.code}\n{done.stderr}".strip()
            )
        lines = done.stdout.decode(errors="replace").split()
        if len(lines) != readings or not all(re.fullmatch(r"\d+(\.\d+)?", line) for line in lines):
            raise ProgramFailed(
                f"{self.name}: {' '.join(command)} printed {len(lines)} words, not {readings} times in nanoseconds"
            )
        return [float(line) for line in lines]


def time_in_turns(
    runners: Sequence[Runner], protocol: Protocol, progress: Progress | None = None
) -> list[Readings]:
    """Time programs on one device, each in fresh processes that take turns with the others'.

    Args:
        runners: one for each program, all on the same device.
        protocol: how.
        progress: told of each process.

    Raises:
        ProgramFailed: one crashed, ran too long, or printed no times.
        DeviceFailed: the device went away.
    """
    plans = [_prepare(runner, protocol) for runner in runners]
    found: list[list[tuple[float, ...]]] = [[] for _ in runners]
    for _ in range(protocol.processes):
        for runner, (calls, readings, _settled), kept in zip(runners, plans, found, strict=True):
            kept.append(tuple(runner.read(readings, calls)))
            if progress:
                progress.advance()
    return [
        Readings(calls, tuple(kept), settled) for (calls, _n, settled), kept in zip(plans, found, strict=True)
    ]


def summarize(readings: Readings, cpus: tuple[int, ...], threads: int = 1) -> Timing:
    """Return what the readings of a program say, which computed a call with so many threads on these CPUs.

    Raises:
        ProgramFailed: the program says that it takes no time.
    """
    processes = [[t / _NS_PER_MS for t in process] for process in readings.processes]
    pooled = sorted(t for process in processes for t in process)
    p5, p50, p90, p95, p99 = (percentile(pooled, share) for share in (0.05, 0.5, 0.9, 0.95, 0.99))
    if p50 <= 0:
        raise ProgramFailed("the program says that it takes no time at all")
    low, high = interval(bootstrap_medians([processes])[0])
    return Timing(
        n=len(pooled), calls=readings.calls, processes=len(processes), cpus=cpus, threads=threads,
        minimum=pooled[0], mean=sum(pooled) / len(pooled), p5=p5, p50=p50, p90=p90, p95=p95, p99=p99,
        mad=percentile([abs(t - p50) for t in pooled], 0.5),
        median_low=low, median_high=high, noise=_noise(readings),
        unstable=tuple(_doubts(readings)),
    )  # fmt: skip


def compare_turns(names: Sequence[str], found: Sequence[Readings]) -> tuple[Comparison, ...]:
    """Compare programs that were timed in turns, each with the first.

    One is faster or slower where the interval of the ratio leaves out all that either program shows beside itself.

    Args:
        names: of the programs.
        found: what `time_in_turns` returned for them.
    """
    if len(found) == 1:
        return ()
    draws = bootstrap_medians([readings.processes for readings in found])
    comparisons = []
    for name, readings, drawn in zip(names[1:], found[1:], draws[1:], strict=True):
        low, high = interval(drawn / draws[0])
        noise = max(_noise(found[0]), _noise(readings))
        verdict = "faster" if high < 1 - noise else "slower" if low > 1 + noise else "no difference shown"
        ratio = _median(readings.processes) / _median(found[0].processes)
        comparisons.append(Comparison(names[0], name, ratio, low, high, verdict))
    return tuple(comparisons)


def _prepare(runner: Runner, protocol: Protocol) -> tuple[int, int, bool]:
    """Warm a device up; return calls in a reading, readings of a process, and whether the times became steady."""
    calls, reading_ns = _calls_per_reading(runner)
    most = protocol.seconds * 1e3 * _NS_PER_MS / max(reading_ns, 1.0)
    readings = math.ceil(max(min(protocol.samples, most) / protocol.processes, _FEWEST_READINGS))
    medians: list[float] = []
    until = time.monotonic() + protocol.seconds / 6
    while True:
        medians.append(percentile(runner.read(_PILOT_READINGS, calls), 0.5))
        last = medians[-3:]
        if len(last) == 3 and max(last) <= (1 + _SETTLED) * min(last):
            return calls, readings, True
        if len(medians) >= _FEWEST_WARM_UPS and time.monotonic() > until:
            return calls, readings, False


def _calls_per_reading(runner: Runner) -> tuple[int, float]:
    """Return how many calls make a reading long enough, and the nanoseconds that it then takes."""
    calls = 1
    while True:
        reading_ns = percentile(runner.read(_PILOT_READINGS, calls), 0.5) * calls
        if reading_ns >= _SHORTEST_READING_NS or calls == _MOST_CALLS:
            return calls, reading_ns
        # A quarter more than it seems to take: what the pilot read has the clock's own time in it.
        calls = min(math.ceil(1.25 * calls * _SHORTEST_READING_NS / max(reading_ns, 1.0)), _MOST_CALLS)


def _doubts(readings: Readings) -> list[str]:
    """Return the reasons not to trust a measurement."""
    processes = readings.processes
    found = [] if readings.settled else ["the times were not steady after the warm-up"]
    if len(processes) < _ENOUGH_PROCESSES:
        found.append(
            f"{len(processes)} processes are too few for the interval: take {_ENOUGH_PROCESSES} or more"
        )
    noise = _noise(readings)
    if noise > _TRUSTED:
        found.append(f"every other process and the rest are {100 * noise:.1f} % apart")
    third = len(processes) // 3
    if third:
        drift = _median(processes[-third:]) / _median(processes[:third]) - 1
        if abs(drift) > _TRUSTED:
            found.append(
                f"the last third is {100 * abs(drift):.1f} % {'slower' if drift > 0 else 'faster'} than the first:"
                f" {'the device may be throttling' if drift > 0 else 'it was not warm'}"
            )
    return found


def _noise(readings: Readings) -> float:
    """Return how far the medians of every other process and of the rest are apart, relative to the smaller."""
    low, high = sorted(_median(half) for half in (readings.processes[::2], readings.processes[1::2]))
    return high / low - 1 if low > 0 else 0.0


def _median(processes: Sequence[Sequence[float]]) -> float:
    return percentile([t for process in processes for t in process], 0.5)
