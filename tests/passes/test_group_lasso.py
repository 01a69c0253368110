"""A penalty on whole channels takes the step that its formula says, and ends at channels that can go for nothing."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from armlet.analysis.graph import trace
from armlet.analysis.groups import channel_groups
from armlet.passes import run_pass
from armlet.spec.passes import PruneChannels
from armlet.train import GroupLasso, predict
from armlet.train.group_lasso import Shrinker

TRAIN = {"epochs": 6, "batch_size": 32, "learning_rate": 0.02, "optimizer": "sgd"}


def channels_of(module, group):
    """Each channel's numbers of all weights, from the definition; a number of two slices counts in both."""
    tensors = module.state_dict()
    weights = [m for m in group.members if m.tensor.endswith("weight")]
    return [
        np.concatenate(
            [np.take(tensors[m.tensor].numpy(), m.indices[c], axis=m.dim).ravel() for m in weights]
        )
        for c in range(group.n_channels)
    ]


@pytest.mark.parametrize("kind", ["cnn", "fnn"])
def test_a_step_is_the_proximal_one(kind, tiny_network):
    network = tiny_network(kind)
    group = channel_groups(trace(network.module, network.architecture.inputs)).prunable[0]
    before = channels_of(network.module, group)
    others = {n: v.clone() for n, v in network.module.state_dict().items()}
    norms = [np.linalg.norm(c) for c in before]
    strength = float(np.median(norms)) / np.sqrt(len(before[0])) / 0.1  # half of the channels end at zero
    Shrinker(network.module, GroupLasso((group,), strength)).shrink(0.1)
    after = channels_of(network.module, group)
    wanted = [
        c * max(0, 1 - 0.1 * strength * np.sqrt(len(c)) / norm) for c, norm in zip(before, norms, strict=True)
    ]
    for one, other in zip(after, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-7)
    assert 0 < sum(not c.any() for c in after) < len(after)
    touched = {m.tensor for m in group.members if m.tensor.endswith("weight")}
    for name, value in network.module.state_dict().items():
        assert torch.equal(value, others[name]) == (name not in touched), name


def test_no_penalty_changes_nothing(tiny_network):
    network = tiny_network()
    before = {n: v.clone() for n, v in network.module.state_dict().items()}
    Shrinker(network.module, None).shrink(0.1)
    assert all(torch.equal(v, before[n]) for n, v in network.module.state_dict().items())


def test_channels_that_shrank_to_zero_go_for_nothing(tiny_network, context, splits):
    network = tiny_network(channels=[12, 16])

    def pruned(ratio):
        options = PruneChannels(
            kind="prune_channels", ratio=ratio, scope="global", group_lasso=TRAIN | {"strength": 0.3}
        )
        return run_pass(options, network, context(network))

    whole, record = pruned(0.0)
    note = next(n for n in record.notes if n.startswith("group lasso"))
    n_zero, n_all = map(int, re.search(r"(\d+) of (\d+)", note).groups())
    assert 0 < n_zero < n_all == 28, note
    smaller, record = pruned(n_zero / n_all)
    assert record.after.macs < record.before.macs
    inputs = [torch.from_numpy(x) for x in splits.test.inputs]
    torch.testing.assert_close(predict(smaller.module, inputs), predict(whole.module, inputs))


def test_the_penalty_stays_on_up_to_the_last_round(tiny_network, context):
    """In the rounds between, more channels shrink; the history counts all epochs through."""
    network = tiny_network(channels=[12, 16])
    options = PruneChannels(
        kind="prune_channels",
        ratio=0.5,
        steps=2,
        group_lasso=TRAIN | {"epochs": 2, "strength": 0.01},
        finetune=TRAIN | {"epochs": 4},
    )
    _, record = run_pass(options, network, context(network))
    assert [epoch.epoch for epoch in record.history] == list(range(1, 7))
    plain = options.model_copy(update={"group_lasso": None})
    _, without = run_pass(plain, network, context(network))
    assert record.after.macs == without.after.macs
