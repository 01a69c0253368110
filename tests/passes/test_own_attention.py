"""Attention in modules of the user's own: pruned head by head and computed on integers, whoever wrote it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.families.conftest import LENGTH, Case, answers, on_host, own, program, quantized
from tests.passes.test_families import context_of
from tests.passes.test_prune_families import check_pruned
from torch import Tensor, nn
from torch.nn import functional

from armlet.analysis.graph import trace
from armlet.analysis.groups import ChannelGroups, channel_groups
from armlet.artifacts import InputSpec
from armlet.models.network import Network, load_network, save_network
from armlet.models.torch_layers import with_own_layers
from armlet.passes import run_pass
from armlet.passes.quantize.placement import place
from armlet.spec.passes import PruneChannels

FRAMES = (InputSpec("input", (10, 3)),)
SIZES = {"n_inputs": 3, "width": 16, "heads": 4, "n_outputs": 4}
ENCODER = Case("module", own("Encoder", **SIZES, depth=2, causal=True), FRAMES)
CASES = [
    ENCODER,
    Case("module", own("Encoder", **SIZES, norm_first=False), FRAMES),
    Case("module", own("Encoder", **SIZES, frames_first=True), FRAMES),
    Case("module", own("Attends", **SIZES), FRAMES),
    Case("module", own("Attends", **SIZES, causal=True), FRAMES),
    Case("module", own("Filled", **SIZES), FRAMES),
    Case("module", own("Filled", **SIZES, fill="-1e9", where=True), FRAMES),
]


def groups_of(module: nn.Module, **options: bool) -> ChannelGroups:
    return channel_groups(trace(module, FRAMES), **options)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_heads_and_hidden_units_go_and_the_rest_answers_as_before(case: Case) -> None:
    module = case.build().module
    found = {g.name: (g.unit, g.n_channels) for g in groups_of(module).prunable}
    if "Encoder" in str(case):
        for n in range(len(module.encoder.layers)):
            assert found.pop(f"encoder.layers.{n}.self_attn.query") == ("heads", 4)
            assert found.pop(f"encoder.layers.{n}.linear1") == ("units", 32)
        assert found == {}
        width = [g for g in groups_of(module, through_layer_norm=True).prunable if g.name == "embed"]
        assert [g.n_channels for g in width] == [16]
    else:
        inner = {"mixed": ("units", 16)} if "Filled" in str(case) else {"embed": ("units", 16)}
        assert found == {"query": ("heads", 4)} | inner
    assert check_pruned(module, FRAMES, tuple(map(torch.from_numpy, case.samples().inputs)))


@pytest.mark.parametrize("factory", ["Encoder", "Filled"])
def test_behind_a_length_nothing_counts_and_heads_go_as_well(factory: str) -> None:
    case = Case("module", own(factory, **SIZES), (*FRAMES, LENGTH))
    module = case.build().module
    frames, length = map(torch.from_numpy, case.samples().inputs)
    behind = torch.arange(10)[None] >= length[:, None]
    with torch.no_grad():
        other = module(torch.where(behind[:, :, None], 1e3, frames), length)
        torch.testing.assert_close(other, module(frames, length))
    assert {g.unit for g, _ in check_pruned(module, case.inputs, (frames, length))} == {"heads", "units"}


def test_a_head_is_in_query_key_value_and_output() -> None:
    heads = next(g for g in groups_of(ENCODER.build().module).prunable if g.unit == "heads")
    rows = {(m.tensor.removeprefix("encoder.layers.0.self_attn."), m.dim): m.indices for m in heads.members}
    whole = tuple(tuple(range(4 * head, 4 * head + 4)) for head in range(4))
    weights = {("query.weight", 0), ("key.weight", 0), ("value.weight", 0), ("output.weight", 1)}
    assert rows == dict.fromkeys(weights | {(f"{n}.bias", 0) for n in ("query", "key", "value")}, whole)


@pytest.mark.parametrize("case", [ENCODER, *CASES[-2:]], ids=str)
def test_pruned_and_quantised_it_is_loaded_again_and_computes_on_integers(case: Case, tmp_path: Path) -> None:
    network, samples = case.build(), case.samples()
    options = PruneChannels(kind="prune_channels", ratio=0.5, through_layer_norm=True)
    pruned, record = run_pass(options, network, context_of(case, network, tmp_path / "work"))
    assert record.after.parameters < 0.5 * record.before.parameters
    save_network(pruned, tmp_path / "saved")
    loaded = load_network(tmp_path / "saved")
    assert np.array_equal(answers(loaded, samples), answers(pruned, samples))
    small = quantized(loaded, samples)
    compiled = program(small, samples, tmp_path)
    assert compiled.integer_only
    steps = np.abs(on_host(compiled, tmp_path, samples) - answers(small, samples))
    steps /= next(reversed(small.quantization.activations)).scale
    assert steps.max() < 2.5  # halves are rounded away here, and to even numbers in torch
    assert np.median(steps) == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_nothing_of_it_stays_float(case: Case) -> None:
    assert place(trace(case.build().module, FRAMES), ()).notes == ()


def test_quantisation_in_training_computes_it_on_integers(tmp_path: Path) -> None:
    samples = ENCODER.samples()
    train = {"epochs": 1, "batch_size": 8}
    options = {"kind": "quantize_aware", "calibration_samples": 24, "train": train}
    assert program(
        quantized(ENCODER.build(), samples, options, tmp_path / "work"), samples, tmp_path
    ).integer_only


@pytest.mark.parametrize("view", ["heads", "both"])
def test_code_that_holds_the_number_of_heads_keeps_them(view: str, tmp_path: Path) -> None:
    case = Case("module", own("Attends", **SIZES, view=view), FRAMES)
    network = case.build()
    options = PruneChannels(kind="prune_channels", ratio=0.5)
    pruned, record = run_pass(options, network, context_of(case, network, tmp_path))
    (note,) = [n for n in record.notes if n.startswith("query")]
    assert "query keeps its channels: the network's own code holds how many there are" in note
    assert (pruned.module.query.out_features, pruned.module.embed.out_features) == (16, 8)


class Shared(nn.Module):
    """Attends to three vectors of its own, and hands the mean of all heads' shares on."""

    def __init__(self, options: dict[str, object], n_shares: int) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 8)
        self.keys = nn.Parameter(torch.randn(1, 3, 8))
        self.attention = with_own_layers(nn.MultiheadAttention(8, 2, batch_first=True, **options))
        self.answer, self.n_shares = nn.Linear(8 + n_shares, 4), n_shares

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x)
        keys = self.keys.expand(x.shape[0], -1, -1)
        found, shares = self.attention(tokens, keys, keys)
        found = torch.cat([found, shares], dim=2) if self.n_shares else found
        return self.answer(found.mean(dim=1))


def test_heads_stay_whose_shares_are_read_or_that_stay_torchs() -> None:
    read = groups_of(Shared({}, 3).eval())
    assert ("attention.query", "they can't be followed through attention (mean)") in {
        (g.name, g.reason) for g in read.fixed
    }
    plain = groups_of(Shared({}, 0).eval()).prunable
    assert [g.name for g in plain] == ["embed", "attention.query", "attention.output"]
    assert groups_of(Shared({"add_zero_attn": True}, 0).eval()).prunable == ()


class OwnMasks(nn.Module):
    """Each head sees other tokens."""

    def __init__(self, computed: bool) -> None:
        super().__init__()
        self.project, self.answer, self.computed = nn.Linear(3, 24), nn.Linear(8, 4), computed
        hidden = torch.rand(1, 2, 10, 10) < 0.4
        self.mask = nn.Buffer(torch.zeros(1, 2, 10, 10).masked_fill(hidden & ~torch.eye(10).bool(), -1e9))

    def forward(self, x: Tensor) -> Tensor:
        found = self.project(x).reshape(-1, 10, 3, 2, 4).permute(2, 0, 3, 1, 4)
        mask = self.mask + 0 * x[:, None, :, :1] if self.computed else self.mask
        found = functional.scaled_dot_product_attention(found[0], found[1], found[2], mask)
        return self.answer(found.transpose(1, 2).reshape(-1, 10, 8).mean(dim=1))


@pytest.mark.parametrize("computed", [False, True])
def test_a_mask_for_each_head_is_no_integer_and_keeps_the_heads(computed: bool, tmp_path: Path) -> None:
    module = OwnMasks(computed).eval()
    assert groups_of(module).prunable == ()
    samples = ENCODER.samples()
    network = quantized(Network(module, replace(ENCODER.build().architecture, output_shape=(4,))), samples)
    assert max(a.scale for a in network.quantization.activations) < 1
    compiled = program(network, samples, tmp_path)
    assert compiled.integer_only == (not computed)
    difference = np.abs(on_host(compiled, tmp_path, samples) - answers(network, samples))
    assert difference.max() < 2.5 * next(reversed(network.quantization.activations)).scale
