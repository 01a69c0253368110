"""Pruning: what is removed had no part in the answer once nothing reads it, and selection keeps its promises."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from armlet.analysis.graph import trace
from armlet.analysis.groups import channel_groups
from armlet.artifacts import InputSpec
from armlet.metrics import Scorer
from armlet.models.network import fit_to_shapes
from armlet.passes import PreconditionFailed, run_pass
from armlet.passes.prune.remove import remove_channels
from armlet.passes.prune.selection import select_by_layer, select_globally
from armlet.spec.passes import PruneChannels
from armlet.train import TrainOptions, evaluate, train_network


class Mixed(nn.Module):
    """Concatenation, a grouped convolution, a residual sum and a flatten into a linear layer."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(1, 4, 3, padding=1)
        self.b = nn.Conv2d(1, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(10)
        self.grouped = nn.Conv2d(10, 10, 3, padding=1, groups=5)
        self.c = nn.Conv2d(10, 10, 1)
        self.hidden = nn.Linear(10 * 9, 8)
        self.hidden_norm = nn.BatchNorm1d(8)
        self.out = nn.Linear(8, 4)

    def forward(self, x):
        y = functional.silu(self.norm(torch.cat([self.a(x), self.b(x)], 1)))
        y = functional.avg_pool2d(y + self.c(torch.relu(self.grouped(y))), 4)
        return self.out(functional.leaky_relu(self.hidden_norm(self.hidden(torch.flatten(y, 1)))))


def removals_of(module: nn.Module, seed: int):
    rng = np.random.default_rng(seed)
    groups = channel_groups(trace(module, (InputSpec("input", (1, 12, 12)),))).prunable
    return [(g, tuple(sorted(rng.permutation(g.n_channels)[: g.n_channels // 2].tolist()))) for g in groups]


def without_readers(module: nn.Module, removals) -> None:
    """Zero what reads the removed channels: their columns in every weight behind them."""
    state = module.state_dict()
    for group, channels in removals:
        for member in group.members:
            if member.dim == 1:
                gone = [index for channel in channels for index in member.indices[channel]]
                state[member.tensor].index_fill_(1, torch.tensor(gone, dtype=torch.int64), 0.0)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_pruned_network_is_the_network_that_ignores_those_channels(network, seed, splits):
    inputs = torch.from_numpy(splits.test.inputs[0])
    removals = removals_of(network.module, seed)
    with torch.no_grad():
        smaller = remove_channels(network.module, removals)
        full = network.module(inputs)
        without_readers(network.module, removals)
        expected, found = network.module(inputs), smaller(inputs)
    assert not torch.allclose(full, expected, atol=1e-2)  # or this would prove nothing
    # float32 sums of fewer terms in another order: a few units of the last place.
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in network.module.parameters())


def test_that_holds_for_concatenation_groups_and_flatten_too(randomized, splits):
    torch.manual_seed(0)
    module = randomized(Mixed())
    removals = removals_of(module, 0)
    assert sum(len(channels) for _, channels in removals) >= 6
    inputs = torch.from_numpy(splits.test.inputs[0])
    with torch.no_grad():
        smaller = remove_channels(module, removals)
        without_readers(module, removals)
        torch.testing.assert_close(smaller(inputs), module(inputs), rtol=1e-5, atol=1e-5)
    assert smaller.grouped.groups < 5


def test_the_least_channels_go(tiny_network, context):
    network = tiny_network()
    with torch.no_grad():
        for channel in (1, 4):
            network.module.stage1.block1.conv.weight[channel] *= 1e-3
            network.module.stage1.block1.norm.weight[channel] *= 1e-3
            network.module.stage2.block1.conv.weight[:, channel] *= 1e-3
    kept = network.module.stage1.block1.conv.weight[[0, 2, 3, 5]]
    pruned, record = run_pass(prune(ratio=0.34), network, context(network))
    torch.testing.assert_close(pruned.module.stage1.block1.conv.weight, kept, rtol=0, atol=0)
    assert "stage1.block1.conv: 6 -> 4 channels" in record.notes


def prune(**options: object) -> PruneChannels:
    return PruneChannels(kind="prune_channels", **options)


def widths(network) -> dict[str, int]:
    found = channel_groups(trace(network.module, network.architecture.inputs))
    return {g.name: g.n_channels for g in found.prunable}


def test_widths_are_rounded_up_to_a_multiple(tiny_network, context):
    network = tiny_network(channels=[20, 6, 8])
    pruned, _ = run_pass(prune(ratio=0.5, round_to=4), network, context(network))
    assert list(widths(pruned).values()) == [12, 4, 4]


def test_widths_fill_the_vectors_of_a_target(tiny_network, context):
    network = tiny_network(channels=[20, 6, 8])
    options = prune(ratio=0.5, round_to="vector", target="raspberry-pi-4")
    pruned, record = run_pass(options, network, context(network))
    assert list(widths(pruned).values()) == [12, 4, 4]
    assert "what is left is a multiple of 4 where possible" in record.notes


def test_a_group_too_narrow_for_the_multiple_is_left_whole(tiny_network, context):
    network = tiny_network(channels=[6, 16])
    pruned, record = run_pass(prune(ratio=0.5, round_to=8), network, context(network))
    assert list(widths(pruned).values()) == [6, 8]
    assert "stage1.block1.conv keeps all 6 channels" in record.notes


def test_excluded_layers_keep_their_channels(tiny_network, context):
    network = tiny_network()
    pruned, record = run_pass(prune(ratio=0.5, exclude=("stage2.*",)), network, context(network))
    assert list(widths(pruned).values()) == [3, 10]
    assert "stage2.block1.conv keeps its channels: excluded" in record.notes


def test_excluding_a_module_excludes_the_layers_in_it(tiny_network, context):
    network = tiny_network()
    by_name, _ = run_pass(prune(ratio=0.5, exclude=("stage2",)), network, context(network))
    by_pattern, _ = run_pass(prune(ratio=0.5, exclude=("stage2.*",)), network, context(network))
    assert str(by_name.module) == str(by_pattern.module)
    assert by_name.module.stage2.block1.conv.out_channels == network.module.stage2.block1.conv.out_channels


def test_an_exclude_pattern_that_fits_nothing_is_refused(tiny_network, context):
    network = tiny_network()
    with pytest.raises(PreconditionFailed, match=r"prune_channels: exclude has 'stge2\.\*'"):
        run_pass(prune(ratio=0.5, exclude=("stge2.*",)), network, context(network))


def test_global_scope_takes_more_from_a_group_with_many_weak_channels(tiny_network, context):
    network = tiny_network()
    with torch.no_grad():
        layer = network.module.stage2.block1
        layer.conv.weight[:8] *= 1e-2
        layer.norm.weight[:8] *= 1e-2
        network.module.classifier.weight[:, :8] *= 1e-2
    pruned, _ = run_pass(prune(ratio=0.5, scope="global"), network, context(network))
    assert list(widths(pruned).values()) == [6, 2]


def test_finetuning_gives_back_what_pruning_took(tiny_network, context, splits):
    start = context(tiny_network("fnn"))
    options = {"epochs": 15, "batch_size": 32, "learning_rate": 1e-2}
    network, _ = train_network(
        start.teacher,
        splits,
        TrainOptions(**options),
        start.scorer,
        seed=0,
        work=start.work,
        progress=start.progress,
    )
    rough, _ = run_pass(prune(ratio=0.5), network, context(network))
    tuned, record = run_pass(prune(ratio=0.5, finetune=options), network, context(network))
    assert widths(rough) == widths(tuned)
    assert len(record.history) == 15
    assert record.score_before.value > 0.9
    assert record.score_after.value > max(
        0.9, evaluate(rough, splits.test, Scorer(splits.task), "test").value
    )


class Fixed(nn.Module):
    """Its code says how many channels there are."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(1, 6, 3, padding=1), nn.Linear(6 * 4, 4)

    def forward(self, x):
        return self.out(functional.adaptive_avg_pool2d(torch.relu(self.conv(x)), 2).reshape(-1, 6 * 4))


class Cut(nn.Module):
    """Its code says which channels are read, and those would be others without the first."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.next, self.out = nn.Conv2d(1, 8, 3), nn.Conv2d(4, 6, 3), nn.Linear(6, 4)

    def forward(self, x):
        return self.out(torch.relu(self.next(torch.relu(self.conv(x))[:, 2:6])).mean(dim=(2, 3)))


@pytest.mark.parametrize("kind", [Fixed, Cut])
def test_code_that_holds_a_size_keeps_it_and_the_rest_is_pruned(kind, tiny_network, context):
    network = replace(tiny_network(), module=kind().eval())
    pruned, record = run_pass(prune(ratio=0.5), network, context(network))
    assert pruned.module.conv.out_channels == network.module.conv.out_channels
    said = "conv keeps its channels: the network's own code holds how many there are; it should take that from a weight"
    assert any(note.startswith(said) for note in record.notes)
    if kind is Cut:
        assert pruned.module.next.out_channels == 3


class Twos(nn.Module):
    """Its code has a size that one channel less still fits and two don't."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(1, 8, 3), nn.Linear(8, 4)

    def forward(self, x):
        x = torch.relu(self.conv(x)).mean(dim=(2, 3))
        return self.out(x if x.shape[1] > 6 else x[:, :4])


def test_code_that_fits_only_a_little_less_is_refused_with_what_would_be_right(tiny_network, context):
    network = replace(tiny_network(), module=Twos().eval())
    with pytest.raises(PreconditionFailed, match=r"holds a size that pruning changes.*compute the size from"):
        run_pass(prune(ratio=0.25), network, context(network))
    assert network.module.conv.out_channels == 8


class Groups(nn.Module):
    """A convolution of eight channels, one of them in groups, and one that reads it."""

    def __init__(self, kind, groups):
        super().__init__()
        self.first, self.grouped = nn.Conv2d(1, 8, 3), kind(8, 8, 3, groups=groups)
        self.last, self.out = nn.Conv2d(8, 6, 1), nn.Linear(6, 4)

    def forward(self, x):
        x = torch.relu(self.grouped(torch.relu(self.first(x))))
        return self.out(torch.relu(self.last(x)).mean(dim=(2, 3)))


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
@pytest.mark.parametrize("groups", [8, 4])
@pytest.mark.parametrize("goal", [{"ratio": 0.9}, {"ratio": 0.9, "scope": "global"}, {"parameters": 0.42}])
def test_a_grouped_convolution_keeps_two_groups(goal, groups, kind, tiny_network, context, tmp_path):
    torch.manual_seed(0)
    network = replace(tiny_network(), module=Groups(kind, groups).eval())
    with torch.no_grad():  # the least important of all, so that every criterion takes them first
        network.module.first.weight *= 0.01
        network.module.grouped.weight *= 0.01
        network.module.last.weight *= 0.01
    pruned, record = run_pass(prune(**goal, importance="l1"), network, context(network))
    left = pruned.module.grouped.groups
    assert left == 2 if "ratio" in goal else 2 <= left < groups
    assert f"first: {groups} -> {left} channels" in record.notes
    tensors = pruned.module.state_dict()
    again = Groups(kind, groups)
    fit_to_shapes(again, tensors)
    inputs = torch.randn(2, 1, 12, 12)
    torch.testing.assert_close(again.eval()(inputs), pruned.module(inputs), rtol=0, atol=0)


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_two_groups_stay_and_the_notes_say_why(kind, tiny_network, context):
    network = replace(tiny_network(), module=Groups(kind, 2).eval())
    pruned, record = run_pass(prune(ratio=0.5), network, context(network))
    assert (pruned.module.first.out_channels, pruned.module.last.out_channels) == (8, 3)
    assert any(
        "first keeps its channels: they are the two groups of a convolution" in n for n in record.notes
    )
    assert not any("holds how many" in n for n in record.notes)


group_scores = st.lists(
    st.lists(st.floats(0.0, 10.0), min_size=1, max_size=40).map(np.array), min_size=1, max_size=5
)


@given(
    group_scores,
    st.floats(0.0, 0.999),
    st.integers(1, 16),
    st.integers(1, 2),
    st.sampled_from([select_by_layer, select_globally]),
)
def test_no_group_is_emptied_and_none_loses_more_than_asked(scores, ratio, round_to, least, select):
    removed = select(scores, ratio, [round_to] * len(scores), least=[least] * len(scores))
    for group, gone in zip(scores, removed, strict=True):
        left = len(group) - len(gone)
        assert left >= min(least, len(group))
        assert len(set(gone)) == len(gone)
        assert not gone or left % round_to == 0
        assert not gone or max(group[list(gone)]) <= min(np.delete(group, gone))
    assert sum(map(len, removed)) <= ratio * sum(map(len, scores)) + 1e-6
