"""Every pass on a network of every family keeps the contract, or refuses with a reason that is written down here."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.families.conftest import OWN, Case, own
from tests.passes.test_conformance import OPTIONS, spec

from armlet.artifacts import InputSpec, Task
from armlet.data.splits import Samples, Splits
from armlet.export import export_onnx
from armlet.metrics import Scorer
from armlet.models.network import Network, executable, load_network, save_network
from armlet.passes import PASSES, PassContext, run_pass
from armlet.passes.manager import fingerprint
from armlet.progress import Silent

PICTURE = (InputSpec("input", (1, 8, 8)),)
FRAMES = (InputSpec("input", (10, 3)),)
CLASSES, IMAGE = (4,), (1, 8, 8)
FAMILIES = {
    "fnn": Case("fnn", {"hidden": [12, 8]}, (InputSpec("input", (9,)),)),
    "cnn": Case("cnn", {"channels": [6, 8], "block": "residual"}, PICTURE),
    "rnn": Case("rnn", {"cell": "gru", "hidden": [8], "bidirectional": True}, FRAMES),
    "lstm": Case("lstm", {"hidden": [8, 6]}, FRAMES),
    "transformer": Case("transformer", {"width": 16, "heads": 4, "depth": 1, "patch": 5}, FRAMES),
    "autoencoder": Case("autoencoder", {"channels": [4, 6], "code": 5, "norm": "batch"}, PICTURE, IMAGE),
    "gan": Case("gan", {"channels": [8, 4]}, (InputSpec("input", (8,)),), IMAGE),
    "module": Case("module", OWN, PICTURE),
    "recurrent module": Case(
        "module", own("Sequences", cell="lstm", n_inputs=3, hidden=8, n_outputs=4), FRAMES
    ),
    "attention module": Case("module", own("Encoder", n_inputs=3, width=16, heads=4, n_outputs=4), FRAMES),
}
UNCHANGED = {
    ("remove_dead_units", family) for family in FAMILIES
}  # none of these has any: see test_dead_units.py


def context_of(case: Case, network: Network, work: Path) -> PassContext:
    """A small task of the family's kind; a generator here learns to give set pictures, as its critic has no part."""
    kind = {"autoencoder": "denoising", "gan": "forecast"}.get(case.family, "classification")

    def split(seed: int, n: int) -> Samples:
        samples, rng = case.samples(seed, n), np.random.default_rng(seed)
        if kind == "classification":
            return Samples(samples.inputs, rng.integers(0, 4, n))
        targets = 1 + rng.random((n, *case.output_shape), dtype=np.float32)
        return Samples(samples.inputs, targets)

    names = tuple("abcd") if kind == "classification" else ()
    task = Task(kind, case.output_shape, names)
    splits = Splits(split(0, 96), split(1, 64), split(2, 32), case.inputs, task)
    return PassContext(splits, network, Scorer(task), 0, work, Silent())


def answers(network: Network, context: PassContext) -> np.ndarray:
    with torch.no_grad():
        return executable(network)(*map(torch.from_numpy, context.splits.test.inputs)).numpy()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", OPTIONS)
def test_a_pass_keeps_its_contract_in_every_family(kind: str, family: str, tmp_path: Path) -> None:
    case, options = FAMILIES[family], spec(kind, OPTIONS[kind])
    network = case.build()
    given = copy.deepcopy(network)
    make: Callable[[str], PassContext] = lambda name: context_of(case, network, tmp_path / name)  # noqa: E731
    result, record = run_pass(options, network, make("first"))
    again, _ = run_pass(options, network, make("second"))
    assert fingerprint(result) == fingerprint(again)
    assert fingerprint(network) == fingerprint(given)
    assert record.changed == ((kind, family) not in UNCHANGED)
    costs = [(record.before.macs, record.after.macs), (record.before.weight_bytes, record.after.weight_bytes)]
    assert all(after <= before for before, after in costs)
    if kind in ("prune_channels", "factorize"):
        assert costs[0][1] < costs[0][0]
    save_network(result, tmp_path / "saved")
    loaded = load_network(tmp_path / "saved")
    np.testing.assert_array_equal(answers(loaded, make("third")), answers(result, make("third")))
    exported = export_onnx(loaded, make("fourth").splits.validation, tmp_path / "exported")
    assert exported.max_abs_difference <= exported.tolerance


def test_every_pass_is_tried() -> None:
    assert set(OPTIONS) == set(PASSES)
