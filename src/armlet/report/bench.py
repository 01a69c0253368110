"""What a device is and what programs took on it, as tables for the terminal."""

from __future__ import annotations

from collections import Counter

from rich.console import Group
from rich.table import Table
from rich.text import Text

from armlet.artifacts import Benchmark, BenchmarkRun, DeviceFacts, DeviceState
from armlet.report.tables import checks_table
from armlet.units import format_bytes, format_count, format_ms, format_percent


def device_lines(facts: DeviceFacts) -> list[str]:
    """Return what a device says of itself, in words."""
    kinds = Counter((core.name, core.max_mhz) for core in facts.cores)
    cores = ", ".join(
        f"{n} × {name}" + (f" at {mhz:.0f} MHz" if mhz else "") for (name, mhz), n in kinds.items()
    )
    memory = format_bytes(facts.memory_bytes) if facts.memory_bytes else "unknown"
    return [
        f"{facts.model or facts.machine}: {cores}, {memory} of memory",
        f"{facts.system}; extensions: {' '.join(facts.features) or 'none that kernels use'}",
    ]


def benchmark_table(run: BenchmarkRun) -> Group:
    """Return the times of each program, how they compare, and whether budgets hold."""
    first = run.benchmarks[0]
    parts: list[Text | Table] = []
    if first.facts:
        parts += [Text(line, overflow="fold") for line in device_lines(first.facts)]
        parts.append(Text(_states(first.before, first.after)))
    if any(b.timing for b in run.benchmarks):
        parts.append(_timings(run))
    if any(b.counts for b in run.benchmarks):
        parts.append(_counts(run))
    for b in run.benchmarks:
        name = f"{_name(b, run)}: "
        if b.answers:
            exact = "bit for bit" if b.answers.n_identical == b.answers.n_samples else (
                f"{b.answers.n_identical} of {b.answers.n_samples} bit for bit, largest difference"
                f" {b.answers.max_abs_difference:.2g}"
            )  # fmt: skip
            parts.append(Text(f"{name}answers as the same program does here: {exact}"))
        parts += [Text(f"{name}{note}", style="yellow") for note in b.notes]
        parts += [
            Text(f"{name}not stable: {why}", style="yellow")
            for why in (b.timing.unstable if b.timing else ())
        ]
    for c in run.comparisons:
        parts.append(
            Text(
                f"{c.program} over {c.baseline}: {c.ratio:.3f} ({c.low:.3f} to {c.high:.3f}): {c.verdict}",
                overflow="fold",
            )
        )
    return Group(*parts, *([checks_table(run.checks)] if any(c.budget for c in run.checks) else []))


def _name(benchmark: Benchmark, run: BenchmarkRun) -> str:
    """Return what tells a program from the others."""
    alike = [b for b in run.benchmarks if b.program == benchmark.program]
    if len(alike) == 1:
        return benchmark.program
    targets = {b.target for b in alike}
    return f"{benchmark.program} ({benchmark.target})" if len(targets) == len(alike) else benchmark.bundle


def _states(before: DeviceState | None, after: DeviceState | None) -> str:
    """Return governor, clocks and temperature before and after."""
    if before is None or after is None:
        return ""
    clocks = [
        f"{min(s.clocks_mhz):.0f}–{max(s.clocks_mhz):.0f} MHz" if s.clocks_mhz else "clocks not told"
        for s in (before, after)
    ]
    heat = [
        f"{s.temperature_c:.0f} °C" if s.temperature_c is not None else "temperature not told"
        for s in (before, after)
    ]
    return (
        f"governor {before.governor or 'not told'}; before: {clocks[0]}, {heat[0]}; after: {clocks[1]}, {heat[1]};"
        " energy: not measured"
    )


def _timings(run: BenchmarkRun) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("program")
    for column in ("median", "95 % interval", "min", "mean", "p90", "p99", "MAD", "noise", "readings"):
        table.add_column(column, justify="right", no_wrap=True)
    for b in run.benchmarks:
        if t := b.timing:
            readings = f"{t.n} × {t.calls}" if t.calls > 1 else str(t.n)
            table.add_row(
                _name(b, run), format_ms(t.p50),
                f"{format_ms(t.median_low)} to {format_ms(t.median_high)}",
                *map(format_ms, (t.minimum, t.mean, t.p90, t.p99, t.mad)), format_percent(t.noise), readings,
            )  # fmt: skip
    return table


def _counts(run: BenchmarkRun) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("program")
    for column in ("instructions", "modelled cycles", "L1 misses", "estimate"):
        table.add_column(column, justify="right", no_wrap=True)
    for b in run.benchmarks:
        if c := b.counts:
            estimate = "not estimated"
            if b.latency:
                typical, low, high = map(
                    format_ms, (b.latency.typical_ms, b.latency.low_ms, b.latency.high_ms)
                )
                estimate = f"{typical} ({low} to {high})"
            misses = format_count(c.l1_misses) if c.l1_misses >= 0 else "not simulated"
            table.add_row(
                _name(b, run),
                format_count(c.instructions),
                format_count(c.cycles),
                misses,
                estimate,
            )
    return table
