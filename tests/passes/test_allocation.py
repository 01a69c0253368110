"""Budgets are kept, at less damage than the same share of every layer does, and refused where they can't be."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from armlet.analysis.cost import cost_of
from armlet.analysis.graph import trace
from armlet.analysis.groups import channel_groups
from armlet.artifacts import Latency, ProgramCost
from armlet.passes import PreconditionFailed, run_pass
from armlet.passes.prune.allocation import Ranked
from armlet.spec.passes import PruneChannels
from armlet.train import predict


def prune(**options: object) -> PruneChannels:
    return PruneChannels(kind="prune_channels", **options)


@pytest.mark.parametrize("name", ["macs", "parameters"])
@pytest.mark.parametrize("share", [0.75, 0.4, 0.15])
def test_a_share_is_kept_and_nearly_used(name, share, tiny_network, context):
    network = tiny_network(channels=[16, 24], depth=2)
    pruned, record = run_pass(prune(**{name: share}), network, context(network))
    before, after = (getattr(cost, name) for cost in (record.before, record.after))
    assert after <= share * before
    assert after >= 0.6 * share * before  # steps are eighths of a layer
    assert cost_of(pruned) == record.after


@pytest.mark.parametrize("name", ["macs", "parameters"])
def test_a_number_is_kept_as_the_share_that_it_is(name, tiny_network, context):
    network = tiny_network(channels=[16, 24], depth=2)
    own = getattr(cost_of(network), name)
    most = round(0.4 * own)
    _, by_number = run_pass(prune(**{name: most}), network, context(network))
    _, by_share = run_pass(prune(**{name: most / own}), network, context(network))
    assert 0.6 * most <= getattr(by_number.after, name) <= most
    assert by_number.after == by_share.after


def test_bytes_are_kept(tiny_network, context):
    network = tiny_network(channels=[16, 24], depth=2)
    _, record = run_pass(prune(bytes="8 KiB"), network, context(network))
    assert 0.6 * 8192 <= record.after.weight_bytes <= 8192 < record.before.weight_bytes
    assert any(note.startswith("bytes: ") and note.endswith(" KiB") for note in record.notes)


def test_a_budget_that_already_holds_changes_nothing(tiny_network, context):
    network = tiny_network()
    _, record = run_pass(prune(macs=1.0), network, context(network))
    assert not record.changed


def test_a_budget_that_can_not_be_reached_says_what_can(tiny_network, context):
    network = tiny_network()
    with pytest.raises(PreconditionFailed) as caught:
        run_pass(prune(macs=0.001), network, context(network))
    said = re.search(r"MACs (\S+) k? ?can't be reached: .* it is (\S+ \S*), of (\S+ \S*)", str(caught.value))
    assert said, str(caught.value)


def test_what_matters_less_goes_first(tiny_network, context, splits):
    """Half of the second stage's channels are never read: they go, and the answers hardly move."""
    network = tiny_network(channels=[12, 24])
    with torch.no_grad():
        network.module.classifier.weight[:, :12] = 0
        network.module.stage2.block1.conv.weight[:12] *= 1e-3
    pruned, record = run_pass(prune(macs=0.6), network, context(network))
    uniform, ratio = network, 0.0
    while cost_of(uniform).macs > record.after.macs:
        ratio += 0.05
        uniform, _ = run_pass(prune(ratio=ratio), network, context(network))
    inputs = (torch.from_numpy(splits.test.inputs[0]),)
    expected = predict(network.module, inputs)
    moved = [float((predict(n.module, inputs) - expected).abs().mean()) for n in (pruned, uniform)]
    assert moved[0] < 0.2 * moved[1]


def test_time_on_a_target_is_asked_of_the_context_and_kept(tiny_network, context):
    asked = []

    def program_cost(network, target):
        asked.append(target)
        ms = 1e-5 * cost_of(network).macs + 0.1  # a start that no pruning saves
        return ProgramCost(target, 0, 0, Latency("estimated", 0.8 * ms, ms, 1.2 * ms, "by formula"))

    network = tiny_network(channels=[16, 24], depth=2)
    given = replace(context(network), program_cost=program_cost)
    whole = program_cost(network, "board").latency.high_ms
    pruned, record = run_pass(prune(latency=f"{whole / 2} ms", target="board"), network, given)
    assert set(asked) == {"board"}
    assert 0.3 * whole <= program_cost(pruned, "board").latency.high_ms <= whole / 2
    assert any(note.startswith("latency on board: ") for note in record.notes)
    with pytest.raises(PreconditionFailed, match=r"latency on board 0\.1 ms can't be reached"):
        run_pass(prune(latency="0.1 ms", target="board"), network, given)


def test_time_without_a_tool_chain_is_refused(tiny_network, context):
    network = tiny_network()
    with pytest.raises(PreconditionFailed, match="needs a context that can compile"):
        run_pass(prune(latency="1 ms", target="board"), network, context(network))


def test_rounds_divide_the_way_and_the_epochs(tiny_network, context):
    network = tiny_network(channels=[16, 24])
    finetune = {"epochs": 4, "batch_size": 64, "learning_rate": 1e-3}
    _, record = run_pass(prune(macs=0.3, steps=2, finetune=finetune), network, context(network))
    assert record.after.macs <= 0.3 * record.before.macs
    assert [epoch.epoch for epoch in record.history] == [1, 2, 3, 4]


@pytest.mark.parametrize(("channels", "round_to"), [([6, 10], 1), ([16, 64], 8)])
def test_rounds_remove_what_one_does_and_train_every_epoch(channels, round_to, tiny_network, context):
    """Rounding leaves nothing behind, in small groups either, and a round without channels keeps its epochs."""
    network = tiny_network(channels=channels)
    finetune = {"epochs": 5, "batch_size": 64, "learning_rate": 1e-3}
    _, once = run_pass(prune(ratio=0.5, round_to=round_to), network, context(network))
    options = prune(ratio=0.5, round_to=round_to, steps=4, finetune=finetune)
    _, record = run_pass(options, network, context(network))
    assert record.after == once.after
    assert [epoch.epoch for epoch in record.history] == [1, 2, 3, 4, 5]


def test_steps_of_a_curve_keep_a_channel_and_the_multiple(tiny_network):
    (group, *_) = channel_groups(
        trace((network := tiny_network(channels=[20, 8])).module, network.architecture.inputs)
    ).prunable
    order = tuple(range(group.n_channels))
    assert Ranked(group, order).counts() == (0, 2, 5, 7, 10, 12, 15, 17)
    assert Ranked(group, order, multiple=8).counts() == (0, 4, 12)
    assert max(Ranked(group, order, multiple=32).counts()) == 0
    assert max(Ranked(replace(group, n_channels=9, least=2), order[:9]).counts()) == 7
    assert np.all(np.diff(Ranked(group, order).counts()) > 0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "has none of ratio, macs, parameters, bytes, latency: give exactly one"),
        ({"ratio": 0.5, "macs": 0.5}, "has ratio and macs of"),
        ({"latency": "5 ms"}, "latency and target go together"),
        ({"ratio": 0.5, "target": "host"}, "latency and target go together"),
        ({"ratio": 0.5, "round_to": "vector"}, "round_to: vector needs target, whose vectors"),
        ({"latency": "5 ms", "round_to": "vector"}, "round_to: vector needs target, whose vectors"),
        ({"ratio": 0.5, "round_to": "register", "target": "host"}, "vector"),
        ({"macs": 0.5, "scope": "global"}, "scope: global ranks with a ratio"),
        ({"ratio": 0.5, "steps": 3}, "needs finetune with at least as many epochs"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, said):
    with pytest.raises(ValidationError, match=said):
        prune(**options)
