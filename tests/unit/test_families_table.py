"""The README's table of families is the one that the kept results give."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from armlet.spec.load import load_recipe

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def families():
    spec = importlib.util.spec_from_file_location("families", ROOT / "benchmarks" / "families.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_is_made_from_the_results(families):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert families.with_table(readme) == readme, "run: python benchmarks/families.py table"


def test_every_result_is_of_a_recipe_that_is_there_and_of_the_passes_that_it_has(families):
    results = families.kept()
    assert results
    for result in results:
        recipe = load_recipe(ROOT / "recipes" / f"{result['recipe']}.yaml")
        assert [p["kind"] for p in result["passes"]] == [p.kind for p in recipe.passes]
        assert (result["family"], result["data"]) == (recipe.model.kind, recipe.data.kind)
        assert set(result["boards"]) == set(families.BOARDS)
