"""Small networks with telling values, and a small data set that can be learned."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from armlet.artifacts import InputSpec, Task
from armlet.data.splits import Samples, Splits
from armlet.metrics import Scorer
from armlet.models.network import Network, architecture_of, build
from armlet.passes import PassContext
from armlet.passes.quantize.quantize_static import StaticQuantization
from armlet.progress import Silent

INPUTS = (InputSpec("input", (1, 12, 12)),)
N_CLASSES = 4


def randomize(module: nn.Module, seed: int = 1) -> nn.Module:
    """Give batch normalisations random parameters and statistics, so that no proof holds by their being trivial."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
                layer.weight.copy_(torch.rand(layer.num_features, generator=generator) + 0.5)
                layer.bias.copy_(torch.randn(layer.num_features, generator=generator) * 0.3)
                layer.running_mean.copy_(torch.randn(layer.num_features, generator=generator) * 0.3)
                layer.running_var.copy_(torch.rand(layer.num_features, generator=generator) + 0.5)
    return module.eval()


def tiny(kind: str = "cnn", **options: object) -> Network:
    """Build a small network of a family, with random normalisations."""
    default = {"channels": [6, 10]} if kind == "cnn" else {"hidden": [14, 9]}
    architecture = architecture_of(kind, default | options, INPUTS, (N_CLASSES,))
    network = build(architecture, seed=0)
    randomize(network.module)
    return network


def learned(network: Network, splits: Splits) -> Network:
    """Let a network learn the task as it is, batch normalisations standing still."""
    x, y = torch.from_numpy(splits.train.inputs[0]), torch.from_numpy(splits.train.targets)
    optimizer = torch.optim.Adam(network.module.parameters(), 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network.module(x), y).backward()
        optimizer.step()
    return network


NETWORKS = {
    "plain": lambda: tiny(),
    "residual": lambda: tiny(block="residual", activation="relu6", downsample="stride"),
    "separable": lambda: tiny(block="separable", depth=2),
    "silu": lambda: tiny(activation="silu"),
    "fnn": lambda: tiny("fnn"),
}


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest) -> Network:
    return NETWORKS[request.param]()


@pytest.fixture(scope="session", params=NETWORKS)
def quantized(request: pytest.FixtureRequest, splits: Splits) -> Network:
    """A quantised network, shared by the tests of a session: not to be changed."""
    context = PassContext(splits, NETWORKS["fnn"](), Scorer(splits.task), 0, Path("unused"), Silent())
    step = StaticQuantization(n_samples=64)
    return step.run(NETWORKS[request.param](), context).network


@pytest.fixture
def tiny_network():
    return tiny


@pytest.fixture
def randomized():
    return randomize


def _samples(n: int, seed: int) -> Samples:
    """Pictures with a bright quarter: the class is which one."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, N_CLASSES, n)
    inputs = rng.normal(0, 0.4, (n, *INPUTS[0].shape)).astype(np.float32)
    for picture, label in zip(inputs, labels, strict=True):
        row, column = divmod(int(label), 2)
        picture[0, row * 6 : row * 6 + 6, column * 6 : column * 6 + 6] += 1.0
    return Samples((inputs,), labels, labels)


@pytest.fixture(scope="session")
def splits() -> Splits:
    task = Task("classification", (N_CLASSES,), tuple("abcd"))
    return Splits(_samples(192, 0), _samples(64, 1), _samples(96, 2), INPUTS, task)


@pytest.fixture
def context(splits: Splits, tmp_path):
    """Make the context of one run of a pass; each gets a work folder of its own."""
    runs = iter(range(1000))

    def make(teacher: Network, seed: int = 0) -> PassContext:
        return PassContext(
            splits, teacher, Scorer(splits.task), seed, tmp_path / f"work{next(runs)}", Silent()
        )

    return make
