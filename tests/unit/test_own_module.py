"""Networks of the user's own: read with the recipe, built anywhere, and refused with the line that is wrong."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.families.conftest import OWN, OWN_FILE

from armlet.analysis.graph import trace
from armlet.artifacts import InputSpec, Task
from armlet.data.splits import Samples, Splits
from armlet.errors import UnsupportedOperator, UsageError
from armlet.metrics import Scorer
from armlet.models.network import architecture_of, build, load_network, save_network
from armlet.plan import make_plan
from armlet.progress import Silent
from armlet.report.page import _yaml
from armlet.spec.load import load_recipe, load_target
from armlet.spec.recipe import Recipe
from armlet.stages.names import refuse_unknown_names
from armlet.train import TrainOptions, train_network

PICTURE = (InputSpec("input", (1, 12, 12)),)
RECIPE = """
name: own
data: {kind: fashion-mnist}
model:
  kind: module
  file: net.py
  factory: Net
  arguments: {width: 8}
"""


def written(folder: Path, code: str | None = None, recipe: str = RECIPE) -> Path:
    if code != "":
        (folder / "net.py").write_text(code or OWN_FILE.read_text(encoding="utf-8"), encoding="utf-8")
    (folder / "own.yaml").write_text(recipe, encoding="utf-8")
    return folder / "own.yaml"


def built(code: str, factory: str = "Net", **arguments: object):
    options = {"file": "net.py", "factory": factory, "arguments": arguments, "code": code}
    return build(architecture_of("module", options, PICTURE, (4,)), 0)


def test_the_recipe_carries_the_files_text_so_that_a_change_of_it_trains_anew(tmp_path):
    recipe = load_recipe(written(tmp_path))
    assert recipe.model.code == OWN["code"]
    changed = load_recipe(written(tmp_path, OWN["code"].replace("stride=2", "stride=1")))
    host = load_target("host")
    before, after = (make_plan(r, [host], "full") for r in (recipe, changed))
    assert before["data"].key == after["data"].key
    assert before["train"].key != after["train"].key


def test_the_same_seed_gives_the_same_weights_and_a_saved_network_needs_no_file(tmp_path):
    first, again, other = (build(architecture_of("module", OWN, PICTURE, (4,)), seed) for seed in (0, 0, 1))
    state, same, different = (n.module.state_dict() for n in (first, again, other))
    assert all(torch.equal(state[name], same[name]) for name in state)
    assert any(not torch.equal(state[name], different[name]) for name in state)
    save_network(first, tmp_path / "saved")
    loaded = load_network(tmp_path / "saved")
    x = torch.randn(3, 1, 12, 12)
    with torch.no_grad():
        assert torch.equal(first.module(x), loaded.module(x))


def test_a_file_may_import_what_is_installed_and_use_dataclasses(tmp_path):
    code = """from __future__ import annotations
from dataclasses import dataclass
from torch import nn
@dataclass
class Options:
    width: int = 3
def make(width: int) -> nn.Module:
    chosen = Options(width)
    return nn.Sequential(nn.Flatten(), nn.Linear(144, chosen.width), nn.ReLU(), nn.Linear(chosen.width, 4))
"""
    assert built(code, "make", width=5).module[1].out_features == 5


@pytest.mark.parametrize(
    ("code", "recipe", "said"),
    [
        ("", RECIPE, r"own.yaml:6: model.file: .*net.py can't be read: No such file"),
        ("def Net(:\n", RECIPE, r"own.yaml:6: model.file: .*net.py is not Python: .* in line 1"),
        ("class Nett: pass\n", RECIPE, r"own.yaml:7: model.factory: .*has no function or class 'Net' .*Nett"),
        (None, RECIPE.replace("factory: Net", "factory: Net()"), r"own.yaml:7: model.factory"),
        (None, RECIPE.replace("{width: 8}", "{width: {a: 1}}"), r"own.yaml:8: model.arguments"),
        (
            None,
            RECIPE.replace("fashion-mnist", "fashion-mnist, task: generation"),
            r"is not made for|takes row",
        ),
    ],
)
def test_what_is_wrong_in_the_recipe_is_said_with_its_line(code, recipe, said, tmp_path):
    with pytest.raises(UsageError, match=said):
        load_recipe(written(tmp_path, code, recipe))


HEAD = "from torch import nn\n"


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import nothing_of_that_name\n", r"net.py can't be run in line 1: ModuleNotFoundError"),
        ("Net = 3\n", r"net.py has no function or class Net"),
        ("def Net():\n    return 1 / 0\n", r"net.py: Net failed in line 2: ZeroDivisionError"),
        ("def Net():\n    return 3\n", r"net.py: Net gives a int, not a torch.nn.Module"),
        (f"{HEAD}def Net():\n    return nn.Linear(3, 4)\n", r"Net does not compute on input \[1, 12, 12\]"),
        (
            f"{HEAD}def Net():\n    return nn.Flatten()\n",
            r"Net gives \[2, 144\] for 2 samples .* \[2, 4\] is asked",
        ),
    ],
)
def test_what_is_wrong_with_the_module_is_said_before_it_is_trained(code, said):
    with pytest.raises(UsageError, match=said):
        built(code)


def test_wrong_arguments_are_said():
    with pytest.raises(UsageError, match=r"net.py: Net failed: TypeError: .*'depth'"):
        built(OWN["code"], depth=3)


def test_the_report_shows_the_files_text_line_by_line():
    recipe = Recipe.model_validate(
        {"name": "own", "data": {"kind": "fashion-mnist"}, "model": {"kind": "module", **OWN}}
    )
    lines = _yaml(recipe).splitlines()
    assert "  code: |" in lines
    assert "    class Block(nn.Module):" in lines


VIEWS = """import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.last = nn.Conv2d(1, 8, 3, 2, 1), nn.Linear(8 * 36, 4)

    def forward(self, x):
        return self.last(torch.relu(self.conv(x)).view(-1, 8 * 36))
"""


def test_a_module_whose_views_need_channels_first_is_trained(tmp_path):
    network, rng = built(VIEWS), np.random.default_rng(0)
    labels = rng.integers(0, 4, 64)
    pictures = rng.normal(0, 0.3, (64, 1, 12, 12)).astype(np.float32)
    pictures[np.arange(64), 0, labels] += 2.0
    samples = Samples((pictures,), labels)
    task = Task("classification", (4,), tuple("abcd"))
    _, run = train_network(
        network,
        Splits(samples, samples, samples, PICTURE, task),
        TrainOptions(epochs=8, batch_size=16, learning_rate=0.01),
        Scorer(task),
        seed=0,
        work=tmp_path,
        progress=Silent(),
    )
    assert run.history[-1].validation_score > 0.9


def test_control_flow_on_values_is_named():
    code = VIEWS.replace("return self.last(", "x = x if x.sum() > 0 else -x\n        return self.last(")
    network = built(code)
    with pytest.raises(UnsupportedOperator, match="what it does next depends on values, and must not"):
        trace(network.module, PICTURE)


def test_names_that_fit_no_module_are_refused_before_training_each_with_its_place():
    passes = [
        {"kind": "prune_channels", "ratio": 0.5, "exclude": ["body.*", "hed"],
         "finetune": {"distill": {"terms": [{"kind": "features", "layers": ["boddy"]}]}}},
        {"kind": "distill", "terms": [{"kind": "logits"}, {"kind": "features", "layers": ["body", "x"]}]},
        {"kind": "factorize", "ratio": 0.5, "exclude": ["head"]},
        {"kind": "quantize_static", "exclude": ["head.0"], "exclude_types": ["Linea"]},
    ]  # fmt: skip
    base = {"name": "n", "data": {"kind": "fashion-mnist"}, "model": {"kind": "cnn"}}
    module = torch.nn.Sequential(
        OrderedDict(body=torch.nn.Sequential(torch.nn.Linear(3, 3)), head=torch.nn.Linear(3, 3))
    )
    with pytest.raises(UsageError) as caught:
        refuse_unknown_names(Recipe.model_validate(base | {"passes": passes}), module)
    assert [problem.key for problem in caught.value.problems] == [
        "passes.0.exclude", "passes.0.finetune.distill.terms.0.layers", "passes.1.terms.1.layers",
    ]  # fmt: skip
    assert "'hed', which fits none" in str(caught.value)
    with pytest.raises(
        UsageError, match=r"passes\.0\.exclude_types: exclude_types has 'Linea', .* there are Linear"
    ):
        refuse_unknown_names(Recipe.model_validate(base | {"passes": passes[3:]}), module)
    refuse_unknown_names(Recipe.model_validate(base | {"passes": passes[2:]}), module)
