"""Tables in documents are those that the kept results of the benchmarks give."""

from __future__ import annotations

from pathlib import Path

import pytest

from armlet.spec.load import load_recipe

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("name", "document"),
    [
        ("families", "README.md"),
        ("imagenet", "docs/models.md"),
        ("quantization", "docs/techniques/post-training-quantization.md"),
        ("compression", "docs/techniques/index.md"),
        ("goals", "docs/techniques/index.md"),
        ("arena", "docs/performance.md"),
        ("latency", "docs/performance.md"),
        ("products", "docs/performance.md"),
        ("arm_counts", "docs/performance.md"),
        ("issue_limit", "docs/performance.md"),
        ("sve", "docs/performance.md"),
    ],
)
def test_a_table_is_made_from_the_results(benchmark_of, name, document):
    text = (ROOT / document).read_text(encoding="utf-8")
    assert benchmark_of(name).with_table(text) == text, f"run: python benchmarks/{name}.py table"


def test_marks_that_are_not_there_are_an_error(benchmark_of):
    with pytest.raises(ValueError, match="has no marks"):
        benchmark_of("tables").with_table("no marks at all", "families", "")


def test_every_recipe_has_a_result_of_the_passes_that_it_has(benchmark_of):
    families = benchmark_of("families")
    results = {result["recipe"]: result for result in families.keeping.kept(families.RESULTS)}
    assert set(results) == {file.stem for file in (ROOT / "recipes").glob("*.yaml")}
    for name, result in results.items():
        recipe = load_recipe(ROOT / "recipes" / f"{name}.yaml")
        assert [p["kind"] for p in result["passes"]] == [p.kind for p in recipe.passes]
        assert (result["family"], result["data"]) == (recipe.model.kind, recipe.data.kind)
        assert set(result["boards"]) == set(families.BOARDS)
