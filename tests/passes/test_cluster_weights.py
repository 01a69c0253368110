"""Shared values: as many as asked for, where k-means puts them, and later steps go on sharing them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from armlet.analysis.sparsity import weight_tensors
from armlet.analysis.storage import index_bits
from armlet.models.network import Network, executable
from armlet.models.quantization import quantized_values
from armlet.passes import PreconditionFailed, run_pass
from armlet.passes.cluster import shared_values
from armlet.spec.passes import ClusterWeights, Distill, PruneChannels, PruneWeights, QuantizeStatic

TRAIN = {"epochs": 2, "batch_size": 64}


def cluster(**options: object) -> ClusterWeights:
    return ClusterWeights(kind="cluster_weights", **options)


def weights_of(network: Network) -> dict[str, torch.Tensor]:
    module = network.module
    return {w.parameter: module.get_parameter(w.parameter).detach() for w in weight_tensors(module)}


def n_values(network: Network) -> dict[str, int]:
    return {name: len(torch.unique(value)) for name, value in weights_of(network).items()}


@pytest.mark.parametrize("n", [2, 5, 16])
def test_values_lie_as_well_as_those_of_scikit_learn(n):
    values = np.random.default_rng(n).standard_t(4, 3000)
    ours = shared_values(values, n)
    start = np.linspace(values.min(), values.max(), n)[:, None]
    theirs = KMeans(n, init=start, n_init=1, max_iter=1000, tol=0).fit(values[:, None])
    error = (np.abs(values[:, None] - ours).min(axis=1) ** 2).sum()
    assert len(ours) == n
    # Both stop at a local minimum, which can differ where a value without weights is moved elsewhere.
    assert error < 1.02 * theirs.inertia_


@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 2**31))
def test_each_value_is_the_mean_of_the_weights_nearest_to_it(n_weights, n, seed):
    values = np.random.default_rng(seed).standard_normal(n_weights)
    found = shared_values(values, n)
    assert len(found) == min(n, n_weights)
    which = np.abs(values[:, None] - found).argmin(axis=1)
    means = [values[which == number].mean() for number in range(len(found))]
    np.testing.assert_allclose(found, means, rtol=1e-9, atol=1e-12)


def test_a_constant_weight_has_one_value():
    np.testing.assert_array_equal(shared_values(np.full(50, 0.25), 4), [0.25])


@pytest.mark.parametrize("finetune", [None, TRAIN])
@pytest.mark.parametrize("n", [2, 16, 64])
def test_each_weight_has_at_most_so_many_values(n, finetune, network, context, splits):
    clustered, record = run_pass(cluster(values=n, finetune=finetune), network, context(network))
    assert max(n_values(clustered).values()) <= n
    assert {c.parameter for c in clustered.constraints} == set(weights_of(clustered))
    sizes = [w.numel() for w in weights_of(clustered).values()]
    packed = sum(n * 4 + 2 + -(-size * index_bits(n) // 8) for size in sizes if size > n)
    others = sum(p.numel() for p in clustered.module.parameters()) - sum(s for s in sizes if s > n)
    assert record.after.stored_bytes <= packed + 5 * others
    if n == 64:  # nearly all that the weights say is left
        with torch.no_grad():
            inputs = torch.from_numpy(splits.test.inputs[0])
            before, after = network.module(inputs), clustered.module(inputs)
        if finetune is None:
            assert (after - before).abs().max() < 0.1 * before.abs().max()


def test_shared_values_hold_through_distillation_and_become_few_integers(network, context, splits):
    clustered, _ = run_pass(cluster(values=16, finetune=TRAIN), network, context(network))
    distilled, _ = run_pass(Distill(kind="distill", train=TRAIN), clustered, context(network))
    for name, value in weights_of(distilled).items():
        old = weights_of(clustered)[name]
        assert not torch.equal(value, old)
        assert {len(torch.unique(value[old == v])) for v in torch.unique(old)} == {1}
    quantize = QuantizeStatic(kind="quantize_static", calibration_samples=48)
    quantized, record = run_pass(quantize, distilled, context(network))
    weights = {p.parameter: p for p in quantized.quantization.parameters if p.dtype == "int8"}
    assert set(weights) == set(weights_of(network))
    for name, parameter in weights.items():
        integers = quantized_values(weights_of(quantized)[name].numpy(), parameter)
        assert 2 <= len(np.unique(integers)) <= 16, name
        assert len(set(parameter.scales)) == 1
    inputs = torch.from_numpy(splits.test.inputs[0])
    with torch.no_grad():
        exact, found = executable(distilled)(inputs), executable(quantized)(inputs)
    # One scale for a whole weight is coarser than one for each channel, and no more than that.
    assert (found - exact).abs().mean() < 0.1 * exact.abs().max()
    assert record.after.stored_bytes < 0.9 * record.after.weight_bytes


def test_pruned_weights_keep_their_zeros_and_zero_is_one_of_the_values(network, context):
    pruned, _ = run_pass(PruneWeights(kind="prune_weights", sparsity=0.6), network, context(network))
    both, record = run_pass(cluster(values=8, finetune=TRAIN), pruned, context(network))
    for name, value in weights_of(both).items():
        assert torch.equal(value == 0, weights_of(pruned)[name] == 0)
        assert len(torch.unique(value)) <= 8
    only, _ = run_pass(cluster(values=8), network, context(network))
    assert record.after.stored_bytes < 0.6 * record.before.stored_bytes
    assert only.constraints == both.constraints  # shared values include the zeros


def test_channels_may_go_afterwards(tiny_network, context):
    network = tiny_network()
    clustered, _ = run_pass(cluster(values=8), network, context(network))
    options = PruneChannels(kind="prune_channels", ratio=0.5, finetune=TRAIN)
    pruned, record = run_pass(options, clustered, context(network))
    assert record.after.macs < record.before.macs
    assert max(n_values(pruned).values()) <= 8


def test_excluded_layers_keep_their_values(tiny_network, context):
    network = tiny_network()
    clustered, _ = run_pass(cluster(values=4, exclude=("classifier",)), network, context(network))
    weight = network.module.classifier.weight
    torch.testing.assert_close(clustered.module.classifier.weight, weight, rtol=0, atol=0)
    assert "classifier.weight" not in {c.parameter for c in clustered.constraints}


def test_a_network_with_few_values_has_nothing_to_share(tiny_network, context):
    network = tiny_network("fnn")
    with torch.no_grad():
        for value in weights_of(network).values():
            value.copy_(value.sign())
    with pytest.raises(PreconditionFailed, match="no weight has more than 16 different values"):
        run_pass(cluster(), network, context(network))


def test_fine_tuning_gives_back_accuracy(tiny_network, context, splits):
    network = tiny_network("fnn")
    train = {"epochs": 12, "batch_size": 32, "learning_rate": 1e-2}
    trained, _ = run_pass(Distill(kind="distill", alpha=0.0, train=train), network, context(network))
    rough, rough_record = run_pass(cluster(values=2), trained, context(trained))
    tuned, record = run_pass(
        cluster(values=2, finetune=train | {"learning_rate": 1e-3}), trained, context(trained)
    )
    assert record.score_before.value > 0.9
    assert record.score_after.value >= rough_record.score_after.value
    assert record.score_after.value > 0.9
    assert max(n_values(tuned).values()) <= 2
    assert replace(tuned, module=rough.module).constraints == rough.constraints
