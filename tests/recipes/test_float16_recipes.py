"""Every shipped recipe's trained network as a float16 program: near the float32 one on test samples, and scored."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from tests.boards import requires_board

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
BOARD = "raspberry-pi-5"


@requires_board
@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_the_trained_network_of_a_recipe_in_float16(file: Path, armlet, tmp_path: Path):
    recipe = YAML(typ="safe").load(file.read_text(encoding="utf-8"))
    smoke = recipe["profiles"]["smoke"]  # trained by the tests of the recipe itself, too
    recipe |= {"passes": [], "budgets": {}, "precision": "float16"}
    recipe["profiles"] = {"smoke": {key: smoke[key] for key in smoke if key not in ("passes", "budgets")}}
    YAML(typ="safe").dump(recipe, tmp_path / file.name)
    done = armlet("run", tmp_path / file.name, "--profile", "smoke", "-t", BOARD, "-o", tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    (target,) = json.loads(done.stdout)["targets"]
    bundle = Path(target["bundle"])
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    match = manifest["measured"]["match"]
    assert match["n_samples"] >= 50
    assert 0 < match["max_abs_difference"] <= match["tolerance"]
    assert match["reason"] == "values and sums are rounded to float16"
    assert manifest["compiled"]["precision"] == "float16"
    assert {i["dtype"] for i in manifest["compiled"]["inputs"]} <= {"float32", "int32"}
    assert {o["dtype"] for o in manifest["compiled"]["outputs"]} == {"float32"}
    assert "Real numbers are float16" in (bundle / "report.html").read_text(encoding="utf-8")
    assert "float16 within" in armlet("inspect", bundle).stdout
