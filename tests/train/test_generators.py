"""Generators: scored as the papers say, trained against a critic, resumed to the same bytes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from armlet.artifacts import InputSpec, Task
from armlet.data.splits import Samples, Splits
from armlet.errors import UsageError
from armlet.metrics import Scorer
from armlet.metrics.generation import features, frechet_distance, share_within
from armlet.models.gan import build_critic
from armlet.models.network import Network, architecture_of, build
from armlet.progress import Silent
from armlet.train import TrainOptions, evaluate, train_network
from armlet.train.adversarial import Adversarial
from armlet.train.objectives import Batch

LATENT, PICTURE = (InputSpec("input", (4,)),), (1, 8, 8)
TASK = Task("generation", PICTURE)
OPTIONS = TrainOptions(
    epochs=25,
    batch_size=32,
    learning_rate=2e-3,
    optimizer="adam",
    betas=(0.5, 0.99),
    schedule="linear",
    ema=0.9,
)
GAN = {"channels": [16, 8], "critic_channels": [8, 16]}


def squares(n: int, seed: int) -> Samples:
    """Bright squares of random size on a dark ground, from -1 to 1, to be made from four random numbers."""
    rng = np.random.default_rng(seed)
    pictures = np.full((n, *PICTURE), -0.9, "float32")
    for picture, side in zip(pictures, rng.integers(2, 7, n), strict=True):
        picture[0, 4 - side // 2 : 4 + side // 2, 4 - side // 2 : 4 + side // 2] = 0.9
    return Samples((rng.standard_normal((n, 4), "float32"),), pictures)


def splits() -> Splits:
    return Splits(squares(256, 1), squares(64, 2), squares(256, 3), LATENT, TASK)


def judge() -> Network:
    """Random features: enough to tell squares from noise."""
    return build(
        architecture_of("fnn", {"hidden": [12], "norm": "none"}, (InputSpec("input", PICTURE),), (3,)), 3
    )


def generator(**others) -> Network:
    return build(architecture_of("gan", GAN | others, LATENT, PICTURE), 0)


def train(work: Path, options: TrainOptions = OPTIONS, progress=None, **others):
    return train_network(
        generator(**others),
        splits(),
        options,
        Scorer(TASK, judge()),
        seed=1,
        work=work,
        progress=progress or Silent(),
    )


def test_the_distance_is_that_of_two_normal_distributions() -> None:
    """With diagonal covariances it is |m - n|² + Σ (s - t)² (Dowson and Landau 1982)."""
    rng = np.random.default_rng(0)
    m, n, s, t = rng.normal(size=3), rng.normal(size=3), np.array([1.0, 2.0, 0.5]), np.array([1.5, 1.0, 0.7])
    unit = rng.normal(size=(4000, 3))
    unit = (unit - unit.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(unit.T)).T)  # mean 0, covariance 1
    a, b = torch.from_numpy(unit * s + m), torch.from_numpy(unit * t + n)
    assert frechet_distance(a, b) == pytest.approx(((m - n) ** 2).sum() + ((s - t) ** 2).sum(), rel=1e-5)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)


def test_samples_lie_within_others_of_their_kind_and_not_within_far_ones() -> None:
    torch.manual_seed(0)
    a, b, far = torch.randn(800, 4), torch.randn(800, 4), torch.randn(800, 4) + 20
    one_kind = a[a[:, 0] > 0.5]
    assert share_within(a, b) > 0.7
    assert share_within(far, a) == 0.0
    assert share_within(one_kind, b) > 0.7  # precise
    assert share_within(b, one_kind) < 0.6  # but not all of it


def test_features_are_what_goes_into_the_classifier() -> None:
    network = judge()
    pictures = torch.rand(5, *PICTURE)
    found = features(network.module, pictures)
    expected = torch.relu(
        pictures.flatten(1) @ network.module[1].linear.weight.T + network.module[1].linear.bias
    )
    torch.testing.assert_close(found, expected)


def test_what_has_no_classifier_can_not_judge() -> None:
    with pytest.raises(UsageError, match="has no layer `classifier`"):
        features(torch.nn.Sequential(torch.nn.Linear(3, 3)), torch.rand(2, 3))
    with pytest.raises(UsageError, match="there is no judge"):
        Scorer(TASK).score(np.zeros((4, *PICTURE), "float32"), squares(4, 0), "test")


@pytest.mark.parametrize(
    ("loss", "others"),
    [("hinge", {}), ("non_saturating", {}), ("wasserstein", {"gradient_penalty": 1.0, "critic_steps": 2})],
)
def test_a_generator_learns_to_make_what_it_never_sees(loss: str, others: dict, tmp_path: Path) -> None:
    scorer, data = Scorer(TASK, judge()), splits()
    before = evaluate(generator(), data.test, scorer, "test")
    network, run = train(tmp_path, replace(OPTIONS, loss=loss, **others), spectral_norm=not others)
    after = replace(scorer, untrained=before.value)
    found = evaluate(network, data.test, after, "test").values()
    assert found["frechet_distance"] < 0.5 * before.value
    assert found["frechet_ratio"] == pytest.approx(found["frechet_distance"] / before.value)
    assert run.history[-1].metric == "frechet_distance"


def test_an_interrupted_adversarial_training_ends_with_the_same_bytes(tmp_path: Path) -> None:
    class Interrupts(Silent):
        left = 80  # of 200 steps

        def advance(self, parts: int = 1, note: str = "") -> None:
            self.left -= parts
            if self.left <= 0:
                raise KeyboardInterrupt

    whole, _ = train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", progress=Interrupts())
    resumed, run = train(tmp_path / "cut")
    assert len(run.history) == OPTIONS.epochs
    for name, value in whole.module.state_dict().items():
        assert torch.equal(value, resumed.module.state_dict()[name]), name


def test_a_spectral_norm_keeps_a_critic_from_stretching() -> None:
    critic = build_critic('{"channels":[16,8],"critic_channels":[8,16]}', PICTURE)
    critic.train()
    for _ in range(50):  # power iterations
        critic(torch.rand(2, *PICTURE))
    weight = critic[-1].weight
    assert float(torch.linalg.matrix_norm(weight.detach(), 2)) == pytest.approx(1.0, abs=0.02)


def test_a_deeper_critic_has_more_convolutions_of_one_size_in_each_stage() -> None:
    critic = build_critic(generator(critic_depth=3).architecture.options, PICTURE)
    convs = [layer for layer in critic if isinstance(layer, nn.Conv2d)]
    assert [(conv.out_channels, conv.stride[0]) for conv in convs] == [
        (8, 2), (8, 1), (8, 1), (16, 2), (16, 1), (16, 1),
    ]  # fmt: skip
    critic(torch.rand(2, *PICTURE)).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in critic.parameters())


def test_a_generator_trains_in_one_process_only(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="in one process"):
        train(tmp_path, replace(OPTIONS, processes=2))


def test_a_picture_that_can_not_be_halved_is_refused() -> None:
    with pytest.raises(
        UsageError, match=r"\[1, 6, 6\] is no picture that can be halved 2 times \(channels\)"
    ):
        build(architecture_of("gan", GAN, LATENT, (1, 6, 6)), 0)


def test_a_critic_with_minibatch_std_sees_whether_the_pictures_around_one_are_alike() -> None:
    rng = np.random.default_rng(0)
    various = torch.from_numpy(rng.standard_normal((8, *PICTURE), "float32"))
    alike = various[:1].expand(8, *PICTURE)
    with_it, without = (
        build_critic(generator(minibatch_std=on).architecture.options, PICTURE).eval() for on in (True, False)
    )
    with torch.no_grad():
        assert torch.equal(without(various)[:1], without(alike)[:1])
        assert not torch.allclose(with_it(various)[0], with_it(alike)[0])
        # Groups are of four neighbours: what is behind them changes nothing.
        mixed = torch.cat([various[:4], alike[:4]])
        torch.testing.assert_close(with_it(mixed)[:4], with_it(various)[:4])


def test_the_generators_turn_leaves_no_gradient_on_the_critic() -> None:
    network = generator()
    objective = Adversarial(network.module.train(), network.architecture, Scorer(TASK, judge()), OPTIONS, 0)
    samples = squares(8, 0)
    batch = Batch(0, tuple(map(torch.from_numpy, samples.inputs)), torch.from_numpy(samples.targets))
    (_, critic_loss), (_, generator_loss) = objective.turns(objective.modules, batch)
    generator_loss().backward()
    critic = objective.modules["critic"]
    assert all(p.grad is None and p.requires_grad for p in critic.parameters())
    assert all(p.grad is not None for p in network.module.parameters())
    critic_loss().backward()
    assert all(p.grad is not None for p in critic.parameters())
