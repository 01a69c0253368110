"""Every shipped recipe is well formed in each of its profiles, and builds the network that it describes."""

from __future__ import annotations

from pathlib import Path

import pytest

from armlet.analysis.cost import cost_of
from armlet.artifacts import InputSpec
from armlet.models.network import architecture_of, build
from armlet.spec.load import FULL, load_recipe

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
DATA = {"letter-recognition": ((16,), (26,)), "fashion-mnist": ((1, 28, 28), (10,))}


def each_recipe():
    return pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)


def test_there_is_a_recipe_for_each_family() -> None:
    assert {load_recipe(file).model.kind for file in RECIPES} >= {"fnn", "cnn"}


@each_recipe()
def test_a_recipe_is_named_as_its_file_and_starts_with_the_command_that_runs_it(file: Path) -> None:
    assert load_recipe(file).name == file.stem
    assert file.read_text(encoding="utf-8").startswith(f"# armlet run recipes/{file.name} --target ")


@each_recipe()
@pytest.mark.parametrize("profile", [FULL, "smoke"])
def test_a_recipe_builds_the_network_it_describes(file: Path, profile: str) -> None:
    recipe = load_recipe(file, profile)
    shape, answer = DATA[recipe.data.kind]
    options = recipe.model.model_dump(mode="json", exclude={"kind"})
    cost = cost_of(
        build(architecture_of(recipe.model.kind, options, (InputSpec("input", shape),), answer), recipe.seed)
    )
    assert cost.parameters > 1000
    # Weights become one byte each, and shrink further: what is not yet within the budget as INT8 never will be.
    assert recipe.budgets.size is not None
    assert cost.parameters <= recipe.budgets.size


@each_recipe()
def test_a_full_recipe_compresses_and_its_smoke_profile_runs_the_same_passes(file: Path) -> None:
    full, smoke = load_recipe(file), load_recipe(file, "smoke")
    assert [p.kind for p in full.passes] == ["prune_channels", "distill", "quantize_static"]
    assert [p.kind for p in smoke.passes] == [p.kind for p in full.passes]
    assert smoke.data.limit is not None
    assert smoke.data.limit <= 2000
    assert smoke.train.epochs < full.train.epochs
