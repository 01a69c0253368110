"""Dead units: what goes changed nothing, on the samples or on every input as asked; what changes something stays."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from armlet.analysis.cost import cost_of
from armlet.models.network import Network, load_network, save_network
from armlet.passes import run_pass
from armlet.passes.prune.remove_dead_units import DeadUnitRemoval
from armlet.spec.passes import Factorize, PruneChannels, RemoveDeadUnits


def remove(**options) -> RemoveDeadUnits:
    return RemoveDeadUnits.model_validate({"kind": "remove_dead_units", **options})


def answers(network: Network, inputs: np.ndarray) -> torch.Tensor:
    with torch.no_grad():
        return network.module(torch.from_numpy(inputs))


def silence(network: Network, scale: str, channels: list[int], shift: float | None = None) -> None:
    """Scale channels of a batch normalisation by zero; with a shift they are all the same number instead."""
    norm = network.module.get_submodule(scale)
    with torch.no_grad():
        norm.weight[channels] = 0.0
        norm.bias[channels] = -1.0 if shift is None else shift


def test_units_with_constant_values_go_and_their_share_goes_into_the_bias(
    tiny_network, context, splits, tmp_path
):
    network = tiny_network("fnn")
    silence(network, "layer1.norm", [2, 5, 6], shift=1.5)
    silence(network, "layer2.norm", [0], shift=0.7)
    result, record = run_pass(remove(proof="weights"), network, context(network))
    assert result.module.layer1.linear.weight.shape == (11, 144)
    assert result.module.layer2.linear.weight.shape == (8, 11)
    assert result.module.layer2.linear.bias is not None  # it had none: a normalisation follows
    notes = "\n".join(record.notes)
    assert (
        "layer1.linear: 3 of 14 channels removed, the same in all 192 samples; 3 of them for every" in notes
    )
    # For inputs that are not like the samples, too.
    inputs = np.random.default_rng(7).normal(2, 5, splits.test.inputs[0].shape).astype("float32")
    torch.testing.assert_close(answers(result, inputs), answers(network, inputs), rtol=1e-5, atol=1e-5)
    save_network(result, tmp_path)
    assert torch.equal(answers(load_network(tmp_path), inputs), answers(result, inputs))
    assert record.after.parameters < record.before.parameters


def test_a_unit_that_never_fires_on_the_samples_goes_unless_a_proof_is_asked_for(
    tiny_network, context, splits
):
    network = tiny_network("fnn")
    with torch.no_grad():
        network.module.layer1.norm.bias[[3, 4]] = -1000.0  # it could fire, for inputs far off
    kept, record = run_pass(remove(proof="weights"), network, context(network))
    assert not record.changed
    assert "no channel is without information" in record.notes
    result, record = run_pass(remove(), network, context(network))
    with torch.no_grad():
        values = network.module[:2](torch.from_numpy(splits.train.inputs[0]))
    n_constant = int((values.amin(0) == values.amax(0)).sum())  # the two, and any that is so by chance
    assert n_constant >= 2
    assert f"{n_constant} of 14 channels removed, the same in all 192 samples; 0 of them" in record.notes[0]
    test = splits.test.inputs[0]
    torch.testing.assert_close(answers(result, test), answers(network, test), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(answers(result, test * 2000), answers(kept, test * 2000), rtol=0.01)


def test_zeros_go_through_padded_convolutions_and_other_constants_stay(tiny_network, context, splits):
    network = tiny_network(depth=2)
    silence(network, "stage1.block1.norm", [1])
    silence(network, "stage1.block1.norm", [2], shift=0.8)
    result, record = run_pass(remove(), network, context(network))
    assert result.module.stage1.block1.norm.num_features == 5
    assert any(note.startswith("stage1.block1.conv: 1 of 6 channels removed") for note in record.notes)
    inputs = splits.test.inputs[0]
    torch.testing.assert_close(answers(result, inputs), answers(network, inputs), rtol=1e-5, atol=1e-5)


def test_a_depthwise_convolution_goes_with_its_channel(tiny_network, context, splits):
    network = tiny_network(block="separable", depth=1)
    silence(network, "stem.norm", [1])
    result, _ = run_pass(remove(proof="samples"), network, context(network))
    left = result.module.stem.norm.num_features  # maybe one more of the six is so by chance
    assert left == result.module.stage1.block1.depthwise.groups <= 5
    inputs = splits.test.inputs[0]
    torch.testing.assert_close(answers(result, inputs), answers(network, inputs), rtol=1e-5, atol=1e-5)


class Sum(nn.Module):
    """Two branches that add up, read by a convolution without padding and, flattened, by a linear layer."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(1, 6, 3, padding=1)
        self.b = nn.Conv2d(1, 6, 1)
        self.c = nn.Conv2d(6, 5, 3, stride=3, bias=False)
        self.out = nn.Linear(5 * 16, 4)

    def forward(self, x):
        y = torch.relu(self.a(x)) + self.b(x)
        return self.out(torch.flatten(functional.silu(self.c(y)), 1))


def partly_constant() -> nn.Module:
    torch.manual_seed(0)
    module = Sum().eval()
    with torch.no_grad():
        for branch, channels in ((module.a, [0, 1, 2]), (module.b, [1, 2, 3])):
            branch.weight[channels] = 0.0
            branch.bias[channels] = 0.4
        module.c.weight[3] = 0.0
    return module


def test_a_channel_of_a_sum_goes_only_where_both_are_constant(tiny_network, context, splits):
    network, same = (replace(tiny_network(), module=partly_constant()) for _ in range(2))
    step = DeadUnitRemoval("weights", 64, ())
    result = step.run(network, context(network))
    assert result.network.module.a.weight.shape[0] == 4
    assert result.network.module.c.weight.shape == (4, 4, 3, 3)
    assert result.network.module.out.weight.shape == (4, 4 * 16)
    inputs = splits.test.inputs[0] * 3
    torch.testing.assert_close(answers(result.network, inputs), answers(same, inputs), rtol=1e-5, atol=1e-5)


def test_a_depthwise_convolution_of_constants_keeps_two_groups(tiny_network, context, splits):
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(1, 6, 3),
        nn.Conv2d(6, 6, 3, groups=6),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 4),
    ).eval()
    with torch.no_grad():
        module[0].weight.zero_()
        module[1].weight.zero_()
    network = replace(tiny_network(), module=module)
    smaller, _ = run_pass(remove(), network, context(network))
    assert (smaller.module[0].out_channels, smaller.module[1].groups) == (2, 2)
    inputs = splits.test.inputs[0]
    torch.testing.assert_close(answers(smaller, inputs), answers(network, inputs), rtol=1e-5, atol=1e-6)


def test_a_layer_of_constants_keeps_one_channel(tiny_network, context):
    network = tiny_network("fnn")
    silence(network, "layer2.norm", list(range(9)))
    result, _ = run_pass(remove(), network, context(network))
    assert result.module.layer2.linear.weight.shape[0] == 1


def test_an_excluded_layer_is_left_as_it_is(tiny_network, context):
    network = tiny_network("fnn")
    silence(network, "layer1.norm", [2])
    _, record = run_pass(remove(exclude=["layer*"]), network, context(network))
    assert "layer1.linear is left as it is: excluded" in record.notes
    assert not record.changed


def test_it_goes_before_and_after_other_passes(tiny_network, context):
    network = tiny_network("fnn", hidden=[24, 24])
    silence(network, "layer1.norm", [2, 3], shift=1.0)
    steps = [
        remove(),
        PruneChannels(kind="prune_channels", ratio=0.25),
        Factorize.model_validate({"kind": "factorize", "ratio": 0.8}),
        remove(),
    ]
    result = network
    for step in steps:
        result, _ = run_pass(step, result, context(network))
    assert cost_of(result).parameters < 0.5 * cost_of(network).parameters
