"""Channel groups: what hangs together is found from the graph, and agrees with an independent implementation."""

from __future__ import annotations

import pytest
import torch
import torch_pruning
from torch import nn
from torch.nn import functional

from armlet.analysis.graph import trace
from armlet.analysis.groups import ChannelGroup, channel_groups
from armlet.artifacts import InputSpec
from armlet.passes.prune.remove import remove_channels


def groups_of(module: nn.Module, input_shape: tuple[int, ...] = (1, 12, 12)):
    return channel_groups(trace(module.eval(), (InputSpec("input", input_shape),)))


def members(group: ChannelGroup) -> set[tuple[str, int]]:
    return {(m.tensor, m.dim) for m in group.members}


def names(found) -> list[str]:
    return [g.name for g in found.prunable]


def oracle(module: nn.Module, layer: nn.Module, input_shape: tuple[int, ...]) -> set[tuple[str, int]]:
    """The weights, and their dimensions, that torch-pruning says are cut with the outputs of a layer."""
    graph = torch_pruning.DependencyGraph().build_dependency(
        module, example_inputs=torch.zeros(2, *input_shape)
    )
    prune = (
        torch_pruning.prune_conv_out_channels
        if isinstance(layer, nn.Conv2d)
        else torch_pruning.prune_linear_out_channels
    )
    found = set()
    for dependency, _ in graph.get_pruning_group(layer, prune, idxs=[0]):
        target = dependency.target.module
        name = next((n for n, m in module.named_modules() if m is target), None)
        if name is None:
            continue  # an operator, not a module
        is_depthwise = isinstance(target, nn.Conv2d) and target.groups > 1
        inputs = "in_channels" in dependency.handler.__name__ and not isinstance(target, nn.BatchNorm2d)
        found.add((f"{name}.weight", 1 if inputs and not is_depthwise else 0))
    return found


@pytest.mark.parametrize(
    "options",
    [
        {"block": "plain", "depth": 2},
        {"block": "residual", "depth": 2},
        {"block": "residual", "downsample": "stride"},
        {"block": "separable", "depth": 2},
    ],
    ids=str,
)
def test_groups_agree_with_torch_pruning(options, tiny_network):
    module = tiny_network(**options).module
    found = groups_of(module)
    assert len(found.prunable) >= 2
    for group in found.prunable:
        ours = {(tensor, dim) for tensor, dim in members(group) if tensor.endswith(".weight")}
        for layer in group.layers:
            assert ours == oracle(module, module.get_submodule(layer), (1, 12, 12)), group.name


def test_every_layer_is_in_exactly_one_group(network):
    found = groups_of(network.module)
    layers = [layer for g in (*found.prunable, *found.fixed) for layer in g.layers]
    weighted = [n for n, m in network.module.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert sorted(layers) == sorted(weighted)


def test_the_classifier_is_fixed_because_it_is_the_output(network):
    (fixed,) = groups_of(network.module).fixed
    assert fixed.name == "classifier"
    assert fixed.reason == "they are the network's output"


class FlattenIntoLinear(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3, padding=1)
        self.hidden = nn.Linear(3 * 6 * 6, 5)
        self.out = nn.Linear(5, 2)

    def forward(self, x):
        y = functional.max_pool2d(torch.relu(self.conv(x)), 2)
        return self.out(torch.relu(self.hidden(y.view(y.shape[0], -1))))


def test_a_channel_is_a_block_of_columns_behind_flatten():
    found = groups_of(FlattenIntoLinear())
    assert names(found) == ["conv", "hidden"]
    columns = {(m.tensor, m.dim): m.indices for m in found.prunable[0].members}["hidden.weight", 1]
    assert columns == tuple(tuple(range(36 * c, 36 * c + 36)) for c in range(3))


class Concatenation(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(1, 2, 3, padding=1)
        self.b = nn.Conv2d(1, 3, 3, padding=1)
        self.c = nn.Conv2d(5, 4, 1)
        self.out = nn.Linear(4, 2)

    def forward(self, x):
        y = torch.relu(self.c(torch.cat([self.a(x), self.b(x)], dim=1)))
        return self.out(y.mean((2, 3)))


def test_concatenated_channels_stay_apart():
    found = groups_of(Concatenation())
    assert names(found) == ["a", "b", "c"]
    indices = {(g.name, m.tensor, m.dim): m.indices for g in found.prunable for m in g.members}
    assert indices["a", "c.weight", 1] == ((0,), (1,))
    assert indices["b", "c.weight", 1] == ((2,), (3,), (4,))


class Grouped(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(1, 6, 3, padding=1)
        self.grouped = nn.Conv2d(6, 9, 3, padding=1, groups=3)
        self.wide = nn.Conv2d(9, 18, 3, padding=1, groups=9)
        self.out = nn.Linear(18, 2)

    def forward(self, x):
        return self.out(self.wide(torch.relu(self.grouped(self.a(x)))).mean((2, 3)))


def test_a_grouped_convolution_loses_whole_groups():
    (group,) = groups_of(Grouped()).prunable
    assert group.n_channels == 3
    indices = {(m.tensor, m.dim): m.indices for m in group.members}
    assert indices["a.weight", 0] == ((0, 1), (2, 3), (4, 5))
    assert indices["grouped.weight", 0] == ((0, 1, 2), (3, 4, 5), (6, 7, 8))
    assert indices["wide.weight", 0][1] == (6, 7, 8, 9, 10, 11)
    assert indices["out.weight", 1][2] == (12, 13, 14, 15, 16, 17)
    assert ("grouped.weight", 1) not in indices


class Mixture(nn.Module):
    """Takes the softmax over channels, which is not followed, and multiplies by a vector of them, which is."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.gain = nn.Parameter(torch.ones(4, 1, 1))
        self.second = nn.Conv2d(4, 6, 3, padding=1)
        self.out = nn.Linear(6, 2)

    def forward(self, x):
        y = self.second(self.first(x) * self.gain)
        y = y.view(y.shape[0], 2, 3, 12, 12).softmax(1).view(y.shape[0], 6, 12, 12)
        return self.out(y.mean((2, 3)))


def test_what_is_not_understood_fixes_its_channels_and_says_so():
    found = groups_of(Mixture())
    assert names(found) == ["first"]
    assert ("gain", 0) in members(found.prunable[0])
    reasons = {g.name: g.reason for g in found.fixed}
    assert reasons["second"] == "they can't be followed through softmax"


class Joint(nn.Module):
    """Query, key and value of one layer, in parts; frames that a layer of no known kind has made."""

    def __init__(self):
        super().__init__()
        self.made = nn.LSTM(3, 8, proj_size=4, batch_first=True)  # stays torch's
        self.joint, self.mixed, self.out = nn.Linear(4, 3 * 12), nn.Linear(12, 6), nn.Linear(6, 2)
        self.norm = nn.RMSNorm(6)

    def forward(self, x):
        parts = self.joint(self.made(x)[0]).chunk(3, dim=-1)
        query, key, value = (p.view(p.shape[0], p.shape[1], -1, 4).transpose(1, 2) for p in parts)
        found = ((query @ key.transpose(-2, -1)).softmax(-1) @ value).transpose(1, 2).flatten(2)
        return self.out(self.norm(self.mixed(found)).mean(1))


def test_parts_of_one_layer_lose_a_head_each_and_what_is_not_known_is_named():
    traced = trace(Joint().eval(), (InputSpec("input", (5, 3)),))
    (heads,), fixed = channel_groups(traced).prunable, channel_groups(traced).fixed
    assert (heads.name, heads.unit, heads.n_channels) == ("joint", "heads", 3)
    rows = next(m for m in heads.members if (m.tensor, m.dim) == ("joint.weight", 0)).indices
    assert rows[1] == (4, 5, 6, 7, 16, 17, 18, 19, 28, 29, 30, 31)
    reasons = {group.name: group.reason for group in fixed}
    assert reasons["mixed"].startswith("a layer normalisation takes them together")
    assert reasons["made"] == "they can't be followed through made (lstm)"
    wide = channel_groups(traced, through_layer_norm=True).prunable
    assert [(g.name, g.n_channels) for g in wide] == [("joint", 3), ("mixed", 6)]


class Residual(nn.Module):
    """A residual connection around the network's own input, whose channels nobody may take."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.out = nn.Linear(3, 2)

    def forward(self, x):
        return self.out((x + self.conv(x)).mean((2, 3)))


def test_channels_added_to_the_input_are_fixed():
    found = groups_of(Residual(), (3, 8, 8))
    assert found.prunable == ()
    assert {g.name for g in found.fixed} == {"conv", "out"}


class Shared(nn.Module):
    """One layer that runs twice: its inputs are its outputs."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(5, 4)
        self.again = nn.Linear(4, 4)
        self.out = nn.Linear(4, 2)

    def forward(self, x):
        return self.out(torch.relu(self.again(torch.relu(self.again(self.first(x))))))


def test_a_layer_that_runs_twice_joins_its_inputs_and_outputs():
    (group,) = groups_of(Shared(), (5,)).prunable
    assert group.layers == ("first", "again")
    assert {("again.weight", 0), ("again.weight", 1), ("out.weight", 1)} <= members(group)


class Parts(nn.Module):
    """Two layers whose results are stacked, selected and sliced."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.last = nn.Linear(5, 6), nn.Linear(5, 6), nn.Linear(12, 3)

    def forward(self, x):
        both = torch.stack([self.one(x), self.two(x)[:, :6]])
        rows = both[-1:].unsqueeze(2).squeeze(2)
        return self.last(torch.cat([both[0], rows[0]], dim=1).relu())


def test_channels_are_followed_through_stacks_places_and_new_dimensions():
    module = Parts().eval()
    traced = trace(module, (InputSpec("input", (5,)),))
    (group,) = channel_groups(traced).prunable
    assert group.n_channels == 6
    before, x = module(torch.randn(4, 5)), torch.randn(4, 5)
    smaller = remove_channels(module, [(group, (1, 4))])
    masked = Parts().eval()
    masked.load_state_dict(module.state_dict())
    with torch.no_grad():
        for layer in (masked.one, masked.two):
            layer.weight[[1, 4]], layer.bias[[1, 4]] = 0.0, 0.0
    assert before.shape == (4, 3)
    assert smaller.one.weight.shape == (4, 5)
    torch.testing.assert_close(smaller(x), masked(x))
