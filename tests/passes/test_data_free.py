"""Ranges without data: the moments against closed forms and against values that are really drawn."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

from armlet.analysis.graph import trace
from armlet.artifacts import InputSpec
from armlet.data.splits import Samples
from armlet.models.network import executable
from armlet.passes import PreconditionFailed, run_pass
from armlet.passes.quantize.data_free import distributions
from armlet.passes.quantize.fold_batch_norm import fold_batch_norm
from armlet.passes.quantize.ranges import values_of
from armlet.spec.passes import QuantizeStatic

PICTURE = (InputSpec("input", (1, 12, 12)),)


def with_statistics(module: nn.Module, *inputs: torch.Tensor) -> nn.Module:
    """Give batch normalisations the statistics of some inputs."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            layer.reset_running_stats()
            layer.momentum = None
    module.train()
    with torch.no_grad():
        module(*inputs)
    return module.eval()


def follow(module: nn.Module, inputs=PICTURE, input_range=(-1.0, 2.0), deviations=6.0):
    folded = fold_batch_norm(module.eval(), inputs)
    traced = trace(folded.module, inputs)
    return distributions(traced, folded.moments, input_range, deviations), traced


def normed(n: int = 3) -> list[nn.Module]:
    norm = nn.BatchNorm2d(n)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, -2.0, 1.0])[:n])
        norm.bias.copy_(torch.tensor([0.3, -1.0, 4.0])[:n])
    return [nn.Conv2d(1, n, 3), norm]


def test_a_normalised_channel_reaches_some_deviations_around_its_shift():
    found, _ = follow(nn.Sequential(*normed()), deviations=4.0)
    conv = found["conv2d"]
    np.testing.assert_allclose(conv.mean, [0.3, -1.0, 4.0], rtol=1e-6)
    np.testing.assert_allclose(conv.std, [0.5, 2.0, 1.0], rtol=1e-6)
    np.testing.assert_allclose(conv.range, (-9.0, 8.0), rtol=1e-6)
    assert found["input"].range == (-1.0, 2.0)


def test_the_moments_behind_relu_are_those_of_a_rectified_normal():
    found, _ = follow(nn.Sequential(*normed(), nn.ReLU()))
    for mean, std, got, spread in zip(
        [0.3, -1.0, 4.0], [0.5, 2.0, 1.0], found["relu"].mean, found["relu"].std, strict=True
    ):
        z = mean / std
        density, below = math.exp(-(z**2) / 2) / math.sqrt(2 * math.pi), (1 + math.erf(z / math.sqrt(2))) / 2
        first = mean * below + std * density
        second = (mean**2 + std**2) * below + mean * std * density
        assert float(got) == pytest.approx(first, abs=2e-4)
        assert float(spread) == pytest.approx(math.sqrt(second - first**2), abs=2e-4)
    assert found["relu"].range == pytest.approx((0.0, 11.0))


@pytest.mark.parametrize(
    "activation", [nn.ReLU6, nn.Hardswish, nn.SiLU, nn.GELU, nn.Tanh, nn.LeakyReLU, nn.ELU]
)
def test_moments_behind_an_activation_are_those_of_drawn_values(activation):
    found, traced = follow(nn.Sequential(*normed(), activation()))
    node = traced.nodes[-1].name
    drawn = torch.randn(400_000, generator=torch.Generator().manual_seed(0)).double()
    values = activation()(
        torch.tensor([0.3, -1.0, 4.0])[:, None] + torch.tensor([[0.5], [2.0], [1.0]]) * drawn
    )
    np.testing.assert_allclose(found[node].mean, values.mean(1), atol=0.01)
    np.testing.assert_allclose(found[node].std, values.std(1), atol=0.01)
    assert found[node].range[0] <= values.min() + 0.05
    assert found[node].range[1] >= values.max() - 0.05


class Sum(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Sequential(*normed()), nn.Sequential(*normed())
        self.mix = nn.Conv2d(3, 6, 1, groups=3)

    def forward(self, x):
        return self.mix(self.a(x) + self.b(x))


def test_sums_take_the_sums_of_means_and_variances():
    module = Sum()
    found, _ = follow(module)
    np.testing.assert_allclose(found["add"].mean, [0.6, -2.0, 8.0], rtol=1e-6)
    np.testing.assert_allclose(found["add"].std, np.sqrt(2) * np.array([0.5, 2.0, 1.0]), rtol=1e-6)
    weight, bias = (p.detach().double().numpy() for p in module.mix.parameters())
    # The sum's own means, not 0.6: the bias may cancel nearly all of a product, and 0.3 is rounded to float32.
    means = np.repeat(found["add"].mean, 2) * weight[:, 0, 0, 0] + bias
    np.testing.assert_allclose(found["conv2d_2"].mean, means, rtol=1e-6)
    stds = np.repeat(np.sqrt(2) * np.array([0.5, 2.0, 1.0]), 2) * np.abs(weight[:, 0, 0, 0])
    np.testing.assert_allclose(found["conv2d_2"].std, stds, rtol=1e-6)


def test_flattening_repeats_each_channel():
    found, _ = follow(
        nn.Sequential(*normed(), nn.AdaptiveAvgPool2d(1), nn.MaxPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    )
    np.testing.assert_allclose(found["flatten"].mean, [0.3, -1.0, 4.0], rtol=1e-6)
    found, _ = follow(nn.Sequential(*normed(), nn.Flatten()))
    np.testing.assert_allclose(found["flatten"].mean, np.repeat([0.3, -1.0, 4.0], 100), rtol=1e-6)


@pytest.mark.parametrize(
    "options",
    [{}, {"block": "residual", "activation": "relu6"}, {"block": "separable"}, {"activation": "silu"}],
    ids=str,
)
def test_the_ranges_hold_nearly_all_that_data_gives(options, tiny_network, splits):
    network = tiny_network(**options)
    train = torch.from_numpy(splits.train.inputs[0])
    module = with_statistics(network.module, train)
    found, traced = follow(module, input_range=(float(train.min()), float(train.max())))
    names = tuple(node.name for node in traced.nodes)
    for name, value in zip(names, next(values_of(traced, names, (train,))), strict=True):
        low, high = found[name].range
        width = high - low
        outside = ((value < low - 0.01 * width) | (value > high + 0.01 * width)).float().mean()
        assert outside < 0.01, name


@pytest.mark.parametrize("correct", [False, True])
def test_a_network_quantised_without_data_stays_close_to_the_float_one(
    correct, tiny_network, context, splits
):
    network = tiny_network(block="separable")
    inputs = torch.from_numpy(splits.train.inputs[0])
    with_statistics(network.module, inputs)
    given = context(network)
    none = Samples((splits.train.inputs[0][:0],), splits.train.targets[:0], splits.train.labels[:0])
    given = dataclasses.replace(given, splits=dataclasses.replace(splits, train=none))
    low, high = float(inputs.min()), float(inputs.max())
    spec = QuantizeStatic(
        kind="quantize_static",
        calibration="batch_norm",
        input_range=(low, high),
        bias_correction=correct,
        equalize=True,
    )
    result, record = run_pass(spec, network, given)
    assert "calibrated without data, on 5 batch normalisations" in record.notes[0]
    with torch.no_grad():
        expected, found = network.module(inputs), executable(result)(inputs)
    noise = 10 * torch.log10(((expected - expected.mean()) ** 2).mean() / ((found - expected) ** 2).mean())
    # Six deviations are about twice the range that data gives: one bit, or 6 dB, less than with samples.
    assert noise > 18


def test_networks_that_have_no_statistics_are_refused():
    with pytest.raises(PreconditionFailed, match="no batch normalisation whose statistics"):
        follow(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()))


class Gate(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Sequential(*normed())

    def forward(self, x):
        y = self.a(x)
        return y * y.mean()


def test_what_does_not_follow_is_refused_by_name():
    with pytest.raises(
        PreconditionFailed, match=r"the values of mean don't follow from batch normalisations"
    ):
        follow(Gate())
