"""Every shipped recipe runs the whole way in its smoke profile, for an emulated board, and answers from Python."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from armlet.scores import METRICS, TASK_METRICS
from armlet.spec.load import load_recipe
from armlet.stages.program import N_MATCHED

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
BOARD = "raspberry-pi-4"


@pytest.fixture(scope="module", params=RECIPES, ids=lambda file: file.stem)
def smoke(request, armlet, tmp_path_factory):
    """(recipe of the smoke profile, its bundles for this machine and a board, JSON of the run)."""
    # Targets and profile are those of tests/cli/test_run_smoke.py: what both run, the second finds in the cache.
    done = armlet(
        "run", request.param, "--profile", "smoke", "-t", "host", "-t", BOARD,
        "-o", tmp_path_factory.mktemp("build"), "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    bundles = {target["target"]: Path(target["bundle"]) for target in told["targets"]}
    return load_recipe(request.param, "smoke"), bundles, told


def manifest(bundle: Path) -> dict:
    return json.loads((bundle / "manifest.json").read_bytes())


def drawn(inputs, n: int) -> dict[str, np.ndarray]:
    """Inputs of the kinds that a program takes; the first sample is one frame long, the others are whole."""
    rng = np.random.default_rng(0)
    n_frames = inputs[0].shape[1]
    arrays = {}
    for info in inputs:
        if info.dtype != "int32":
            arrays[info.name] = rng.random((n, *info.shape[1:]), dtype=np.float32)
        elif len(info.shape) > 1:
            arrays[info.name] = rng.integers(1, 50, (n, *info.shape[1:]), dtype=np.int32)
        else:
            arrays[info.name] = np.array([1, *[n_frames] * (n - 1)], np.int32)
    return arrays


def test_every_step_is_done_and_every_budget_holds(smoke):
    recipe, bundles, told = smoke
    assert set(bundles) == {"host", BOARD}
    stages = {step["name"].split()[0].split("/")[0] for step in told["steps"]}
    assert {"data", "train", "export", "compile", "evaluate", "measure", "check", "bundle"} <= stages
    assert sum(step["name"].startswith("pass ") for step in told["steps"]) == len(recipe.passes)
    given = {key for key, value in recipe.budgets.model_dump().items() if value is not None}
    for target in told["targets"]:
        outcomes = [check["outcome"] for check in target["checks"]]
        assert set(outcomes) <= {"pass", "no budget"}
        assert outcomes.count("pass") >= len(given)


def test_every_metric_of_the_task_is_in_the_verdict(smoke):
    recipe, bundles, _ = smoke
    for bundle in bundles.values():
        found = manifest(bundle)
        score = found["evaluated"]["score"]
        assert {score["metric"], *(name for name, _ in score["others"])} >= set(
            TASK_METRICS[recipe.data.asks]
        )
        told = " ".join(check["what"].lower() for check in found["verdict"]["checks"])
        for name in TASK_METRICS[recipe.data.asks]:
            assert METRICS[name].label.lower() in told


def test_the_board_answers_as_the_host_does(smoke):
    _, bundles, _ = smoke
    found = manifest(bundles[BOARD])
    match, integer_only = found["measured"]["match"], found["compiled"]["integer_only"]
    assert match["n_samples"] == min(N_MATCHED, found["evaluated"]["score"]["n_samples"])
    assert match["max_abs_difference"] <= match["tolerance"]
    if integer_only:
        assert match["n_identical"] == match["n_samples"]


def test_what_inputs_are_prepared_with_is_in_the_bundle(smoke):
    recipe, bundles, _ = smoke
    for bundle in bundles.values():
        named = manifest(bundle)["data"]["assets"]
        assert all((bundle / "assets" / name).is_file() for name in named)
        assert ("tokenizer.json" in named) == (recipe.data.form == "text")


def test_the_program_answers_from_python_alike_on_this_machine_and_under_emulation(smoke):
    import armlet

    _, bundles, _ = smoke
    host, board = armlet.load(bundles["host"]), armlet.load(bundles[BOARD])
    batch = drawn(host.inputs, 3)
    answers = host(batch)
    assert answers.shape == (3, *host.outputs[0].shape[1:])
    assert np.isfinite(answers).all()
    assert np.ptp(answers, axis=0).max() > 0
    single = host({name: values[1] for name, values in batch.items()})
    np.testing.assert_array_equal(single, answers[1])
    allowed = manifest(bundles[BOARD])["measured"]["match"]["tolerance"]
    np.testing.assert_allclose(board(batch), answers, rtol=0, atol=allowed)
