"""A recipe for a GPU on the command line: trained, compiled, scored through this machine's OpenCL device, bundled."""

import json
from pathlib import Path

import numpy as np
import pytest
from tests.boards import requires_opencl

from armlet.bundle import Bundle
from armlet.program import load

RECIPE = """\
name: gpu-letters
data: {kind: letter-recognition, limit: 1000, test_limit: 120}
model: {kind: fnn, hidden: [16]}
train: {epochs: 1}
budgets: {accuracy: 1 %, latency: 5 ms}
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gpu") / "letters.yaml"
    path.write_text(RECIPE)
    return path


@requires_opencl
def test_a_program_for_a_gpu_is_scored_as_it_ran_and_its_latency_is_not_measured(armlet, recipe: Path):
    done = armlet("run", recipe, "-t", "host-opencl", "-o", recipe.parent / "build", "--json")
    assert done.returncode == 1, done.stderr  # the latency budget is not measured
    (target,) = json.loads(done.stdout)["targets"]
    checks = {check["what"]: check for check in target["checks"]}
    assert [checks[what]["outcome"] for what in ("accuracy", "same outputs")] == ["pass", "pass"]
    assert (checks["latency"]["outcome"], checks["latency"]["measured"]) == ("not measured", "not measured")
    manifest = Bundle.open(target["bundle"]).manifest
    assert manifest.measured.score.n_samples == manifest.evaluated.score.n_samples == 120
    assert manifest.measured.match.n_samples == 120
    assert "through OpenCL on this machine" in manifest.measured.device
    assert not (Path(target["bundle"]) / "bin").exists()
    assert "No time of a GPU's program is said" in (Path(target["bundle"]) / "report.html").read_text()
    assert load(target["bundle"])(np.zeros((3, 16), np.float32)).shape == (3, 26)
    benched = armlet("bench", target["bundle"])
    assert benched.returncode == 2
    assert "has no runner: programs for host-opencl compute on a GPU, and are not timed" in benched.stderr
    said = armlet("inspect", target["bundle"]).stdout
    assert "int gpu_letters_run(gpu_letters_program *program, " in said


def test_what_is_of_the_core_is_refused_for_a_gpu(armlet, recipe: Path):
    tuned = armlet("tune", recipe, "-t", "host-opencl", "-o", recipe.parent / "tiles.json")
    assert tuned.returncode == 2
    assert "target host-opencl: kernels for GPUs have no tiles to choose" in tuned.stderr
    done = armlet("compile", recipe.with_name("none.onnx"), "-t", "host-opencl", "--threads", "2")
    assert done.returncode == 2
    assert "threads: target host-opencl: threads share the work of the core" in done.stderr


def test_a_recipe_that_quantises_is_refused_before_anything_is_trained(armlet, recipe: Path):
    quantised = recipe.with_name("quantised.yaml")
    quantised.write_text(RECIPE + "passes: [{kind: quantize_static}]\n")
    done = armlet("run", quantised, "-t", "android-opencl", "-o", recipe.parent / "build")
    assert done.returncode == 2
    assert "passes.0" in done.stderr
    assert "quantize_static makes integers, and OpenCL programs are float32 or float16" in done.stderr
