"""An ablation runs every variant once, and says what each pass changes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from armlet import artifact_json
from armlet.ablate import subsets_of
from armlet.artifacts import Ablation
from armlet.report.ablation import ablation_plot, contributions_table, variants_table

RECIPE = Path(__file__).parents[2] / "recipes" / "fnn-letter-recognition.yaml"
KINDS = ("prune_channels", "distill", "quantize_static")


@pytest.fixture(scope="module")
def ablated(armlet, tmp_path_factory):
    """(folder, JSON that was printed, the ablation that was written)."""
    folder = tmp_path_factory.mktemp("ablation")
    done = armlet("ablate", RECIPE, "--profile", "smoke", "-t", "raspberry-pi-4", "-o", folder, "--json")
    assert done.returncode == 0, done.stderr
    found = artifact_json.from_json(Ablation, (folder / "ablation.json").read_text(encoding="utf-8"))
    return folder, json.loads(done.stdout), found


def cells(table, column: int) -> list[str]:
    return [str(cell) for cell in table.columns[column].cells]


@pytest.mark.parametrize(
    ("n", "subsets"),
    [
        (1, [(), (0,)]),
        (2, [(), (0,), (1,), (0, 1)]),
        (3, [(), (0,), (1,), (2,), (1, 2), (0, 2), (0, 1), (0, 1, 2)]),
    ],
)
def test_each_pass_runs_alone_and_is_left_out_once(n: int, subsets: list[tuple[int, ...]]) -> None:
    assert list(subsets_of(n)) == subsets


def test_what_is_printed_is_what_is_written(ablated):
    _, printed, found = ablated
    assert printed == artifact_json.to_data(found)
    assert (found.recipe, found.profile, found.target) == (
        "fnn-letter-recognition",
        "smoke",
        "raspberry-pi-4",
    )
    assert found.kinds == KINDS
    assert tuple(variant.passes for variant in found.variants) == subsets_of(3)


def test_each_variant_costs_what_its_passes_make_of_it(ablated):
    *_, found = ablated
    plain, pruned, distilled, quantized = (found.variant(p) for p in ((), (0,), (1,), (2,)))
    everything = found.variant((0, 1, 2))
    assert pruned.cost.macs < plain.cost.macs
    assert distilled.cost == plain.cost
    assert quantized.cost.macs == plain.cost.macs
    assert quantized.size_bytes < plain.size_bytes / 2
    assert everything.cost == found.variant((0, 2)).cost
    assert all(v.latency is not None and v.latency.label == "estimated" for v in found.variants)
    assert all(v.score.split == "test" for v in found.variants)


def test_the_tables_say_what_a_pass_changes_alone_and_beside_the_others(ablated):
    *_, found = ablated
    plain, everything = found.variants[0], found.variants[-1]
    variants, contributions = variants_table(found), contributions_table(found)
    assert cells(variants, 0) == [
        "no pass", "1 prune_channels alone", "2 distill alone", "3 quantize_static alone",
        "all but 1 prune_channels", "all but 2 distill", "all but 3 quantize_static", "all passes",
    ]  # fmt: skip
    assert cells(variants, 4)[-1].endswith(f"÷{plain.size_bytes / everything.size_bytes:.3g}")
    assert cells(contributions, 0)[::2] == [f"{n} {kind}" for n, kind in enumerate(KINDS, 1)]
    assert cells(contributions, 1) == ["alone", "beside the others"] * 3
    without = found.variant((0, 1))
    assert cells(contributions, 4)[5] == f"÷{without.size_bytes / everything.size_bytes:.3g}"
    assert cells(contributions, 3)[3] == "same"  # distilling changes no MAC


def test_the_plot_names_every_variant(ablated):
    folder, _, found = ablated
    svg = (folder / "ablation.svg").read_text(encoding="utf-8")
    assert svg == ablation_plot(found)
    assert ElementTree.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"  # a file that viewers open
    for variant in found.variants:
        assert found.name_of(variant) in svg
    assert "latency (ms, estimated)" in svg


def test_a_recipe_without_passes_has_nothing_to_leave_out(armlet, tmp_path):
    text = re.sub(r"^passes:\n(?:  .*\n)+", "", RECIPE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    text = re.sub(r"^    passes:.*\n(?:      .*\n)*", "", text, flags=re.MULTILINE)
    recipe = tmp_path / "plain.yaml"
    recipe.write_text(text, encoding="utf-8")
    done = armlet("ablate", recipe, "--profile", "smoke")
    assert done.returncode == 2
    assert "fnn-letter-recognition has no passes" in done.stderr
