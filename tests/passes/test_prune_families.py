"""What is pruned of any network answers as the whole one does where nothing reads what is gone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.families.conftest import LENGTH, Case, randomize
from tests.families.test_drawn import FAMILIES, STEADY
from torch import Tensor, nn
from torch.nn import functional

from armlet.analysis.cost import cost_of
from armlet.analysis.graph import trace
from armlet.analysis.groups import ChannelGroup, channel_groups
from armlet.artifacts import InputSpec
from armlet.export import export_onnx, export_stream
from armlet.models.network import Network, load_network, save_network
from armlet.passes.prune.remove import remove_channels

FRAMES = (InputSpec("input", (10, 3)),)
SPEECH = (*FRAMES, LENGTH)
PICTURE = (InputSpec("input", (2, 8, 8)),)
Removals = list[tuple[ChannelGroup, tuple[int, ...]]]


def half_of(groups: tuple[ChannelGroup, ...], seed: int = 0) -> Removals:
    rng = np.random.default_rng(seed)
    return [(g, tuple(sorted(rng.permutation(g.n_channels)[: g.n_channels // 2].tolist()))) for g in groups]


def deaf(module: nn.Module, removals: Removals) -> nn.Module:
    """A copy of the whole network in which nothing reads the channels that are gone."""
    module = copy.deepcopy(module)
    tensors = module.state_dict()
    for group, channels in removals:
        for member in group.members:
            if member.reads:
                gone = [index for channel in channels for index in member.indices[channel]]
                tensors[member.tensor].index_fill_(member.dim, torch.tensor(gone, dtype=torch.int64), 0.0)
    return module


def check_pruned(module: nn.Module, specs: tuple[InputSpec, ...], inputs: tuple[Tensor, ...]) -> Removals:
    """Prune half of all that can be pruned, and compare."""
    removals = half_of(channel_groups(trace(module, specs)).prunable)
    with torch.no_grad():
        smaller = remove_channels(module, removals)
        expected, found = deaf(module, removals)(*inputs), smaller(*inputs)
    # Sums of fewer terms in another order: some roundings of float32.
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5 * max(1.0, float(expected.abs().max())))
    assert sum(p.numel() for p in smaller.parameters()) <= sum(p.numel() for p in module.parameters())
    return removals


@pytest.mark.parametrize("family", FAMILIES)
def test_a_drawn_network_of_any_family_loses_half_of_everything(family: str) -> None:
    pruned = []

    @settings(STEADY, max_examples=12)
    @given(FAMILIES[family])
    def check(case: Case) -> None:
        inputs = tuple(map(torch.from_numpy, case.samples().inputs))
        pruned.extend(check_pruned(case.build().module, case.inputs, inputs))

    check()
    assert sum(len(channels) for _, channels in pruned) >= 20  # or it proves nothing


KEPT_WHOLE = [
    Case("fnn", {"hidden": [16, 8]}, (InputSpec("input", (9,)),)),
    Case("cnn", {"channels": [8, 12], "block": "residual"}, PICTURE),
    Case("rnn", {"cell": "gru", "hidden": [8, 6], "bidirectional": True}, SPEECH),
    Case("lstm", {"hidden": [8, 6], "projection": 4}, SPEECH),
    Case("transformer", {"width": 16, "heads": 4, "depth": 2, "patch": 1, "causal": True}, SPEECH),
    Case("autoencoder", {"channels": [4, 8], "code": 6, "variational": True}, PICTURE, (2, 8, 8)),
    Case("gan", {"channels": [8, 4]}, (InputSpec("input", (8,)),), (1, 8, 8)),
]


def halved(case: Case) -> Network:
    network = case.build()
    groups = channel_groups(trace(network.module, case.inputs)).prunable
    return replace(network, module=remove_channels(network.module, half_of(groups)))


@pytest.mark.parametrize("case", KEPT_WHOLE, ids=str)
def test_a_pruned_network_is_loaded_again_and_exported(case: Case, tmp_path: Path) -> None:
    smaller, samples = halved(case), case.samples()
    save_network(smaller, tmp_path / "saved")
    loaded = load_network(tmp_path / "saved")
    inputs = tuple(map(torch.from_numpy, samples.inputs))
    with torch.no_grad():
        torch.testing.assert_close(loaded.module(*inputs), smaller.module(*inputs), rtol=0, atol=0)
    export_onnx(loaded, samples, tmp_path)  # compares with ONNX Runtime
    whole, pruned = cost_of(case.build()), cost_of(loaded)
    assert pruned.macs < 0.75 * whole.macs
    assert pruned.parameters < 0.75 * whole.parameters


@pytest.mark.parametrize("case", [c for c in KEPT_WHOLE if c.family in ("lstm", "transformer")], ids=str)
def test_a_pruned_network_still_takes_a_sequence_step_by_step(case: Case, tmp_path: Path) -> None:
    export_stream(halved(case), case.samples(), 2, tmp_path)  # compares every step with the whole network


@pytest.mark.parametrize("cell", ["elman", "gru", "lstm"])
def test_hidden_units_go_with_all_gates_in_both_directions_and_from_the_layer_above(cell: str) -> None:
    family, options = ("lstm", {}) if cell == "lstm" else ("rnn", {"cell": cell})
    case = Case(family, {**options, "hidden": [8, 6], "bidirectional": True}, FRAMES)
    network = case.build()
    first, second = channel_groups(trace(network.module, FRAMES)).prunable
    assert (first.unit, first.n_channels, second.n_channels) == ("hidden units", 8, 6)
    smaller = remove_channels(network.module, [(first, (0, 3, 5)), (second, (1, 2))])
    gates = {"elman": 1, "gru": 3, "lstm": 4}[cell]
    shapes = {name: tuple(value.shape) for name, value in smaller.named_parameters()}
    assert shapes == {
        "layers.0.0.weight": (2, gates * 5, 3),
        "layers.0.0.recurrent_weight": (2, gates * 5, 5),
        "layers.0.0.bias": (2, 2 * gates * 5),
        "layers.1.0.weight": (2, gates * 4, 10),
        "layers.1.0.recurrent_weight": (2, gates * 4, 4),
        "layers.1.0.bias": (2, 2 * gates * 4),
        "classifier.weight": (4, 8),
        "classifier.bias": (4,),
    }


def test_attention_loses_whole_heads_and_says_so() -> None:
    case = next(c for c in KEPT_WHOLE if c.family == "transformer")
    groups = channel_groups(trace(case.build().module, case.inputs))
    heads = [g for g in groups.prunable if g.unit == "heads"]
    assert [(g.name, g.n_channels) for g in heads] == [(f"blocks.{n}.attention.query", 4) for n in range(2)]
    rows = {(m.tensor, m.dim): m.indices for m in heads[0].members}["blocks.0.attention.value.weight", 0]
    assert rows == tuple(tuple(range(4 * head, 4 * head + 4)) for head in range(4))
    assert "layer normalisation" in groups.fixed[0].reason


def test_the_last_head_of_an_attention_is_followed_too() -> None:
    case = Case("transformer", {"width": 16, "heads": 1, "depth": 1, "patch": 1}, SPEECH)
    traced = trace(case.build().module, case.inputs)
    groups = channel_groups(traced, through_layer_norm=True).prunable
    assert [(g.name, g.n_channels, g.unit) for g in groups] == [
        ("embedding.embed", 16, "units"),
        ("blocks.0.attention.query", 1, "heads"),
        ("blocks.0.feed_forward.expand", 32, "units"),
    ]


def test_what_works_in_training_only_is_pruned_alike() -> None:
    case = next(c for c in KEPT_WHOLE if c.family == "autoencoder")
    module = halved(case).module
    assert module.spread.weight.shape == module.bottleneck.weight.shape
    answer, divergence = module.train()(torch.rand(3, 2, 8, 8))
    assert answer.shape == (3, 2, 8, 8)
    assert torch.isfinite(divergence)


class Normalised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(5, 8), nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.norm(self.first(x))))


def test_through_a_layer_normalisation_the_rest_is_normalised_without_what_is_gone() -> None:
    torch.manual_seed(0)
    inputs, specs = torch.randn(6, 5), (InputSpec("input", (5,)),)
    module = randomize(Normalised(), (inputs,))
    assert channel_groups(trace(module, specs)).prunable == ()
    (group,) = channel_groups(trace(module, specs), through_layer_norm=True).prunable
    gone, kept = (1, 4, 6), [0, 2, 3, 5, 7]
    with torch.no_grad():
        found = remove_channels(module, [(group, gone)])(inputs)
        hidden = functional.layer_norm(
            module.first(inputs)[:, kept], (5,), module.norm.weight[kept], module.norm.bias[kept]
        )
        expected = functional.linear(torch.relu(hidden), module.last.weight[:, kept], module.last.bias)
    torch.testing.assert_close(found, expected)


class Drawn(nn.Module):
    """A network of pictures whose layers, branches and joints are drawn."""

    def __init__(self, steps: list[tuple[str, int]]) -> None:
        super().__init__()
        width, size, self.steps, layers = 2, 8, [], []
        for kind, number in steps:
            if kind in ("halve", "pool", "frame", "instances") and size == 1:
                continue
            layer, width, size = self._layer(kind, number, width, size)
            self.steps.append(kind)
            layers.append(layer)
        self.layers = nn.ModuleList(layers)
        self.hidden = nn.Linear(width * size * size, 7)
        self.norm, self.answer = nn.BatchNorm1d(7), nn.Linear(7, 3)

    @staticmethod
    def _layer(kind: str, number: int, width: int, size: int) -> tuple[nn.Module, int, int]:
        makers: dict[str, Callable[[], tuple[nn.Module, int, int]]] = {
            "conv": lambda: (nn.Conv2d(width, number, 3, padding=1), number, size),
            "halve": lambda: (nn.Conv2d(width, number, 3, 2, 1), number, (size + 1) // 2),
            "groups": lambda: (
                nn.Conv2d(width, 2 * width, 3, padding=1, groups=width // 2 or 1), 2 * width, size
            ),
            "depthwise": lambda: (nn.Conv2d(width, width, 3, padding=1, groups=width), width, size),
            "double": lambda: (nn.ConvTranspose2d(width, number, 2, 2), number, 2 * size),
            "double_groups": lambda: (nn.ConvTranspose2d(width, width, 2, 2, groups=width), width, 2 * size),
            "branch": lambda: (nn.Conv2d(width, number, 1), width + number, size),
            "norm": lambda: (nn.BatchNorm2d(width), width, size),
            "instances": lambda: (nn.InstanceNorm2d(width, affine=True), width, size),
            "slopes": lambda: (nn.PReLU(width), width, size),
            "frame": lambda: (nn.ReflectionPad2d(1), width, size),
            "pool": lambda: (nn.MaxPool2d(2), width, size // 2),
            **dict.fromkeys(
                ("linear_gate", "halves"), lambda: (nn.Conv2d(width, 2 * number, 1), number, size)
            ),
            **dict.fromkeys(
                ("residual", "gate", "chosen"), lambda: (nn.Conv2d(width, width, 1), width, size)
            ),
        }  # fmt: skip
        return makers[kind]()

    def forward(self, x: Tensor) -> Tensor:
        for kind, layer in zip(self.steps, self.layers, strict=True):
            match kind:
                case "residual":
                    x = x + functional.relu(layer(x))
                case "branch":
                    x = torch.cat([x, layer(x)], dim=1)
                case "gate":
                    x = x * torch.sigmoid(layer(x))
                case "norm" | "pool" | "slopes" | "instances":
                    x = layer(x)
                case "linear_gate":
                    x = functional.glu(layer(x), dim=1)
                case "halves":
                    first, second = layer(x).chunk(2, dim=1)
                    x = torch.maximum(first, second**2)
                case "frame":
                    x = functional.pad(layer(x), (0, 1, 0, 1))[..., 1:-2, 1:-2]
                case "chosen":
                    other = layer(x)
                    x = torch.where(other > 0.1, x, other).masked_fill(x < -1, 0.5)
                case _:
                    x = functional.silu(layer(x))
        return self.answer(functional.elu(self.norm(self.hidden(x.flatten(1)))))


KINDS = [
    "conv", "halve", "groups", "depthwise", "double", "double_groups", "residual", "branch", "gate", "norm",
    "slopes", "pool", "instances", "linear_gate", "halves", "frame", "chosen",
]  # fmt: skip


@settings(STEADY, max_examples=40)
@given(st.lists(st.tuples(st.sampled_from(KINDS), st.integers(2, 6)), min_size=2, max_size=7))
def test_a_drawn_graph_loses_half_of_everything(steps: list[tuple[str, int]]) -> None:
    # Widths that groups divide: the first layer has an even one, and none makes an even one odd but a branch.
    torch.manual_seed(0)
    inputs = torch.randn(5, 2, 8, 8)
    steps = (
        [("conv", 4), *steps] if sum(kind.startswith("double") for kind, _ in steps) < 3 else [("conv", 4)]
    )
    module = randomize(Drawn(steps), (inputs,))
    check_pruned(module, PICTURE, (inputs,))
