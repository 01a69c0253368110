from __future__ import annotations

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from armlet.bench.protocol import measure_host
from armlet.devices.base import ProgramFailed

SAMPLE = np.arange(16, dtype=np.float32).reshape(1, 16)

# A runner whose inference takes at least 200 µs by the clock, and that refuses to run unless it is pinned and is
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
    if (sched_getaffinity(0, sizeof cpus, &cpus) || CPU_COUNT(&cpus) != 1) return 9;
    if (argc != 6 || strcmp(argv[4], "--time") || !in || fread(x, 1, 65, in) != 64 || x[15] != 15) return 8;
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
    latency = measure_host(build(tmp_path, SPINNER), SAMPLE, batches=3, batch_seconds=0.02)

    assert latency.label == "measured (host)"
    assert 0.2 <= latency.low_ms <= latency.typical_ms <= latency.high_ms
    assert latency.typical_ms < 1  # a busy machine may take the CPU away now and then, not half of the time
    assert "one thread pinned to CPU" in latency.how
    found = re.search(r": (\d+) runs in 3 fresh processes after warm-up;", latency.how)
    assert found is not None
    assert 3 * 20 <= int(found.group(1)) <= 3 * 100  # 20 ms hold at most 100 of them; 20 are the fewest


# Answers as an inference of 80 ns would where reading the clock takes 40 ns, and writes down how it is asked.
SHORT = r"""
#include <stdio.h>
#include <stdlib.h>
int main(int argc, char **argv) {
    int calls = argc == 7 ? atoi(argv[6]) : 1; FILE *asked = fopen(LOG, "a");
    fprintf(asked, "%d\n", calls);
    for (int i = atoi(argv[5]); i > 0; i--) printf("%.3f\n", 80 + 40.0 / calls);
    return 0;
}
"""


def test_a_short_inference_is_called_many_times_between_readings_of_the_clock(tmp_path: Path) -> None:
    log = tmp_path / "asked"
    program = build(tmp_path, SHORT.replace("LOG", f'"{log}"'))

    latency = measure_host(program, SAMPLE, batches=2, batch_seconds=0.001)

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
        measure_host(program, SAMPLE, batches=1, batch_seconds=0.001)


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

    with pytest.raises(ProgramFailed, match=message):
        measure_host(program, SAMPLE, timeout_s=0.5)


def test_a_program_that_can_not_run_here_is_refused(tmp_path: Path) -> None:
    foreign = tmp_path / "run"
    foreign.write_bytes(b"\x7fELF not really")
    foreign.chmod(0o755)

    with pytest.raises(ProgramFailed, match="can't be started"):
        measure_host(foreign, SAMPLE)
