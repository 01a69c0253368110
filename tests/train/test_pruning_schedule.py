"""The schedule is that of its paper, training keeps zeros and shared values, and an interruption changes no bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from armlet.analysis.sparsity import Pattern, weight_tensors
from armlet.artifacts import InputSpec, Task
from armlet.data.splits import Samples, Splits
from armlet.errors import UsageError
from armlet.metrics import Scorer
from armlet.models.constraints import WeightConstraint, broken_constraints, constrained
from armlet.models.network import Network, architecture_of, build
from armlet.progress import Silent
from armlet.train import PruningSchedule, TrainOptions, train_network
from armlet.train.pruning import Keeper

INPUTS = (InputSpec("input", (8,)),)
SCORER = Scorer(Task("classification", (4,), tuple("abcd")))
CENTRES = np.random.default_rng(0).standard_normal((4, 8))
OPTIONS = TrainOptions(epochs=4, batch_size=32, learning_rate=0.02, weight_decay=0.01)


def samples(n: int, seed: int) -> Samples:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, n)
    return Samples(((CENTRES[labels] + 0.5 * rng.standard_normal((n, 8))).astype("float32"),), labels)


SPLITS = Splits(samples(256, 1), samples(64, 2), samples(64, 3), INPUTS, SCORER.task)


def fnn() -> Network:
    return build(architecture_of("fnn", {"hidden": [16, 12]}, INPUTS, (4,)), 0)


def schedule(network: Network, **options: object) -> PruningSchedule:
    return PruningSchedule(weight_tensors(network.module), **({"sparsity": 0.8, "every": 3} | options))


def train(network: Network, work: Path, options: TrainOptions = OPTIONS, **others) -> Network:
    progress = others.pop("progress", Silent())
    return train_network(network, SPLITS, options, SCORER, seed=1, work=work, progress=progress, **others)[0]


def weights(network: Network) -> dict[str, torch.Tensor]:
    names = [w.parameter for w in weight_tensors(network.module)]
    return {name: network.module.get_parameter(name).detach() for name in names}


def test_the_share_of_zeros_is_that_of_the_paper():
    plan = PruningSchedule((), sparsity=0.9, start=0.1, begin=0.2, end=0.7, every=10)
    found = [plan.sparsity_at(step, 200) for step in range(200)]
    assert found[:40] == [None] * 40  # begins at step 40, ends at 140, chooses 10 times in between
    for step in range(40, 200):
        share = min((step - 40) // 10, 10) / 10
        assert found[step] == pytest.approx(0.9 + (0.1 - 0.9) * (1 - share) ** 3, abs=1e-12)
    assert found[140] == found[199] == 0.9


@pytest.mark.parametrize("n_steps", [1, 2, 3, 7, 50])
@pytest.mark.parametrize("turns_every", [1, 2, 5])
@pytest.mark.parametrize("every", [1, 20, 1000])
def test_the_end_is_reached_however_short_the_training_is(n_steps, turns_every, every):
    plan = PruningSchedule((), sparsity=0.9, end=1.0, every=every)
    turns = [step for step in range(n_steps) if (step + 1) % turns_every == 0]
    shares = [plan.sparsity_at(step, n_steps, turns_every) for step in turns]
    if turns:
        assert shares[-1] == 0.9
        assert shares == sorted(shares)


def test_training_with_a_schedule_makes_the_zeros_and_learns(tmp_path):
    network = fnn()
    trained = train(network, tmp_path, pruning=schedule(network))
    for name, value in weights(trained).items():
        assert int((value == 0).sum()) == int(0.8 * value.numel() + 1e-9), name
        moved = value[value != 0] - weights(network)[name][value != 0]
        assert moved.abs().min() > 0


@pytest.mark.parametrize("optimizer", ["sgd", "rmsprop", "adam", "adamw", "lion"])
@pytest.mark.parametrize("extra", [{}, {"ema": 0.9}, {"sharpness": 0.05}, {"gradient_clip": 0.1}], ids=str)
def test_zeros_and_shared_values_are_kept_by_every_optimizer(optimizer, extra, tmp_path):
    network = fnn()
    first, second, last = weights(network).values()
    with torch.no_grad():
        first[first.abs() < first.abs().median()] = 0.0
        second.copy_((second * 8).round() / 8 + 0.05)
        second[0] = 0.0
    constraints = constrained((), ["layer1.linear.weight"], "zeros")
    constraints = constrained(constraints, ["layer2.linear.weight"], "values")
    network = replace(network, constraints=constraints)
    options = replace(OPTIONS, optimizer=optimizer, epochs=2, **extra)
    trained = train(network, tmp_path, options)
    before, after = weights(network), weights(trained)
    assert trained.constraints == constraints
    zero = before["layer1.linear.weight"] == 0
    assert torch.equal(after["layer1.linear.weight"] == 0, zero)
    assert not torch.equal(after["layer1.linear.weight"], first)
    old, new = before["layer2.linear.weight"], after["layer2.linear.weight"]
    values = torch.unique(old)
    assert 3 < len(values) < 20
    assert {len(torch.unique(new[old == v])) for v in values} == {1}
    assert (new[old == 0] == 0).all()
    assert len(torch.unique(new)) == len(values)
    assert not torch.equal(new, old)
    assert len(torch.unique(after["classifier.weight"])) == last.numel()


def test_a_shared_value_s_gradient_is_the_sum_over_its_weights():
    torch.manual_seed(0)
    layer = nn.Linear(6, 5, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([-0.5, 0.0, 0.25])[torch.randint(0, 3, (5, 6))])
    keeper = Keeper(layer, [WeightConstraint("weight", "values")])
    inputs = torch.randn(7, 6)
    layer(inputs).square().sum().backward()
    plain = layer.weight.grad.clone()
    keeper.gradients()
    for value in (-0.5, 0.25):
        which = layer.weight == value
        torch.testing.assert_close(layer.weight.grad[which], plain[which].sum().expand(int(which.sum())))
    assert (layer.weight.grad[layer.weight == 0] == 0).all()


class Interrupted(Silent):
    """Stops the training in the middle of an epoch."""

    def __init__(self, after: int) -> None:
        self.left = after

    def advance(self, parts: int = 1, note: str = "") -> None:
        self.left -= parts
        if self.left <= 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("what", ["schedule", "pattern", "values"])
def test_an_interrupted_training_ends_in_the_same_bytes(what, tmp_path):
    network = fnn()
    others = {}
    if what == "values":
        weight = weights(network)["layer2.linear.weight"]
        weight.copy_((weight * 8).round() / 8 + 0.05)
        constraints = constrained((), ["layer2.linear.weight"], "values")
        network = replace(network, constraints=constraints)
    elif what == "schedule":
        others["pruning"] = schedule(network, scope="global")
    else:
        others["pruning"] = schedule(network, sparsity=0.5, pattern=Pattern(2, 4))
    options = replace(OPTIONS, ema=0.5)
    whole = train(network, tmp_path / "whole", options, **others)
    with pytest.raises(KeyboardInterrupt):
        train(network, tmp_path / "cut", options, progress=Interrupted(17), **others)
    resumed = train(network, tmp_path / "cut", options, **others)
    for name, value in whole.module.state_dict().items():
        assert torch.equal(value, resumed.module.state_dict()[name]), name


def test_two_processes_keep_zeros_too(tmp_path):
    network = fnn()
    options = replace(OPTIONS, epochs=2, processes=2)
    pruned = train(network, tmp_path / "one", options, pruning=schedule(network))
    counts = {name: int((value == 0).sum()) for name, value in weights(pruned).items()}
    assert counts == {name: int(0.8 * v.numel() + 1e-9) for name, v in weights(network).items()}
    kept = replace(pruned, constraints=constrained((), list(counts), "zeros"))
    further = train(kept, tmp_path / "two", options)
    for name, value in weights(further).items():
        assert torch.equal(value == 0, weights(pruned)[name] == 0)
        assert not torch.equal(value, weights(pruned)[name])


def test_what_does_not_go_with_pruning_is_refused(tmp_path):
    network = fnn()
    with pytest.raises(UsageError, match="set patience to 0"):
        train(network, tmp_path, replace(OPTIONS, patience=2), pruning=schedule(network))
    with pytest.raises(UsageError, match="can't be pre-trained"):
        train(network, tmp_path, mask=0.3, pruning=schedule(network))


def test_broken_constraints_are_named():
    before, after = nn.Linear(6, 4), nn.Linear(6, 4)
    with torch.no_grad():
        before.weight.copy_(torch.tensor([0.0, 0.5, 1.0]).repeat(8).reshape(4, 6))
        after.weight.copy_(before.weight)
    zeros, values = (WeightConstraint("weight", kind) for kind in ("zeros", "values"))
    assert broken_constraints([zeros, values], before, after) == ()
    with torch.no_grad():  # each output channel scaled by a factor of its own
        after.weight.mul_(torch.tensor([[1.0], [2.0], [3.0], [4.0]]))
    assert broken_constraints([zeros, values], before, after) == ()
    with torch.no_grad():
        after.weight[1, 2] = 7.0
        after.weight[1, 3:] = torch.tensor([0.0, 8.0, 9.0])
    assert broken_constraints([zeros], before, after) == ()
    assert "more different values" in broken_constraints([values], before, after)[0]
    with torch.no_grad():
        after.weight[0, 0] = 1e-9
    assert broken_constraints([zeros], before, after) == (
        "1 zeros of weight, which were to be kept, are no longer zero",
    )
    assert "weight is gone" in broken_constraints([zeros], before, nn.Identity())[0]


def test_a_weight_s_shared_values_are_not_taken_back():
    constraints = constrained((), ["b", "a"], "values")
    assert constrained(constraints, ["a", "c"], "zeros") == (
        WeightConstraint("a", "values"),
        WeightConstraint("b", "values"),
        WeightConstraint("c", "zeros"),
    )
