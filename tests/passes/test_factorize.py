"""Factorisation: at full energy nothing changes, the costs are those foretold, and a budget holds."""

from __future__ import annotations

import copy
import math
import re
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from tests.families.conftest import Case, answers
from tests.families.test_whole_way import COLOUR, FRAMES, LATENT, PICTURE, ROW, SPEECH
from torch import nn

from armlet.analysis.cost import cost_of
from armlet.analysis.graph import trace
from armlet.artifacts import InputSpec
from armlet.errors import UsageError
from armlet.export import export_onnx
from armlet.metrics import Scorer
from armlet.models.network import Network, fit_to_shapes, load_network, save_network
from armlet.passes import PreconditionFailed, run_pass
from armlet.passes.factorize.candidates import candidates
from armlet.passes.factorize.decompose import product, root_of, spatial, tucker2
from armlet.passes.factorize.ranks import by_budget
from armlet.passes.factorize.roots import roots_of
from armlet.progress import Silent
from armlet.spec.load import load_recipe
from armlet.spec.passes import Factorize, PruneChannels
from armlet.train import TrainOptions, train_network

TEXT = (InputSpec("tokens", (10,), "int32", 20), SPEECH[1])

CASES = [
    Case("fnn", {"hidden": [16, 12], "norm": "batch"}, ROW),
    Case("cnn", {"channels": [8, 8], "block": "residual", "downsample": "stride"}, PICTURE),
    Case("mobilenet", {"version": "v3_small", "width": 0.25}, COLOUR),
    Case("ds_cnn", {"channels": 16, "depth": 2, "stem_kernel": [4, 2]}, PICTURE),
    Case("rnn", {"cell": "gru", "hidden": [6, 5], "bidirectional": True}, SPEECH),
    Case("rnn", {"cell": "elman", "hidden": [6, 5], "readout": "mean"}, FRAMES),
    Case("lstm", {"hidden": [6, 5], "readout": "mean"}, SPEECH),
    Case("lstm", {"hidden": [8, 7], "projection": 4, "bidirectional": True}, SPEECH),
    Case("transformer", {"width": 16, "heads": 2, "depth": 1, "patch": 1, "causal": True}, SPEECH),
    Case("transformer", {"width": 16, "heads": 2, "depth": 1, "patch": 5}, FRAMES),
    Case("transformer", {"width": 16, "heads": 2, "depth": 1}, TEXT),
    Case("autoencoder", {"hidden": [12], "code": 3}, ROW, (9,)),
    Case("autoencoder", {"channels": [4, 8], "code": 6}, PICTURE, (1, 12, 12)),
    Case("gan", {"channels": [8, 4], "critic_channels": [4, 8]}, LATENT, (1, 12, 12)),
]
each = pytest.mark.parametrize("case", CASES, ids=str)


def layers_of(network: Network, convolutions: str = "tucker"):
    return candidates(network.module, trace(network.module, network.architecture.inputs), convolutions)[0]


@pytest.mark.parametrize("convolutions", ["tucker", "spatial", "cp"])
@each
def test_factors_of_full_rank_answer_as_the_layers_did_and_can_be_saved(case, convolutions, tmp_path):
    network = case.build()
    layers = layers_of(network, convolutions)
    expected = answers(network, case.samples())
    assert layers
    for layer in layers:
        if layer.method != "projection of the hidden state":  # which is narrower than that, or none
            layer.apply(network.module, layer.full)
    found = answers(network, case.samples())
    # The factors are rounded to float32, which a few layers carry on.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * max(1.0, np.abs(expected).max()))
    save_network(network, tmp_path)
    assert np.array_equal(answers(load_network(tmp_path), case.samples()), found)


@pytest.mark.parametrize("convolutions", ["tucker", "spatial", "cp"])
@each
def test_the_costs_of_factors_are_those_foretold(case, convolutions):
    network = case.build()
    was = cost_of(network)
    macs = parameters = 0
    for layer in layers_of(network, convolutions):
        ranks = tuple(max(1, full // 2) for full in layer.full)
        layer.apply(network.module, ranks)
        macs += layer.before.macs - layer.after(ranks).macs
        parameters += layer.before.parameters - layer.after(ranks).parameters
    now = cost_of(network)
    assert macs
    assert (now.macs, now.parameters) == (was.macs - macs, was.parameters - parameters)


LOW = [CASES[1], CASES[4], CASES[6], CASES[8], CASES[13]]


@pytest.mark.parametrize("case", LOW, ids=str)
def test_a_factorised_network_is_exported_as_it_is(case, tmp_path):
    network = case.build()
    for layer in layers_of(network):
        layer.apply(network.module, tuple(max(1, full // 2) for full in layer.full))
    exported = export_onnx(network, case.samples(), tmp_path)
    assert exported.max_abs_difference <= exported.tolerance
    if case.family == "lstm":
        return  # a projection stands in the file twice: as a factor, and for what the layer answers with
    # No product of factors was computed on the way.
    model = onnx.load(tmp_path / "model.onnx")
    n_weights = sum(math.prod(tensor.dims) for tensor in model.graph.initializer if len(tensor.dims) > 1)
    assert n_weights <= cost_of(network).parameters


@pytest.mark.parametrize("case", [CASES[4], CASES[5], CASES[6]], ids=str)
def test_a_factorised_layer_goes_on_from_the_state_before(case):
    """Frame by frame it answers as for the whole sequence; of a layer that reads backwards, too, one direction does."""
    case = replace(case, options=case.options | {"bidirectional": False}, inputs=FRAMES)
    network = case.build()
    for layer in layers_of(network):
        layer.apply(network.module, tuple(max(1, full // 2) for full in layer.full))
    frames = torch.from_numpy(case.samples().inputs[0])
    with torch.no_grad():
        state = torch.zeros(len(frames), network.module.state_size)
        for t in range(frames.shape[1]):
            answer, state = network.module.step(frames[:, t : t + 1], state)
        torch.testing.assert_close(answer, network.module(frames), rtol=1e-5, atol=1e-5)


@each
def test_the_energy_kept_is_at_least_what_is_said(case):
    """Of each layer whose factors are a product: the squared norm of what is left out, from the weights themselves."""
    network = case.build()
    for layer in layers_of(network):
        if layer.method not in ("product of two", "Tucker-2") or layer.name.endswith("recurrent_weight"):
            continue
        weight = network.module.get_submodule(layer.name).weight.detach().double()
        ranks = layer.losses.ranks_for(0.8)
        layer.apply(network.module, ranks)
        factors = [part.weight.detach().double() for part in network.module.get_submodule(layer.name)]
        if len(factors) == 3:
            transposed = isinstance(network.module.get_submodule(layer.name)[1], nn.ConvTranspose2d)
            path = "ri,rsab,os->ioab" if transposed else "ri,srab,os->oiab"
            built = torch.einsum(path, factors[0][:, :, 0, 0], factors[1], factors[2][:, :, 0, 0])
        else:
            built = (factors[1].flatten(1) @ factors[0].flatten(1)).reshape(weight.shape)
        kept = 1 - float((weight - built).square().sum() / weight.square().sum())
        assert kept >= layer.losses.kept(ranks) - 1e-6
        assert layer.losses.kept(ranks) >= 0.8 - 1e-9


@pytest.mark.parametrize("case", [CASES[0], CASES[2], CASES[4], CASES[6], CASES[8], CASES[10]], ids=str)
def test_results_are_nearer_where_they_are_what_counts(case):
    """On other samples than those that were looked at: the mean squared error of the answers, over many ranks."""
    network, seen, unseen = case.build(), case.samples(1, n=200), case.samples(2, n=200)
    roots = roots_of(trace(network.module, case.inputs), seen)
    expected, errors = answers(network, unseen), {}
    for kind, chosen in (("weights", {}), ("results", roots)):
        total = 0.0
        for share in (0.3, 0.5, 0.7):
            lower = replace(network, module=copy.deepcopy(network.module))
            traced = trace(lower.module, case.inputs)
            for layer in candidates(lower.module, traced, "tucker", chosen)[0]:
                if layer.method == "Tucker-2":
                    continue
                layer.apply(lower.module, tuple(max(1, round(share * full)) for full in layer.full))
            total += float(np.square(answers(lower, unseen) - expected).mean())
        errors[kind] = total
    assert errors["results"] < 0.9 * errors["weights"]


def test_a_product_for_inputs_has_the_least_error_on_them():
    """As the best of rank 2 by singular values of the results themselves (Eckart and Young 1936)."""
    rng = np.random.default_rng(0)
    weight, inputs = rng.normal(size=(6, 5)), rng.normal(size=(200, 5)) @ np.diag([9, 4, 1, 0.3, 0.1])
    root = root_of(inputs.T @ inputs / 200)
    first, second = product(weight, 2, root)
    left = np.square(inputs @ (second @ first - weight).T).sum()
    least = (np.linalg.svd(inputs @ weight.T, compute_uv=False)[2:] ** 2).sum()
    assert least <= left < 1.01 * least
    first, second = product(weight, 5, root)
    np.testing.assert_allclose(second @ first, weight, atol=1e-9)


def test_decompositions_are_the_nearest_of_their_rank():
    rng = np.random.default_rng(0)
    matrix, kernel = rng.normal(size=(7, 5)), rng.normal(size=(6, 5, 3, 3))
    lost = (np.linalg.svd(matrix, compute_uv=False)[2:] ** 2).sum()
    first, second = product(matrix, 2)
    assert ((second @ first - matrix) ** 2).sum() == pytest.approx(lost)
    a, b, core = tucker2(kernel, (6, 5))
    np.testing.assert_allclose(np.einsum("rshw,ar,bs->abhw", core, a, b), kernel, atol=1e-12)
    # A kernel that has these ranks is found again.
    low = np.einsum("rshw,ar,bs->abhw", rng.normal(size=(2, 3, 3, 3)), a[:, :2], b[:, :3])
    a, b, core = tucker2(low, (2, 3))
    np.testing.assert_allclose(np.einsum("rshw,ar,bs->abhw", core, a, b), low, atol=1e-12)
    column, row = spatial(kernel, 15)
    np.testing.assert_allclose(np.einsum("rihz,orzw->oihw", column, row), kernel, atol=1e-12)


def test_an_lstm_whose_matrices_share_a_subspace_is_projected_without_loss():
    """The recurrent matrix and its reader of rank 3 in common: the network with a projection is the same one."""
    case = Case("lstm", {"hidden": [8]}, SPEECH)
    network = case.build()
    layer = network.module.layers[0][0]
    basis = np.linalg.qr(np.random.default_rng(1).normal(size=(8, 3)))[0].astype("float32")
    keep = torch.from_numpy(basis @ basis.T)
    with torch.no_grad():
        layer.recurrent_weight.copy_(layer.recurrent_weight @ keep)
        network.module.classifier.weight.copy_(network.module.classifier.weight @ keep)
    expected = answers(network, case.samples())
    (hidden,) = [c for c in layers_of(network) if c.method == "projection of the hidden state"]
    ranks = hidden.losses.ranks_for(1 - 1e-10)
    hidden.apply(network.module, ranks)
    assert ranks == (3,)
    assert layer.projection_weight.shape == (1, 3, 8)
    np.testing.assert_allclose(answers(network, case.samples()), expected, atol=1e-5)


def options(**given) -> Factorize:
    return Factorize.model_validate({"kind": "factorize", **given})


@pytest.mark.parametrize("goal", ["macs", "parameters"])
@pytest.mark.parametrize("share", [0.8, 0.5])
def test_a_budget_holds_and_is_not_undercut_by_far(goal, share, tiny_network, context):
    network = tiny_network(channels=[16, 24])
    _, record = run_pass(options(**{goal: share}), network, context(network))
    left = getattr(record.after, goal) / getattr(record.before, goal)
    assert share - 0.2 < left <= share


def test_a_budget_takes_first_what_loses_least():
    """Of two equal layers, one nearly of rank 1: a budget that it alone can meet leaves the other whole."""
    module = nn.Sequential(nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 20))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        module[0].weight.copy_(torch.randn(20, 20, generator=generator))
        module[2].weight.copy_(torch.ones(20, 20) + 0.01 * torch.randn(20, 20, generator=generator))
    layers = candidates(module.eval(), trace(module, (InputSpec("input", (20,)),)), "tucker")[0]
    costs = layers[0].before
    assert by_budget(layers, replace(costs, macs=300, parameters=0)) == [None, (2,)]
    deeper = by_budget(layers, replace(costs, macs=500, parameters=0))
    assert deeper[0] is not None


def test_what_can_not_be_saved_is_refused(tiny_network, context):
    network = tiny_network()
    for name in ("macs", "parameters"):
        with pytest.raises(PreconditionFailed, match=f"{name} can't fall to 0.01 of now") as refused:
            run_pass(options(**{name: 0.01}), network, context(network))
        said = re.search(r"the least that can be reached.* is (0\.\d+), (\d+) of (\d+)", str(refused.value))
        assert said, refused.value
        share, least, full = float(said[1]), int(said[2]), int(said[3])
        assert full == getattr(cost_of(network), name)
        reached, _ = run_pass(options(**{name: share}), network, context(network))
        assert least <= getattr(cost_of(reached), name) <= share * full
        with pytest.raises(PreconditionFailed, match="the least that can be reached"):
            run_pass(options(**{name: share - 0.002}), network, context(network))
    with pytest.raises(PreconditionFailed, match="exclude has 'nowhere'"):
        run_pass(options(energy=0.9, exclude=["nowhere"]), network, context(network))


def test_notes_name_what_was_done_and_what_stays_whole(tiny_network, context):
    network = tiny_network(channels=[12, 16], block="separable")
    result, record = run_pass(options(ratio=0.7, exclude=["classifier"]), network, context(network))
    notes = "\n".join(record.notes)
    assert "stage1.block1.depthwise stays whole: a convolution in groups has little to share" in notes
    assert "classifier stays whole: excluded" in notes
    assert (
        "stage2.block1.pointwise: product of two, rank 4 of 12; 192 -> 112 weights, energy of results kept"
        in notes
    )
    _, second = run_pass(options(ratio=0.7), result, context(network))
    assert not any("pointwise.0" in note for note in second.notes)  # factors are not factorised again
    _, nothing = run_pass(options(energy=1.0), network, context(network))
    assert "stage2.block1.pointwise stays whole: its factors would cost as much or more" in "\n".join(
        nothing.notes
    )
    assert not nothing.changed


@pytest.mark.parametrize("first", ["factorize", "prune"])
def test_pruning_goes_before_and_after(first, tiny_network, context, splits, tmp_path):
    network = tiny_network(channels=[16, 16])
    steps = [options(energy=0.7), PruneChannels(kind="prune_channels", ratio=0.25)]
    result = network
    for step in steps if first == "factorize" else reversed(steps):
        result, record = run_pass(step, result, context(network))
        assert record.after.parameters < record.before.parameters
    save_network(result, tmp_path)
    loaded = load_network(tmp_path)
    inputs = torch.from_numpy(splits.test.inputs[0])
    with torch.no_grad():
        assert torch.equal(loaded.module(inputs), result.module(inputs))


def test_factors_that_fit_no_layer_are_refused(tiny_network):
    network = tiny_network("fnn")
    tensors = dict(network.module.state_dict())
    tensors["classifier.0.weight"] = torch.zeros(2, 5)
    tensors["classifier.1.weight"] = torch.zeros(4, 2)
    del tensors["classifier.weight"]
    with pytest.raises(UsageError, match=r"layer2|classifier"):
        fit_to_shapes(network.module, tensors | {"layer2.linear.weight": torch.zeros(9)})


def test_exactly_one_goal_is_asked_for(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "name: x\ndata: {kind: letter-recognition}\nmodel: {kind: fnn}\n"
        "passes:\n  - {kind: factorize, energy: 90 %, macs: 50 %}\n"
    )
    with pytest.raises(UsageError, match=r"passes\.0.*energy and macs of energy, ratio.*exactly one"):
        load_recipe(recipe)


def test_training_the_factors_wins_back_what_they_lost(tiny_network, context, splits, tmp_path):
    network = tiny_network("fnn", hidden=[24, 24])
    train = TrainOptions(epochs=8, batch_size=32, learning_rate=0.01)
    trained, _ = train_network(
        network, splits, train, Scorer(splits.task), seed=0, work=tmp_path, progress=Silent()
    )
    low = {"ratio": 0.93, "exclude": ["classifier"]}
    _, plain = run_pass(options(**low), trained, context(trained))
    tuning = {"epochs": 6, "batch_size": 32, "learning_rate": 0.01}
    _, tuned = run_pass(options(**low, finetune=tuning), trained, context(trained))
    taught = {**tuning, "distill": {"alpha": 0.9, "terms": [{"kind": "outputs"}]}}
    _, distilled = run_pass(options(**low, finetune=taught), trained, context(trained))
    assert plain.score_after.value < plain.score_before.value - 0.1
    for record in (tuned, distilled):
        assert record.score_after.value > plain.score_after.value + 0.1
        assert len(record.history) == 6
    assert tuned.history != distilled.history
