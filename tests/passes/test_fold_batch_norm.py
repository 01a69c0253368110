"""Folding batch normalisation: the same function with fewer tensors, and nothing folded that can't be."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from armlet.artifacts import InputSpec
from armlet.passes.quantize.fold_batch_norm import fold_batch_norm


def test_a_folded_network_computes_the_same(network, splits):
    inputs = torch.from_numpy(splits.test.inputs[0])
    folded = fold_batch_norm(network.module, network.architecture.inputs)
    assert len(folded.layers) >= 2
    assert folded.notes == ()
    assert not any(isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) for m in folded.module.modules())
    with torch.no_grad():
        expected = network.module(inputs)
        # float32 rounds the folded weights once more than the normalisation did.
        torch.testing.assert_close(folded.module(inputs), expected, rtol=1e-4, atol=1e-5)
        assert expected.std() > 0.05  # or this would prove nothing


def test_the_network_given_keeps_its_normalisations(network):
    before = {name: value.clone() for name, value in network.module.state_dict().items()}
    fold_batch_norm(network.module, network.architecture.inputs)
    after = network.module.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


class Activated(nn.Module):
    """The normalisation comes behind the activation."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.norm(torch.relu(self.conv(x)))


class ReadTwice(nn.Module):
    """The value before the normalisation is read by another layer too."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3)

    def forward(self, x):
        y = self.conv(x)
        return y + self.norm(y)


class RunsTwice(nn.Module):
    """One normalisation behind two layers."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.norm = nn.Conv2d(1, 3, 3), nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.norm(self.a(x)) + self.norm(self.b(x))


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (Activated, "its input is not the value of one layer for it alone"),
        (ReadTwice, "its input is not the value of one layer for it alone"),
        (RunsTwice, "it or its layer runs more than once"),
    ],
)
def test_what_can_not_be_folded_stays_and_is_named(module, reason, randomized):
    made = randomized(module())
    folded = fold_batch_norm(made, (InputSpec("input", (1, 8, 8)),))
    assert folded.layers == ()
    assert folded.notes
    assert all(
        note.startswith("batch normalisation norm (batch_norm") and reason in note for note in folded.notes
    )
    inputs = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(folded.module(inputs), made(inputs), rtol=0, atol=0)


def test_a_normalisation_without_parameters_folds_too(randomized):
    module = nn.Sequential(nn.Conv2d(1, 3, 3, bias=False), nn.BatchNorm2d(3, affine=False)).eval()
    with torch.no_grad():
        module[1].running_mean.copy_(torch.tensor([0.5, -1.0, 2.0]))
        module[1].running_var.copy_(torch.tensor([0.5, 1.5, 4.0]))
    folded = fold_batch_norm(module, (InputSpec("input", (1, 8, 8)),))
    inputs = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(folded.module(inputs), module(inputs), rtol=1e-5, atol=1e-6)
    assert folded.layers == ("0",)
