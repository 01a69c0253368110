"""What the command line loads before it works: nothing heavy, so that it answers at once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from armlet.cli.main import app

HEAVY = {"accelerate", "jinja2", "matplotlib", "numpy", "onnx", "onnxruntime", "onnxscript", "torch", "tvm"}
PARSER = "import typer, pydantic"  # what any `--help` of a typer program loads where pydantic is installed
MOST_PARSERS = 3.0  # so that help answers in 0.3 s where the parser takes 0.1 s, as on a common desktop

RECIPE = """
name: tiny
data: {kind: letter-recognition}
model: {kind: fnn}
passes: [{kind: quantize_static}]
budgets: {latency: 1 ms}
"""


def verbs() -> list[list[str]]:
    """Every verb of the command line, groups and their members apart."""
    found: list[list[str]] = [[]]
    for name, command in typer.main.get_command(app).commands.items():
        found.append([name])
        found += [[name, member] for member in getattr(command, "commands", {})]
    return found


def loaded_modules(*arguments: str, cache: Path) -> set[str]:
    """Top-level modules that `armlet ARGUMENTS` imports, from the interpreter's own trace."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "armlet", *arguments],
        env=os.environ | {"ARMLET_CACHE": str(cache)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    trace = [
        line.rsplit("|", 1)[1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")
    ]
    return {name.split(".")[0] for name in trace}


def cpu_seconds(*arguments: str) -> float:
    """CPU seconds of one `python ARGUMENTS`."""
    process = subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_utime + usage.ru_stime


def test_help_loads_nothing_heavy(tmp_path: Path) -> None:
    loaded = loaded_modules("--help", cache=tmp_path)
    assert "typer" in loaded
    assert not loaded & (HEAVY | {"pydantic", "rich"})


def test_plan_loads_nothing_heavy(tmp_path: Path) -> None:
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(RECIPE)
    loaded = loaded_modules("plan", str(recipe), "-t", "host", "-t", "raspberry-pi-4", cache=tmp_path)
    assert {"pydantic", "ruamel"} <= loaded
    assert not loaded & HEAVY


def test_the_public_package_loads_nothing_but_itself() -> None:
    code = "import sys, armlet; print(sorted(m for m in sys.modules if m.startswith('armlet')))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "['armlet']"


@pytest.mark.parametrize("verb", verbs(), ids=lambda verb: " ".join(verb) or "armlet")
def test_help_of_a_verb_takes_little_more_than_its_parser(verb: list[str]) -> None:
    # Side by side, so that a slow or a busy machine changes nothing; any of five pairs may be the undisturbed one.
    pairs = ((cpu_seconds("-m", "armlet", *verb, "--help"), cpu_seconds("-c", PARSER)) for _ in range(5))
    assert any(ours < MOST_PARSERS * parser for ours, parser in pairs)
