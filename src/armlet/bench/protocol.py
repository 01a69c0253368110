"""How latency is measured on this machine: pinned, warmed up, in batches of fresh processes, with its spread.

A fresh process for each batch draws new addresses for code, stack and heap, which one process alone would
keep; the batches are pooled, so that such luck shows in the interval. Reading the clock costs tens of nanoseconds, so
where a call is short, each reading spans so many calls that this is a small share of it.
"""

from __future__ import annotations

import math
import os
import platform
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from armlet.artifacts import Latency
from armlet.bench.stats import summarize
from armlet.devices.base import ProgramFailed
from armlet.devices.samples import pack

if TYPE_CHECKING:
    import numpy as np

_PILOT_READINGS = 5
_FEWEST_READINGS, _MOST_READINGS = 20, 2000  # in one batch
_SHORTEST_READING_NS = 20_000.0  # reading the clock is then below half a percent of it
_MOST_CALLS = 100_000  # in one reading; only a program that does nothing would need more
_NANOSECONDS_PER_MS = 1e6


def measure_host(
    program: Path, *sample: np.ndarray, batches: int = 5, batch_seconds: float = 0.5, timeout_s: float = 600.0
) -> Latency:
    """Measure one inference on this machine: one thread, pinned to one CPU, input and weights in the cache.

    Args:
        program: the runner linked for this machine; `--time R K` prints the nanoseconds of one call, R times, each
            the mean of K calls in a row.
        sample: one array for each input, with a batch of one.
        batches: fresh processes, at least 1.
        batch_seconds: about how long each takes.
        timeout_s: longest run of one process.

    Returns:
        5th percentile, median and 95th percentile of the readings of all batches.

    Raises:
        ProgramFailed: the program crashed, ran too long, or printed no times.
    """
    cpu = max(os.sched_getaffinity(0))  # interrupts tend to go to the first ones
    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder) / "in"
        inputs.write_bytes(pack(sample))
        timer = _Timer(program, inputs, cpu, timeout_s)
        calls, reading_ns = _calls_per_reading(timer)
        wanted = batch_seconds * 1e3 * _NANOSECONDS_PER_MS / max(reading_ns, 1.0)
        readings = round(min(max(wanted, _FEWEST_READINGS), _MOST_READINGS))
        times = [timer.read(readings, calls) for _ in range(batches)]
    pooled = summarize([t for batch in times for t in batch])
    if pooled.median <= 0:
        raise ProgramFailed(f"{program} says that it takes no time at all")
    medians = [summarize(batch).median for batch in times]
    shift = 100 * (max(medians) - min(medians)) / pooled.median
    low, typical, high, sure_low, sure_high = (
        t / _NANOSECONDS_PER_MS
        for t in (pooled.p5, pooled.median, pooled.p95, pooled.median_low, pooled.median_high)
    )
    what = (
        f"{pooled.n} runs" if calls == 1 else f"{pooled.n} readings, each the mean of {calls} runs in a row,"
    )
    how = (
        f"measured on {cpu_name()}, one thread pinned to CPU {cpu}: {what} in {batches} fresh"
        f" processes after warm-up; 95 % confidence of the median {sure_low:.4g} to {sure_high:.4g} ms;"
        f" the processes' medians differ by {shift:.1f} %"
    )
    return Latency("measured (host)", low, typical, high, how)


def cpu_name() -> str:
    """Return the name of this machine's CPU, its architecture where it has no name."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return platform.machine()
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found.group(1).strip() if found else platform.machine()


def _calls_per_reading(timer: _Timer) -> tuple[int, float]:
    """Return how many calls make a reading long enough, and the nanoseconds that it then takes."""
    calls = 1
    while True:
        reading_ns = summarize(timer.read(_PILOT_READINGS, calls)).median * calls
        if reading_ns >= _SHORTEST_READING_NS or calls == _MOST_CALLS:
            return calls, reading_ns
        # A quarter more than it seems to take: what the pilot read has the clock's own time in it.
        calls = min(math.ceil(1.25 * calls * _SHORTEST_READING_NS / max(reading_ns, 1.0)), _MOST_CALLS)


@dataclass(frozen=True, slots=True)
class _Timer:
    """Runs a program that times itself on one sample, pinned to one CPU."""

    program: Path
    inputs: Path
    cpu: int
    timeout_s: float

    def read(self, readings: int, calls: int) -> list[float]:
        """Return the nanoseconds of one call, `readings` times, from one fresh process."""
        command = [str(self.program), str(self.inputs), os.devnull, "1", "--time", str(readings)]
        if calls > 1:
            command.append(str(calls))
        try:
            done = subprocess.run(
                command,
                env={},
                capture_output=True,
                text=True,
                timeout=self.timeout_s,
                check=False,
                preexec_fn=lambda: os.sched_setaffinity(0, {self.cpu}),
            )
        except subprocess.TimeoutExpired:
            raise ProgramFailed(f"{self.program} ran longer than {self.timeout_s:g} s") from None
        except OSError as error:
            raise ProgramFailed(f"{self.program} can't be started: {error.strerror}") from None
        if done.returncode != 0:
            raise ProgramFailed(f"{' '.join(command)} exited with {done.returncode}\n{done.stderr}".strip())
        lines = done.stdout.split()
        if len(lines) != readings or not all(re.fullmatch(r"\d+(\.\d+)?", line) for line in lines):
            raise ProgramFailed(
                f"{' '.join(command)} printed {len(lines)} words, not {readings} times in nanoseconds"
            )
        return [float(line) for line in lines]
