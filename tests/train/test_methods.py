"""Every way of training that a recipe can name: optimisers, moving average, mixing, teachers without labels, masks."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from armlet.artifacts import InputSpec, Task
from armlet.data.splits import Samples, Splits, with_labels
from armlet.errors import UsageError
from armlet.metrics import Scorer
from armlet.models.network import Network, architecture_of, build
from armlet.progress import Silent
from armlet.train import DistillationOptions, TrainOptions, evaluate, train_network
from armlet.train.optim import climbed, make_optimizer

INPUTS = (InputSpec("input", (8,)),)
TASK = Task("classification", (4,), ("a", "b", "c", "d"))
SCORER = Scorer(TASK)
QUICK = TrainOptions(epochs=4, batch_size=32, learning_rate=0.01)
CENTRES = np.random.default_rng(0).normal(size=(4, 8)).astype("float32")
WAVES = (InputSpec("input", (12, 3)), InputSpec("length", (), "int32", 13))


def blobs(n: int, seed: int, noise: float = 0.5) -> Samples:
    """Four clouds in eight dimensions, which a small perceptron can tell apart."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, n)
    inputs = CENTRES[labels] + noise * rng.normal(size=(n, 8))
    return Samples((inputs.astype("float32"),), labels, labels)


def splits(n: int = 300, noise: float = 0.5) -> Splits:
    return Splits(blobs(n, 1, noise), blobs(100, 2, noise), blobs(400, 3, noise), INPUTS, TASK)


def fnn() -> Network:
    return build(architecture_of("fnn", {"hidden": [12], "norm": "none"}, INPUTS, (4,)), 0)


def train(work: Path, options: TrainOptions = QUICK, **others) -> Network:
    arguments = {"network": fnn(), "splits": splits(), "scorer": SCORER} | others
    network, data, scorer = (arguments.pop(name) for name in ("network", "splits", "scorer"))
    return train_network(network, data, options, scorer, seed=5, work=work, progress=Silent(), **arguments)[0]


def accuracy(network: Network, data: Splits | None = None) -> float:
    return evaluate(network, (data or splits()).test, SCORER, "test").value


def weights(network: Network) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in network.module.parameters()])


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "rmsprop", "momentum": 0.0, "learning_rate": 0.003},
        {"optimizer": "lion", "learning_rate": 0.003, "betas": (0.9, 0.99)},
        {"sharpness": 0.05},
        {"ema": 0.9},
        {"mixup": 0.2},
        {"augment": ("noise", "scale")},
        {"schedule": "step", "warm_up": 0.1},
        {"schedule": "linear"},
        {"loss": "focal"},
        {"loss": "hinge"},
        {"loss": "bce"},
        {"loss": "kl", "label_smoothing": 0.1},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_every_way_learns_and_each_is_a_way_of_its_own(options: dict, tmp_path: Path) -> None:
    found = train(tmp_path / "a", replace(QUICK, epochs=8, **options))
    assert accuracy(found) > 0.9
    assert not torch.equal(weights(found), weights(train(tmp_path / "b", replace(QUICK, epochs=8))))


def test_an_interrupted_training_with_a_moving_average_ends_with_the_same_bytes(tmp_path: Path) -> None:
    class Interrupts(Silent):
        left = 20

        def advance(self, parts: int = 1, note: str = "") -> None:
            self.left -= parts
            if self.left <= 0:
                raise KeyboardInterrupt

    options = replace(QUICK, ema=0.9, optimizer="lion", learning_rate=0.002, sharpness=0.02, mixup=0.2)
    whole = train(tmp_path / "whole", options)
    with pytest.raises(KeyboardInterrupt):
        train_network(fnn(), splits(), options, SCORER, seed=5, work=tmp_path / "cut", progress=Interrupts())
    assert (tmp_path / "cut" / "checkpoint.safetensors").exists()
    assert torch.equal(weights(train(tmp_path / "cut", options)), weights(whole))


def test_sharpness_looks_from_the_top_of_the_ball_and_comes_back() -> None:
    """The gradient that counts is that at w + rho g / |g| (Foret et al. 2020, equation 2)."""
    weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    (weight**2).sum().backward()  # gradient (6, 8), of length 10
    with climbed([weight], 0.5):
        assert weight.tolist() == pytest.approx([3.3, 4.4])
        assert weight.grad is None
        (weight**2).sum().backward()
    assert weight.tolist() == [3.0, 4.0]
    assert weight.grad is not None
    assert weight.grad.tolist() == pytest.approx([6.6, 8.8])


def test_a_moving_average_is_smoother_than_what_it_averages(tmp_path: Path) -> None:
    """At a rate far too high the last weights jump about; their average lies in the middle."""
    noisy = replace(QUICK, learning_rate=0.1, schedule="constant", optimizer="sgd", epochs=6, batch_size=8)
    data = splits(noise=1.0)
    plain = train(tmp_path / "plain", noisy, splits=data)
    averaged = train(tmp_path / "averaged", replace(noisy, ema=0.98), splits=data)
    assert accuracy(averaged, data) > accuracy(plain, data)


@pytest.mark.parametrize("optimizer", ["sgd", "rmsprop", "adam", "adamw", "lion"])
def test_one_step_goes_downhill(optimizer: str) -> None:
    module = fnn().module.train()
    inputs, labels = torch.from_numpy(splits().train.inputs[0]), torch.from_numpy(splits().train.targets)
    made = make_optimizer(module, TrainOptions(optimizer=optimizer, learning_rate=1e-3))
    before = torch.nn.functional.cross_entropy(module(inputs), labels)
    before.backward()
    made.step()
    assert torch.nn.functional.cross_entropy(module(inputs), labels) < before


def test_a_student_learns_from_samples_without_labels(tmp_path: Path) -> None:
    data = splits(noise=1.0)
    teacher = train(tmp_path / "teacher", splits=data)
    few = with_labels(data, 0.03, None, seed=0)
    assert len(few.train) + len(few.unlabeled[0]) == len(data.train)
    alone = train(tmp_path / "alone", splits=few)
    options = DistillationOptions(temperature=2.0, alpha=0.9, unlabeled=True)
    taught = train(tmp_path / "taught", splits=few, teachers=(teacher,), distillation=options)
    assert accuracy(taught, data) > accuracy(alone, data) + 0.05


def waves(n: int, seed: int) -> Samples:
    """Three channels that are one another's sum or opposite: what is hidden can be told from the frames around."""
    rng = np.random.default_rng(seed)
    phase, speed = rng.uniform(0, 6, (n, 1)), rng.uniform(0.3, 0.6, (n, 1))
    a = np.sin(phase + speed * np.arange(12))
    frames = np.stack([a, -a, a**2], axis=2).astype("float32")
    length = rng.integers(6, 13, n).astype("int32")
    frames *= (np.arange(12) < length[:, None])[:, :, None]
    return Samples((frames, length), (speed[:, 0] > 0.45).astype("int64"))


@pytest.mark.parametrize("family", ["transformer", "rnn"])
def test_a_masked_encoder_learns_to_fill_in_and_its_head_stays_as_it_was(family: str, tmp_path: Path) -> None:
    task = Task("classification", (2,), ("slow", "fast"))
    options = {"transformer": {"width": 16, "heads": 2, "patch": 1, "dropout": 0.0}, "rnn": {"hidden": [16]}}
    network = build(architecture_of(family, options[family], WAVES, (2,)), 0)
    data = Splits(waves(300, 1), waves(100, 2), waves(10, 3), WAVES, task)
    pretrained, run = train_network(
        network,
        data,
        replace(QUICK, epochs=40, learning_rate=0.005),
        Scorer(task),
        seed=1,
        work=tmp_path,
        progress=Silent(),
        mask=0.3,
    )
    first, last = run.history[0], run.history[-1]
    assert last.metric == "reconstruction_error"
    assert last.validation_score < 0.7 * first.validation_score
    state, before = pretrained.module.state_dict(), network.module.state_dict()
    assert list(state) == list(before)
    assert torch.equal(state["classifier.weight"], before["classifier.weight"])
    assert sum(not torch.equal(state[name], before[name]) for name in state) > len(state) // 2


def test_masked_tokens_are_guessed_from_their_neighbours(tmp_path: Path) -> None:
    """In counting sentences a hidden token is known; a guess among 12 words costs log 12 nats."""
    spec = (InputSpec("tokens", (10,), "int32", 15), InputSpec("length", (), "int32", 11))

    def counting(n: int, seed: int) -> Samples:
        rng = np.random.default_rng(seed)
        tokens = (3 + (rng.integers(0, 12, (n, 1)) + np.arange(10)) % 12).astype("int32")
        return Samples((tokens, np.full(n, 10, "int32")), np.zeros(n, "int64"))

    task = Task("classification", (2,), ("a", "b"))
    architecture = architecture_of("transformer", {"width": 16, "heads": 2, "dropout": 0.0}, spec, (2,))
    data = Splits(counting(400, 1), counting(50, 2), counting(10, 3), spec, task)
    options = replace(QUICK, epochs=15)
    _, run = train_network(
        build(architecture, 0),
        data,
        options,
        Scorer(task),
        seed=1,
        work=tmp_path,
        progress=Silent(),
        mask=0.2,
    )
    assert run.history[-1].validation_loss < 0.5 * np.log(12)


def test_shares_are_learned_in_place_of_the_targets_which_are_scored(tmp_path: Path) -> None:
    data = splits()
    sure = replace(data.train, shares=np.eye(4, dtype="float32")[data.train.targets])
    same = train(tmp_path / "same", splits=replace(data, train=sure))
    assert torch.equal(weights(same), weights(train(tmp_path / "targets")))
    unsure = replace(data.train, shares=np.full((len(data.train), 4), 0.25, "float32"))
    doubting = train(tmp_path / "unsure", splits=replace(data, train=unsure))
    answers = torch.softmax(doubting.module(torch.from_numpy(data.test.inputs[0])), dim=1)
    assert answers.max() < 0.5
    assert accuracy(same) > 0.9


def test_options_that_do_not_fit_the_inputs_are_refused_before_any_work(tmp_path: Path) -> None:
    for options, message in (
        ({"augment": ("flip",)}, r"augment flip does not fit inputs of shape \[8\]; these do: noise, scale"),
        ({"loss": "mse"}, "train.loss mse is not for classification; that takes"),
        ({"cutmix": 1.0}, "cutmix is for the classification of pictures"),
    ):
        with pytest.raises(UsageError, match=message):
            train(tmp_path / "work", replace(QUICK, **options))
    with pytest.raises(UsageError, match="Sequential has no encoder of parts to pre-train"):
        train(tmp_path / "work2", mask=0.3)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_network_learns_the_same(tmp_path: Path) -> None:
    compiled = train(tmp_path / "a", replace(QUICK, compile=True))
    assert accuracy(compiled) > 0.9
    # Fused kernels round otherwise, a little each step.
    torch.testing.assert_close(weights(compiled), weights(train(tmp_path / "b")), rtol=1e-2, atol=1e-3)
