"""A recipe for a target with variants, from its training to a bundle that says which kernels ran."""

import json

import pytest

RECIPE = """
name: letters
data: {kind: letter-recognition, limit: 600, test_limit: 100, validation: 20 %}
model: {kind: fnn, hidden: [48]}
train: {epochs: 3, batch_size: 32}
passes:
  - {kind: quantize_static, calibration_samples: 128}
"""


@pytest.mark.slow
def test_a_bundle_with_variants_says_which_there_are_and_which_ran(armlet, tmp_path):
    recipe = tmp_path / "letters.yaml"
    recipe.write_text(RECIPE)
    done = armlet("run", recipe, "-t", "arm64-linux", "-o", tmp_path / "build", "--json")
    assert done.returncode == 0, done.stderr
    bundle = tmp_path / "build" / "letters-arm64-linux.armlet"
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    measured, compiled = manifest["measured"], manifest["compiled"]
    assert measured["variant"] == "i8mm"
    assert measured["match"]["n_identical"] == measured["match"]["n_samples"] == 100
    assert [variant["name"] for variant in compiled["variants"]] == ["dotprod", "i8mm"]
    shown = armlet("inspect", bundle).stdout
    assert "dotprod, i8mm: taken where the CPU has them; i8mm ran" in shown
    assert shown.count("letters_dense_0 ") == shown.count("letters_dotprod_dense_0 ") == 1
    report = (bundle / "report.html").read_text(encoding="utf-8")
    assert "outputs identical, by its i8mm kernels" in report
    assert "letters_dotprod_dense_0" in report  # one row at a time: a dense layer has no use for smmla
