"""A recipe that prunes weights and lets them share values, from its plan to a bundle with packed constants."""

import json
import subprocess

import pytest

RECIPE = """
name: letters
data: {kind: letter-recognition, limit: 600, test_limit: 100, validation: 20 %}
model: {kind: fnn, hidden: [48]}
train: {epochs: 3, batch_size: 32}
package: packed
passes:
  - {kind: prune_weights, sparsity: 75 %, schedule: cubic, every: 5, finetune: {epochs: 3, batch_size: 32}}
  - {kind: cluster_weights, values: 16, finetune: {epochs: 1, batch_size: 32}}
  - {kind: quantize_static, calibration_samples: 128}
"""


@pytest.mark.slow
def test_pruned_and_shared_weights_are_packed_in_the_bundle(armlet, tmp_path):
    recipe = tmp_path / "letters.yaml"
    recipe.write_text(RECIPE)
    planned = armlet("plan", recipe, "--json")
    what = [s["what"] for s in json.loads(planned.stdout) if s["name"].startswith("pass")]
    assert what[0] == "prune weights: stored smaller, not faster"
    assert what[1] == "cluster weights: stored smaller, not faster"
    assert what[2] == "quantize static"

    done = armlet("run", recipe, "-t", "host", "-o", tmp_path / "build", "--json")
    assert done.returncode == 0, done.stderr
    bundle = tmp_path / "build" / "letters-host.armlet"
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    costs = [manifest["trained"]["cost"], *(p["record"]["after"] for p in manifest["passes"])]
    # Each pass makes the packed network smaller: 1 of 4 values, then a few bits each, then one byte for each value.
    stored = [cost["stored_bytes"] for cost in costs]
    assert stored[1] < 0.5 * stored[0]
    assert stored[2] < 0.7 * stored[1]
    assert stored[3] < stored[2]
    packed, compiled = manifest["compiled"]["packed"], manifest["compiled"]
    data = bundle / "packed" / "src" / "letters_packed_params.bin"
    assert packed["packed_bytes"] == data.stat().st_size
    assert packed["packed_bytes"] < 0.6 * packed["weights_bytes"]
    assert packed["weights_bytes"] == (bundle / "src" / "letters_params.bin").stat().st_size
    assert packed["constant_bytes"] < compiled["constant_bytes"]
    files = {f for f in manifest["files"] if f.startswith("packed/")}
    assert {"packed/letters_packed.h", "packed/libletters_packed.a", "packed/src/unpack.c"} <= files
    symbols = subprocess.run(
        ["nm", "-g", "--defined-only", bundle / "packed" / "libletters_packed.a"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert "T letters_unpack" in symbols
    assert "T letters_run_unpacked" in symbols
    report = (bundle / "report.html").read_text(encoding="utf-8")
    assert "Size, packed" in report
    assert "stored smaller, not faster" in report
    shown = armlet("inspect", bundle)
    assert "packed" in shown.stdout, shown.stdout
