"""A generator the whole way: its bundle shows what the program made, and each of its metrics has its own unit."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import pytest

from armlet.exhibits import EXHIBITS_FILE

RECIPE = Path(__file__).parents[2] / "recipes" / "gan-fashion-mnist.yaml"


@pytest.mark.slow
def test_a_generators_bundle_shows_its_pictures_and_names_its_metrics(armlet, cache, tmp_path):
    done = armlet("run", RECIPE, "--profile", "smoke", "-t", "host", "-o", tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    bundle = Path(json.loads(done.stdout)["targets"][0]["bundle"])
    page = (bundle / "report.html").read_text(encoding="utf-8")
    pictures = [base64.b64decode(found) for found in re.findall(r"data:image/png;base64,([^\"]+)", page)]
    assert [data[:4] for data in pictures] == [b"\x89PNG"] * 3
    assert "features of a judge: a cnn" in page
    said = armlet("inspect", bundle).stdout
    assert re.search(r"^Fréchet distance +[\d.]+ of 200 test samples *$", said, re.MULTILINE)
    assert re.search(r"^precision of samples +[\d.]+ % *$", said, re.MULTILINE)
    assert "accuracy" not in said
    kept = [json.loads(file.read_bytes()) for file in cache.glob(f"entries/*/*/{EXHIBITS_FILE}")]
    assert any(
        [p["shape"] for p in e["pictures"]] == [[64, 28, 28, 1], [16, 28, 28, 1], [64, 28, 28, 1]]
        for e in kept
    )
