"""What a device is, and what a program took on it."""

from __future__ import annotations

from dataclasses import dataclass

from armlet.artifacts.verdict import Check, Counts, Latency, Match


@dataclass(frozen=True, slots=True)
class CoreFacts:
    """One core of a device.

    Attributes:
        name: LLVM's name of one of Arm's cores; else what the kernel calls it.
        max_mhz: None where the kernel doesn't tell.
        caches: "level type size ways", as the kernel lists them.
    """

    number: int
    name: str
    max_mhz: float | None
    caches: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """What a device says of itself.

    Attributes:
        machine: as `uname -m` says it: aarch64, armv7l, x86_64.
        model: of the board or phone; empty where the kernel doesn't tell.
        features: armlet's names of the extensions that its CPU has.
    """

    machine: str
    model: str
    system: str
    cores: tuple[CoreFacts, ...]
    features: tuple[str, ...]
    memory_bytes: int | None


@dataclass(frozen=True, slots=True)
class DeviceState:
    """What may change while a device works; None and empty are what it doesn't tell."""

    governor: str | None
    clocks_mhz: tuple[float, ...]
    temperature_c: float | None


@dataclass(frozen=True, slots=True)
class Protocol:
    """How a program is timed: every knob.

    Attributes:
        samples: readings of the clock, unless `seconds` are over before.
        seconds: about how long the readings take together, at most; 20 of each process are read in any case.
        processes: fresh ones that the readings are shared among, an even number; each has addresses of its own.
        cpus: those that it is pinned to; none: as many of the device's fastest ones, the last first, as it has threads.
    """

    samples: int = 1024
    seconds: float = 60.0
    processes: int = 10
    cpus: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Timing:
    """Readings of the time of one inference, in milliseconds.

    Attributes:
        n: readings.
        calls: inferences in a row that each reading is the mean of.
        processes: that they were shared among.
        cpus: where it was pinned.
        threads: that computed each inference.
        mad: median absolute deviation from the median.
        median_low, median_high: 95 % interval of the median, by a bootstrap over processes and readings.
        noise: how far the medians of every other process and of the rest are apart, relative to the smaller: what this
            device shows between a program and itself.
        unstable: reasons not to trust the numbers; empty for a quiet run.
    """

    n: int
    calls: int
    processes: int
    cpus: tuple[int, ...]
    threads: int
    minimum: float
    mean: float
    p5: float
    p50: float
    p90: float
    p95: float
    p99: float
    mad: float
    median_low: float
    median_high: float
    noise: float
    unstable: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A bundle's program on a device.

    Attributes:
        device: as the user named it.
        facts, before, after: what the device says of itself; None on an emulated board.
        protocol: how it was timed; None on an emulated board, whose counts are exact.
        timing: None on an emulated board.
        counts: only of an emulated board.
        latency: the same for budgets: a measurement, or an estimate from the counts; None where there is no model.
        answers: the device's beside those of the same program here; None where it was not run here, for a reason
            that stands in `notes`.
    """

    bundle: str
    program: str
    target: str
    device: str
    facts: DeviceFacts | None
    before: DeviceState | None
    after: DeviceState | None
    protocol: Protocol | None
    timing: Timing | None
    counts: Counts | None
    latency: Latency | None
    answers: Match | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two programs on one device, timed in turns.

    Attributes:
        ratio: median time of `program` over that of `baseline`.
        low, high: its 95 % interval.
        verdict: "faster" or "slower" where the interval leaves out 1 and the noise of both; else "no difference shown".
    """

    baseline: str
    program: str
    ratio: float
    low: float
    high: float
    verdict: str


@dataclass(frozen=True, slots=True)
class BenchmarkRun:
    """What `armlet bench` found out: programs on one device, and each beside the first.

    Attributes:
        checks: the latency of each program against its budget.
    """

    benchmarks: tuple[Benchmark, ...]
    comparisons: tuple[Comparison, ...]
    checks: tuple[Check, ...]

    @property
    def passes(self) -> bool:
        """Whether every latency budget holds; one that could not be measured does not."""
        return all(check.outcome in ("pass", "no budget") for check in self.checks)
