"""Times each stage of a run, cold and cached, each as a whole process.

    python benchmarks/pipeline.py recipes/cnn-fashion-mnist.yaml --profile smoke --target raspberry-pi-4

Cold: an empty cache (data sets stay). Cached: the same command again. Prints a table with median and spread, and
writes JSON with the machine and the versions beside it when --write is given.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from armlet.bundle import versions
from armlet.store import cache_root

CACHED_BUDGET_S = 3.0
"""A run that finds everything in the cache takes less than this."""


def run_once(arguments: list[str], cache: Path, output: Path) -> tuple[float, list[dict[str, object]]]:
    """Run `armlet run` in a process of its own; returns its wall seconds and what it says of each step."""
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "armlet", "run", *arguments, "--json", "--output", str(output)],
        env=os.environ | {"ARMLET_CACHE": str(cache)},
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - begin
    if done.returncode not in (0, 1):
        raise SystemExit(f"armlet run ended with {done.returncode}:\n{done.stderr}")
    return seconds, json.loads(done.stdout)["steps"]


def measure(arguments: list[str], cold_runs: int, cached_runs: int) -> dict[str, object]:
    """Time cold and cached runs."""
    cold: list[tuple[float, list[dict[str, object]]]] = []
    cached: list[float] = []
    for number in range(cold_runs):
        with tempfile.TemporaryDirectory() as folder:
            cache, output = Path(folder) / "cache", Path(folder) / "build"
            cache.mkdir()
            (cache_root() / "data").mkdir(parents=True, exist_ok=True)
            (cache / "data").symlink_to(cache_root() / "data")
            cold.append(run_once(arguments, cache, output))
            print(f"cold {number + 1}/{cold_runs}: {cold[-1][0]:.1f} s", file=sys.stderr)
            for _ in range(cached_runs):
                seconds, steps = run_once(arguments, cache, output)
                if not all(step["cached"] for step in steps):
                    raise SystemExit("a step of the second run was not cached")
                cached.append(seconds)
    names = [step["name"] for step in cold[0][1]]
    stages = {
        name: [float(step["seconds"]) for _, steps in cold for step in steps if step["name"] == name]
        for name in names
    }
    return {
        "arguments": arguments,
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}",
        "versions": list(versions()),
        "stages_s": stages,
        "cold_s": [seconds for seconds, _ in cold],
        "cached_s": cached,
    }


def spread(values: list[float]) -> str:
    """Return median and range."""
    return f"{statistics.median(values):8.2f}  [{min(values):.2f}, {max(values):.2f}]  n={len(values)}"


def positive(text: str) -> int:
    """Read a number of runs."""
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cold-runs", type=positive, default=1)
    parser.add_argument("--cached-runs", type=positive, default=5, help="After each cold one.")
    parser.add_argument("--write", type=Path, help="Write the result as JSON to this file.")
    options, arguments = parser.parse_known_args()
    result = measure(arguments, options.cold_runs, options.cached_runs)
    print(f"{'step':<36}  seconds: median [least, most]")
    for name, seconds in result["stages_s"].items():
        print(f"{name:<36}{spread(seconds)}")
    print(f"{'whole run, cold':<36}{spread(result['cold_s'])}")
    print(f"{'whole run, cached':<36}{spread(result['cached_s'])}")
    if options.write:
        options.write.parent.mkdir(parents=True, exist_ok=True)
        options.write.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if statistics.median(result["cached_s"]) > CACHED_BUDGET_S:
        raise SystemExit(f"a cached run takes more than {CACHED_BUDGET_S} s")


if __name__ == "__main__":
    main()
