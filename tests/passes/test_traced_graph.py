"""The operator graph that analyses and rewrites start from."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from armlet.analysis.graph import layer_name, trace
from armlet.artifacts import InputSpec
from armlet.errors import UnsupportedOperator


def test_the_traced_graph_computes_what_the_module_computes_for_any_batch(network, splits):
    runnable = trace(network.module, network.architecture.inputs).runnable()
    for n in (1, 2, 7):
        inputs = torch.from_numpy(splits.test.inputs[0][:n])
        with torch.no_grad():
            torch.testing.assert_close(runnable(inputs), network.module(inputs), rtol=0, atol=0)


def test_names_are_the_same_each_time(network):
    shape = network.architecture.inputs
    first, second = ([n.name for n in trace(network.module, shape).nodes] for _ in range(2))
    assert first == second


def test_observed_values_come_in_the_order_asked_for(tiny_network, splits):
    traced = trace(tiny_network().module, (InputSpec("input", (1, 12, 12)),))
    inputs = torch.from_numpy(splits.test.inputs[0][:3])
    answers, conv, given = traced.runnable(observed=("linear", "conv2d", "input"))(inputs)
    assert answers.shape == (3, 4)
    assert conv.shape == (3, 6, 12, 12)
    assert torch.equal(given, inputs)


def test_dropout_is_left_out(tiny_network):
    traced = trace(tiny_network("fnn", dropout=0.5).module, (InputSpec("input", (1, 12, 12)),))
    assert not [n for n in traced.nodes if "dropout" in n.name]


def test_nodes_are_known_by_their_modules(tiny_network):
    names = [layer_name(n) for n in trace(tiny_network().module, (InputSpec("input", (1, 12, 12)),)).nodes]
    assert "stage1.block1.conv (conv2d)" in names
    assert "classifier (linear)" in names


def test_a_module_in_training_mode_is_refused(tiny_network):
    with pytest.raises(ValueError, match="eval mode"):
        trace(tiny_network().module.train(), (InputSpec("input", (1, 12, 12)),))


class FixedBatch(nn.Module):
    """Works for a batch of two only."""

    def forward(self, x):
        return x.reshape(2, 144)


class Branches(nn.Module):
    """Goes where its input's values say."""

    def forward(self, x):
        return x.flatten(1) if x.sum() > 0 else -x.flatten(1)


@pytest.mark.parametrize("module", [FixedBatch, Branches])
def test_what_has_no_graph_for_any_batch_is_refused_by_name(module):
    with pytest.raises(UnsupportedOperator, match=f"torch.export can't follow {module.__name__}: "):
        trace(module().eval(), (InputSpec("input", (1, 12, 12)),))
