"""Every shipped recipe is well formed in each of its profiles, and builds the network that it describes."""

from __future__ import annotations

from pathlib import Path

import pytest

from armlet.analysis.cost import cost_of
from armlet.artifacts import InputSpec
from armlet.models.network import architecture_of, build
from armlet.spec.load import FULL, load_recipe

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


def asked(data) -> tuple[tuple[InputSpec, ...], tuple[int, ...]]:
    """What the recipe's data gives a network and asks of it, which is known without the files."""
    match data.kind:
        case "letter-recognition":
            return (InputSpec("input", (16,)),), (26,)
        case "fashion-mnist":
            picture = (1, 28, 28)
            given = (data.latent,) if data.task == "generation" else picture
            return (InputSpec("input", given),), (10,) if data.task == "classification" else picture
        case "japanese-vowels":
            return (InputSpec("input", (29, 12)), InputSpec("length", (), "int32", 30)), (9,)
        case "smartwatch-exercises":
            return (InputSpec("input", (100, 6)),), (7,)
        case "electricity-demand":
            return (InputSpec("input", (96, 8)),), (1,)
        case "shuttle":
            return (InputSpec("input", (9,)),), (9,)
        case "movie-sentences":
            tokens = InputSpec("tokens", (data.length,), "int32", data.vocabulary)
            return (tokens, InputSpec("length", (), "int32", data.length + 1)), (2,)


def each_recipe():
    return pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)


def test_there_is_a_recipe_for_each_family() -> None:
    families = {"fnn", "cnn", "rnn", "lstm", "transformer", "autoencoder", "gan"}
    assert {load_recipe(file).model.kind for file in RECIPES} >= families


@each_recipe()
def test_a_recipe_is_named_as_its_file_and_starts_with_the_command_that_runs_it(file: Path) -> None:
    assert load_recipe(file).name == file.stem
    assert file.read_text(encoding="utf-8").startswith(f"# armlet run recipes/{file.name} --target ")


@each_recipe()
@pytest.mark.parametrize("profile", [FULL, "smoke"])
def test_a_recipe_builds_the_network_it_describes(file: Path, profile: str) -> None:
    recipe = load_recipe(file, profile)
    inputs, answer = asked(recipe.data)
    options = recipe.model.model_dump(mode="json", exclude={"kind"})
    cost = cost_of(build(architecture_of(recipe.model.kind, options, inputs, answer), recipe.seed))
    assert cost.parameters > 500
    assert recipe.budgets.size is not None
    if not any(options.kind == "prune_channels" for options in recipe.passes):
        # Most weights become one byte each: what is not yet within the budget as INT8 never will be.
        assert cost.parameters <= recipe.budgets.size


@each_recipe()
def test_a_full_recipe_compresses_and_its_smoke_profile_runs_the_same_passes(file: Path) -> None:
    full, smoke = load_recipe(file), load_recipe(file, "smoke")
    assert full.passes[-1].kind == "quantize_static"
    assert [p.kind for p in smoke.passes] == [p.kind for p in full.passes]
    assert smoke.data.limit is not None
    assert smoke.data.limit <= 2000
    assert smoke.train.epochs < full.train.epochs
