"""A loss that is not finite is laid to what first was not: samples, weights, answers, gradients, or the steps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.train.test_train_loop import QUICK, fnn, splits, train
from torch import Tensor, nn

from armlet.data.splits import Samples
from armlet.errors import ArmletError


class Rooted(nn.Module):
    """A network whose answer, or only its gradient, is not finite where a unit is 0 or less."""

    def __init__(self, offset: float) -> None:
        super().__init__()
        self.body, self.root = nn.Linear(8, 4), Root(offset)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.root(x))


class Root(nn.Module):
    def __init__(self, offset: float) -> None:
        super().__init__()
        self.scale, self.offset = nn.Parameter(torch.zeros(8)), offset

    def forward(self, x: Tensor) -> Tensor:
        return torch.sqrt(self.scale * x + self.offset)


def message(work: Path, **others: object) -> str:
    with pytest.raises(ArmletError) as caught:
        train(work, **others)
    prefix, cause = str(caught.value).split("; ", maxsplit=1)
    assert prefix.startswith("training diverged: the ")
    return cause


def spoiled(samples: Samples, number: int) -> Samples:
    inputs = samples.inputs[0].copy()
    inputs[number, 2] = np.nan
    return replace(samples, inputs=(inputs,))


@pytest.mark.parametrize("split", ["train", "validation"])
def test_samples(split: str, tmp_path: Path):
    data, name = splits(), {"train": "training"}.get(split, split)
    found = message(tmp_path, splits=replace(data, **{split: spoiled(getattr(data, split), 7)}))
    n = len(getattr(data, split))
    assert found == (
        f"the {name} samples are at fault: input 0 is not finite: 1 of {n}, the first is number 7"
    )


def test_weights(tmp_path: Path):
    network = fnn()
    name, weight = next(iter(network.module.named_parameters()))
    with torch.no_grad():
        weight[0, 0] = float("inf")
    found = message(tmp_path, network=network)
    assert found == f"the first weights are at fault: {name} are not finite before any step"


def test_answers(tmp_path: Path):
    found = message(tmp_path, network=replace(fnn(), module=Rooted(-1.0)))
    assert found.startswith("the network is at fault: its answer to training sample 0 is not finite")
    assert found.endswith("it begins in root (Root)")


def test_gradients(tmp_path: Path):
    """The root of zero is zero, and its slope is infinite."""
    found = message(tmp_path, network=replace(fnn(), module=Rooted(0.0)))
    assert found.startswith(
        "the network is at fault: the gradients of root.scale are not finite before any step"
    )


def test_steps_alone(tmp_path: Path):
    options = replace(QUICK, optimizer="sgd", learning_rate=1e30, schedule="constant")
    assert message(tmp_path, options=options).endswith("the steps lead away: lower the learning rate")
