"""The plot of accuracy against the share of labels is the one that the kept results give."""

from __future__ import annotations

from pathlib import Path

import pytest

from armlet.spec.load import load_recipe

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def labels(benchmark_of):
    return benchmark_of("labels")


def test_the_plot_is_made_from_the_results(labels):
    kept = labels.PLOT.read_text(encoding="utf-8")
    assert labels.plot(labels.keeping.kept(labels.RESULTS)) == kept, "run: python benchmarks/labels.py plot"


def test_every_result_has_every_share_of_a_recipe_that_is_there_and_every_seed(labels):
    results = labels.keeping.kept(labels.RESULTS)
    assert results
    for result in results:
        assert load_recipe(ROOT / "recipes" / f"{result['recipe']}.yaml").data.asks == "classification"
        for way in labels.WAYS:
            points = [point for point in result["points"] if point["way"] == way]
            # With every label there is no sample left to distil on.
            shares = labels.SHARES[:-1] if way == "distill" else labels.SHARES
            assert [point["share"] for point in points] == list(shares)
            assert all(len(point["scores"]) == len(labels.SEEDS) for point in points)


@pytest.mark.parametrize("way", ["plain", "pretrain", "distill"])
def test_a_way_changes_how_the_recipe_learns_and_nothing_else(labels, way):
    full = load_recipe(labels.RECIPE)
    found = labels.recipe_of(full, 0.1, 1, way)
    assert (found.data.fraction, found.seed) == (0.1, 1)
    assert (found.model, found.data.kind) == (full.model, full.data.kind)
    assert (found.pretrain is not None) == (way == "pretrain")
    assert [p.kind for p in found.passes] == (["distill"] if way == "distill" else [])
