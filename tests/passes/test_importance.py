"""Each criterion is the formula of its paper, written out again here, on a network with telling values."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from armlet.analysis.graph import trace
from armlet.analysis.groups import channel_groups
from armlet.artifacts import InputSpec
from armlet.data.splits import Samples
from armlet.passes import PreconditionFailed, run_pass
from armlet.passes.prune.importance import CRITERIA, Evidence, importance
from armlet.spec.passes import PruneChannels

PICTURE = (InputSpec("input", (1, 12, 12)),)


@pytest.fixture
def evidence(tiny_network, splits) -> Evidence:
    return Evidence(tiny_network(), splits.train.take(slice(128)), "classification", 0)


def groups_of(evidence: Evidence):
    return channel_groups(trace(evidence.network.module, evidence.network.architecture.inputs)).prunable


def normalised(scores: np.ndarray) -> np.ndarray:
    return scores / scores.mean()


def gradients(evidence: Evidence):
    """(weights, gradients) of each batch of 64, by name."""
    module, samples = evidence.network.module, evidence.samples
    found = []
    for first in (0, 64):
        inputs = torch.from_numpy(samples.inputs[0][first : first + 64])
        targets = torch.from_numpy(samples.targets[first : first + 64])
        names, parameters = zip(*module.named_parameters(), strict=True)
        loss = functional.cross_entropy(module(inputs), targets)
        gradient = torch.autograd.grad(loss, parameters)
        found.append({n: (p.detach(), g) for n, p, g in zip(names, parameters, gradient, strict=True)})
    return found


@pytest.mark.parametrize(("criterion", "order"), [("l1", 1), ("l2", 2)])
def test_magnitude_is_the_norm_of_all_slices_of_weights(criterion, order, evidence):
    state = evidence.network.module.state_dict()
    by_hand = (
        torch.linalg.vector_norm(state["stage1.block1.conv.weight"], order, (1, 2, 3))
        + state["stage1.block1.norm.weight"].abs()
        + torch.linalg.vector_norm(state["stage2.block1.conv.weight"], order, (0, 2, 3))
    ).numpy()
    scores = importance(groups_of(evidence), criterion, evidence)[0]
    np.testing.assert_allclose(scores.mean(), 1.0, rtol=1e-12)
    np.testing.assert_allclose(scores, normalised(by_hand), rtol=1e-5)


def test_gains_are_those_of_the_normalisation(evidence):
    gain = evidence.network.module.stage2.block1.norm.weight.detach().abs().numpy()
    np.testing.assert_allclose(
        importance(groups_of(evidence), "bn_scale", evidence)[1], normalised(gain), rtol=1e-5
    )


def test_first_order_is_the_squared_sum_of_gradient_times_weight(evidence):
    layers = ("stage1.block1.conv.weight", "stage1.block1.norm.weight", "stage1.block1.norm.bias")
    by_hand = np.zeros(6)
    for batch in gradients(evidence):
        parts = [batch[n][0].double() * batch[n][1].double() for n in layers]
        by_hand += (sum(part.reshape(6, -1).sum(1) for part in parts) ** 2).numpy()
    scores = importance(groups_of(evidence), "taylor", evidence)[0]
    np.testing.assert_allclose(scores, normalised(by_hand), rtol=1e-3)


def test_second_order_is_half_of_squared_gradient_times_squared_weight(evidence):
    slices = {
        "stage1.block1.conv.weight": (1, 2, 3),
        "stage1.block1.norm.weight": (),
        "stage1.block1.norm.bias": (),
        "stage2.block1.conv.weight": (0, 2, 3),
    }
    by_hand = np.zeros(6)
    for batch in gradients(evidence):
        for name, over in slices.items():
            weight, gradient = (x.double() for x in batch[name])
            saliency = gradient**2 * weight**2 / 2
            by_hand += (saliency.sum(over) if over else saliency).numpy()
    scores = importance(groups_of(evidence), "hessian", evidence)[0]
    np.testing.assert_allclose(scores, normalised(by_hand), rtol=1e-3)


def test_the_geometric_median_finds_the_channel_that_others_stand_for(evidence):
    module = evidence.network.module
    with torch.no_grad():
        for tensor in (module.stage1.block1.conv.weight, module.stage1.block1.norm.weight):
            tensor[4] = tensor[[0, 1, 2, 3, 5]].mean(0)
    scores = importance(groups_of(evidence), "fpgm", evidence)[0]
    assert int(scores.argmin()) == 4
    rows = torch.cat(
        [module.stage1.block1.conv.weight.reshape(6, -1), module.stage1.block1.norm.weight[:, None]], dim=1
    ).detach()
    by_hand = [sum(float(torch.dist(a, b)) for b in rows) for a in rows]
    np.testing.assert_allclose(scores, normalised(np.array(by_hand)), rtol=1e-4)


def test_activation_is_the_mean_of_what_the_next_layer_reads(evidence):
    module, inputs = evidence.network.module, torch.from_numpy(evidence.samples.inputs[0])
    with torch.no_grad():
        read = module.stage2.pool(module.stage1(inputs))
    by_hand = read.abs().mean((0, 2, 3)).double().numpy()
    scores = importance(groups_of(evidence), "activation", evidence)[0]
    np.testing.assert_allclose(scores, normalised(by_hand), rtol=1e-4)


def test_chance_is_that_of_the_seed(evidence):
    first, again = (importance(groups_of(evidence), "random", evidence) for _ in range(2))
    other = importance(
        groups_of(evidence), "random", Evidence(evidence.network, evidence.samples, "classification", 1)
    )
    np.testing.assert_array_equal(first[0], again[0])
    assert not np.allclose(first[0], other[0])


def test_a_criterion_without_what_it_looks_at_is_refused(tiny_network, context):
    network = tiny_network("fnn", norm="none")
    with pytest.raises(
        PreconditionFailed, match=r"the units of .* have no batch normalisation; exclude them"
    ):
        run_pass(
            PruneChannels(kind="prune_channels", ratio=0.5, importance="bn_scale"), network, context(network)
        )


@pytest.mark.parametrize("criterion", ["l2", "taylor", "hessian", "fpgm", "activation"])
def test_hidden_units_and_heads_are_ranked_too(criterion: str) -> None:
    from tests.passes.test_prune_families import KEPT_WHOLE

    for case in (c for c in KEPT_WHOLE if c.family in ("rnn", "transformer")):
        network, drawn = case.build(), case.samples(n=32)
        labels = np.arange(32) % 4
        evidence = Evidence(network, Samples(drawn.inputs, labels), "classification", 0)
        for group, scores in zip(
            groups := groups_of(evidence), importance(groups, criterion, evidence), strict=True
        ):
            assert scores.shape == (group.n_channels,)
            assert np.isfinite(scores).all()
            assert np.ptp(scores) > 0


def test_a_generator_has_no_loss_to_take_gradients_of(evidence):
    generator = Evidence(evidence.network, evidence.samples, "generation", 0)
    with pytest.raises(PreconditionFailed, match="no loss without its critic"):
        importance(groups_of(evidence), "taylor", generator)


def test_every_criterion_of_the_recipe_is_there():
    field = PruneChannels.model_json_schema()["properties"]["importance"]
    assert set(field["enum"]) == set(CRITERIA)
