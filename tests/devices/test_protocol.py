from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from armlet.artifacts import Protocol
from armlet.bench.protocol import Readings, compare_turns, measure_host, summarize
from armlet.devices.base import ProgramFailed
from armlet.errors import ArmletError

SAMPLE = np.arange(16, dtype=np.float32).reshape(1, 16)

# A runner whose inference takes at least 200 µs by the clock, and that refuses to run unless it is told a CPU and is
# given the sample's bytes.
SPINNER = r"""
#define _GNU_SOURCE
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
static long now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000L + t.tv_nsec;
}
int main(int argc, char **argv) {
    cpu_set_t cpus; float x[16]; FILE *in = fopen(argv[1], "rb");
    if (sched_getaffinity(0, sizeof cpus, &cpus) || argc != 8 || !CPU_ISSET(atoi(argv[7]), &cpus)) return 9;
    if (argc != 8 || strcmp(argv[4], "--time") || !in || fread(x, 1, 65, in) != 64 || x[15] != 15) return 8;
    for (int i = atoi(argv[5]); i > 0; i--) {
        long begin = now(), end = begin;
        while (end < begin + 200000) end = now();
        printf("%ld\n", end - begin);
    }
    return 0;
}
"""


def build(folder: Path, source: str) -> Path:
    (folder / "run.c").write_text(source)
    subprocess.run(["gcc", "-O1", "-o", str(folder / "run"), str(folder / "run.c")], check=True)
    return folder / "run"


def test_a_known_time_is_measured_and_labelled(tmp_path: Path) -> None:
    latency = measure_host(build(tmp_path, SPINNER), SAMPLE, protocol=Protocol(10_000, 0.06, 4))

    assert latency.label == "measured (host)"
    assert 0.2 <= latency.low_ms <= latency.typical_ms <= latency.high_ms
    assert latency.typical_ms < 1  # a busy machine may take the CPU away now and then, not half of the time
    assert "one thread pinned to CPU" in latency.how
    found = re.search(r": (\d+) runs in 4 fresh processes after warm-up;", latency.how)
    assert found is not None
    assert 4 * 20 <= int(found.group(1)) <= 4 * 75  # 15 ms hold at most 75 of them; 20 are the fewest


def test_a_program_for_several_threads_gets_as_many_cpus(tmp_path: Path) -> None:
    log = tmp_path / "asked"
    program = build(tmp_path, SHORT.replace("LOG", f'"{log}"').replace('"%d\\n", calls', '"%s\\n", argv[7]'))

    latency = measure_host(program, SAMPLE, threads=2, protocol=Protocol(10_000, 0.002, 2))

    cpus = [str(cpu) for cpu in sorted(os.sched_getaffinity(0))[-2:]]
    assert set(log.read_text().split()) == {",".join(cpus)}
    assert "2 threads pinned to CPU" in latency.how


# Answers as an inference of 80 ns would where reading the clock takes 40 ns, and writes down how it is asked.
SHORT = r"""
#include <stdio.h>
#include <stdlib.h>
int main(int argc, char **argv) {
    int calls = atoi(argv[6]); FILE *asked = fopen(LOG, "a");
    fprintf(asked, "%d\n", calls);
    for (int i = atoi(argv[5]); i > 0; i--) printf("%.3f\n", 80 + 40.0 / calls);
    return 0;
}
"""


def test_a_short_inference_is_called_many_times_between_readings_of_the_clock(tmp_path: Path) -> None:
    log = tmp_path / "asked"
    program = build(tmp_path, SHORT.replace("LOG", f'"{log}"'))

    latency = measure_host(program, SAMPLE, protocol=Protocol(10_000, 0.002, 2))

    pilot, *calls = (int(line) for line in log.read_text().split())
    assert pilot == 1
    assert set(calls[-2:]) == {calls[-1]}
    assert calls[-1] * 80 >= 20_000
    assert latency.typical_ms == pytest.approx(80e-6, rel=0.01)  # the clock's 40 ns are gone
    assert f"readings, each the mean of {calls[-1]} runs in a row, in 2 fresh processes" in latency.how


def test_a_program_that_takes_no_time_at_all_is_refused(tmp_path: Path) -> None:
    body = 'for (int i = atoi(argv[5]); i > 0; i--) puts("0.000");'
    program = build(
        tmp_path,
        "#include <stdio.h>\n#include <stdlib.h>\n"
        + f"int main(int argc, char **argv) {{ {body} return 0; }}",
    )

    with pytest.raises(ProgramFailed, match="takes no time at all"):
        measure_host(program, SAMPLE, protocol=Protocol(10_000, 0.002, 2))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return 4;", "exited with 4"),
        ('puts("fast");', "printed 1 words, not 5 times in nanoseconds"),
        ("for (;;) {}", r"ran longer than 0\.5 s"),
    ],
)
def test_a_program_that_does_not_time_itself_is_refused(tmp_path: Path, body: str, message: str) -> None:
    program = build(tmp_path, "#include <stdio.h>\nint main(void) { " + body + " return 0; }")

    with pytest.raises(ArmletError, match=message):
        measure_host(program, SAMPLE, timeout_s=0.5)


def test_a_program_that_can_not_run_here_is_refused(tmp_path: Path) -> None:
    foreign = tmp_path / "run"
    foreign.write_bytes(b"\x7fELF not really")
    foreign.chmod(0o755)

    with pytest.raises(ArmletError, match="can't be started"):
        measure_host(foreign, SAMPLE)


def readings(*medians: float, n: int = 50) -> Readings:
    """What processes of these medians read, in microseconds, each with a spread of a thousandth."""
    rng = np.random.default_rng(len(medians))
    return Readings(1, tuple(tuple(m * rng.normal(1000, 1, n)) for m in medians), settled=True)


def test_a_quiet_run_is_stable() -> None:
    timing = summarize(readings(*[5.0] * 6), (3,))

    assert timing.unstable == ()
    assert timing.cpus == (3,)
    assert timing.n == 300
    assert timing.minimum < timing.p5 < timing.p50 < timing.p90 < timing.p95 < timing.p99
    assert timing.median_low <= timing.p50 <= timing.median_high
    assert timing.p50 == pytest.approx(0.005, rel=0.01)  # ms
    assert 0 < timing.mad < 2e-5
    assert timing.noise < 0.002


@pytest.mark.parametrize(
    ("medians", "reason"),
    [
        ((5, 5, 5.2, 5.4, 5.6, 5.8), "slower than the first: the device may be throttling"),
        ((6, 6, 5.5, 5.5, 5, 5), "faster than the first: it was not warm"),
        ((5, 5.5, 5, 5.5, 5, 5.5), r"every other process and the rest are 10\.\d % apart"),
    ],
)
def test_a_device_that_changes_is_not_trusted(medians: tuple[float, ...], reason: str) -> None:
    timing = summarize(readings(*medians), (0,))

    assert any(re.search(reason, said) for said in timing.unstable), timing.unstable


def test_times_that_never_settled_are_not_trusted() -> None:
    unsettled = Readings(1, readings(*[5.0] * 6).processes, settled=False)
    timing = summarize(unsettled, (0,))
    assert timing.unstable == ("the times were not steady after the warm-up",)


def test_one_program_is_faster_only_beyond_the_noise_of_both() -> None:
    slow, fast, same = readings(*[5.0] * 6), readings(*[4.0] * 6), readings(*[5.0] * 6, n=60)
    noisy = readings(4.7, 5.1, 4.7, 5.1, 4.7, 5.1)

    verdicts = compare_turns(["slow", "fast", "same", "noisy"], [slow, fast, same, noisy])

    assert [c.verdict for c in verdicts] == ["faster", "no difference shown", "no difference shown"]
    assert verdicts[0].ratio == pytest.approx(0.8, rel=0.01)
    assert verdicts[0].low <= verdicts[0].ratio <= verdicts[0].high
    assert compare_turns(["fast", "slow"], [fast, slow])[0].verdict == "slower"
