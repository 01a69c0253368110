"""An analysis prunes each group and quantises each layer of a trained network alone."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from armlet import artifact_json
from armlet.artifacts import Analysis
from armlet.report.sensitivity import groups_table, layers_table

RECIPE = Path(__file__).parents[2] / "recipes" / "fnn-letter-recognition.yaml"


@pytest.fixture(scope="module")
def analyzed(armlet, tmp_path_factory):
    """(folder, JSON that was printed, the analysis that was written)."""
    folder = tmp_path_factory.mktemp("analysis")
    done = armlet("analyze", RECIPE, "--profile", "smoke", "-o", folder, "--json")
    assert done.returncode == 0, done.stderr
    found = artifact_json.from_json(Analysis, (folder / "analysis.json").read_text(encoding="utf-8"))
    return folder, json.loads(done.stdout), found


def test_what_is_printed_is_what_is_written(analyzed):
    _, printed, found = analyzed
    assert printed == artifact_json.to_data(found)
    assert (found.recipe, found.profile, found.metric) == ("fnn-letter-recognition", "smoke", "accuracy")


def test_each_group_begins_whole_and_suffers_when_most_of_it_is_gone(analyzed):
    *_, found = analyzed
    assert len(found.groups) == 2
    assert len({group.scores[0] for group in found.groups}) == 1
    for group in found.groups:
        assert group.removed[0] == 0
        assert list(group.removed) == sorted(set(group.removed))
        assert group.removed[-1] == group.n_channels * 7 // 8
        assert group.scores[-1] < group.scores[0] - 0.1
    assert found.fixed == (("classifier", "they are the network's output"),)


def test_each_layer_is_quantised_alone_the_most_sensitive_first(analyzed):
    *_, found = analyzed
    errors = [layer.error for layer in found.layers]
    assert {layer.layer for layer in found.layers} == {"layer1.linear", "layer2.linear", "classifier"}
    assert errors == sorted(errors, reverse=True)
    assert 0 < errors[-1] <= errors[0] < 0.1


def test_tables_and_plot_name_every_part(analyzed):
    folder, _, found = analyzed
    svg = (folder / "analysis.svg").read_text(encoding="utf-8")
    assert ElementTree.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"
    for group in found.groups:
        assert group.name in svg
    assert groups_table(found).row_count == len(found.groups) + 1
    assert layers_table(found).row_count == 3
