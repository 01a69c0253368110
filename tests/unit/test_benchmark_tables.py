"""Tables in documents are those that the kept results of the benchmarks give."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from armlet.spec.load import load_recipe

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def benchmark_of():
    """Import a benchmark by its name."""
    sys.path.insert(0, str(ROOT / "benchmarks"))

    def load(name: str):
        spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    yield load
    sys.path.remove(str(ROOT / "benchmarks"))


@pytest.mark.parametrize(("name", "document"), [("families", "README.md"), ("imagenet", "docs/models.md")])
def test_a_table_is_made_from_the_results(benchmark_of, name, document):
    text = (ROOT / document).read_text(encoding="utf-8")
    assert benchmark_of(name).with_table(text) == text, f"run: python benchmarks/{name}.py table"


def test_marks_that_are_not_there_are_an_error(benchmark_of):
    with pytest.raises(ValueError, match="has no marks"):
        benchmark_of("tables").with_table("no marks at all", "families", "")


def test_every_recipe_has_a_result_of_the_passes_that_it_has(benchmark_of):
    families = benchmark_of("families")
    results = {result["recipe"]: result for result in families.kept()}
    assert set(results) == {file.stem for file in (ROOT / "recipes").glob("*.yaml")}
    for name, result in results.items():
        recipe = load_recipe(ROOT / "recipes" / f"{name}.yaml")
        assert [p["kind"] for p in result["passes"]] == [p.kind for p in recipe.passes]
        assert (result["family"], result["data"]) == (recipe.model.kind, recipe.data.kind)
        assert set(result["boards"]) == set(families.BOARDS)
