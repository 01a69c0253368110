"""A network that is handed out computes the same in every form, and its card says what was measured."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from ruamel.yaml import YAML

from armlet.analysis.reference import reference_session
from armlet.models.network import executable, load_network

RECIPE = Path(__file__).parents[2] / "recipes" / "fnn-letter-recognition.yaml"
FILES = ["network.safetensors", "network.json", "model.pt2", "model.onnx", "README.md"]


@pytest.fixture(scope="module")
def handed_out(armlet, tmp_path_factory):
    folder = tmp_path_factory.mktemp("handout") / "model"
    done = armlet("export", RECIPE, "--profile", "smoke", "-o", folder, "--json")
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout)


def test_every_format_and_the_card_are_written(handed_out):
    folder, said = handed_out
    assert said == {"folder": str(folder), "files": FILES}
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)


def test_the_files_compute_what_the_compressed_network_computes(handed_out):
    folder, _ = handed_out
    samples = torch.rand(32, 16, generator=torch.Generator().manual_seed(1))
    network = load_network(folder)
    assert network.quantization is not None
    with torch.no_grad():
        expected = executable(network)(samples)
        again = torch.export.load(folder / "model.pt2").module()(samples)
    assert torch.equal(again, expected)
    session = reference_session(folder / "model.onnx")  # its own integer kernels saturate on some machines
    answers = np.concatenate([session.run(None, {"input": sample[None]})[0] for sample in samples.numpy()])
    # Halves may round to the other side: two steps of the output's scale.
    assert np.abs(answers - expected.numpy()).max() <= 2.5 * network.quantization.activations[-1].scale


def test_the_card_has_the_metadata_that_hubs_read_and_the_score_that_was_measured(handed_out):
    folder, _ = handed_out
    card = (folder / "README.md").read_text(encoding="utf-8")
    front = YAML(typ="safe").load(re.match(r"---\n(.*?)\n---\n", card, re.DOTALL).group(1))
    measured = front["model-index"][0]["results"][0]["metrics"][0]
    assert measured["type"] == "accuracy"
    assert f"| accuracy | {measured['value'] * 100:.2f} % |" in card
    assert "a trial, not the real network" in card
    assert all(f"| `{kind}` |" in card for kind in ("prune_channels", "distill", "quantize_static"))
    assert len(re.findall(r"^\| [A-Z] \|", card, re.MULTILINE)) == 26


def test_the_trained_network_is_larger_and_has_had_no_pass(handed_out, armlet, tmp_path):
    done = armlet(
        "export", RECIPE, "--profile", "smoke", "-o", tmp_path / "t", "--trained", "-f", "safetensors"
    )
    assert done.returncode == 0, done.stderr
    trained, compressed = load_network(tmp_path / "t"), load_network(handed_out[0])
    assert trained.quantization is None
    assert trained.module.layer1.linear.out_features > compressed.module.layer1.linear.out_features
    assert "quantize_static" not in (tmp_path / "t" / "README.md").read_text(encoding="utf-8")


def test_handing_out_again_replaces_the_files_and_leaves_no_others(handed_out, armlet, tmp_path):
    shutil.copytree(handed_out[0], tmp_path / "model")
    (tmp_path / "model" / "model.onnx").write_bytes(b"old")
    done = armlet("export", RECIPE, "--profile", "smoke", "-o", tmp_path / "model")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "model" / "model.onnx").read_bytes() == (handed_out[0] / "model.onnx").read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_folder_with_other_things_in_it_is_refused_and_kept(armlet, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine", encoding="utf-8")
    # Before any work: the cache is empty afterwards.
    cache = tmp_path.with_name("empty-cache")
    done = armlet("export", RECIPE, "--profile", "smoke", "-o", tmp_path, cache=cache)
    assert done.returncode == 2
    assert "choose another --output" in done.stderr
    assert not (cache / "entries").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_readme_that_is_no_card_is_refused_and_kept(handed_out, armlet, tmp_path):
    (tmp_path / "README.md").write_text("# My project", encoding="utf-8")
    done = armlet("export", RECIPE, "--profile", "smoke", "-o", tmp_path)
    assert done.returncode == 2
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == "# My project"
    shutil.copytree(handed_out[0], tmp_path / "model")
    (tmp_path / "model" / "thesis.txt").write_text("mine", encoding="utf-8")
    done = armlet("export", RECIPE, "--profile", "smoke", "-o", tmp_path / "model")
    assert done.returncode == 2
    assert (tmp_path / "model" / "thesis.txt").read_text(encoding="utf-8") == "mine"


def test_files_of_two_networks_do_not_mix(handed_out, armlet, tmp_path):
    shutil.copytree(handed_out[0], tmp_path / "model")
    done = armlet(
        "export", RECIPE, "--profile", "smoke", "-o", tmp_path / "model", "--trained", "-f", "safetensors"
    )
    assert done.returncode == 0, done.stderr
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert names == {"network.safetensors", "network.json", "README.md"}
    assert load_network(tmp_path / "model").quantization is None


def test_a_network_of_text_comes_with_its_tokenizer(armlet, tmp_path):
    recipe = RECIPE.with_name("transformer-movie-sentences.yaml")
    done = armlet("export", recipe, "--profile", "smoke", "-o", tmp_path / "m", "-f", "safetensors", "--json")
    assert done.returncode == 0, done.stderr
    assert "assets/tokenizer.json" in json.loads(done.stdout)["files"]
    assert (tmp_path / "m" / "assets" / "tokenizer.json").is_file()
    assert "`assets/tokenizer.json`" in (tmp_path / "m" / "README.md").read_text(encoding="utf-8")


def test_an_unknown_format_is_refused_before_any_work(armlet, tmp_path):
    done = armlet("export", RECIPE, "-o", tmp_path / "m", "-f", "onx", cache=tmp_path / "cache")
    assert done.returncode == 2
    assert "did you mean 'onnx'?" in done.stderr
    assert not (tmp_path / "m").exists()
