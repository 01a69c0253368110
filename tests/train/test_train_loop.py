"""Training is reproducible, resumes to the same bytes, stops early with the best weights, and leaks no state."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from armlet.artifacts import Epoch, InputSpec, Task
from armlet.data.splits import Samples, Splits
from armlet.errors import ArmletError, UsageError
from armlet.metrics import Scorer
from armlet.models.network import Network, architecture_of, build, save_network
from armlet.models.quantization import Quantization
from armlet.progress import Silent
from armlet.train import DistillationOptions, TrainingRun, TrainOptions, evaluate, train_network
from armlet.train.loop import _trainable

CENTRES = np.random.default_rng(0).normal(size=(4, 8)).astype("float32")
INPUTS, PICTURES = (InputSpec("input", (8,)),), (InputSpec("input", (1, 8, 8)),)
TASK = Task("classification", (4,), ("a", "b", "c", "d"))
SCORER = Scorer(TASK)
QUICK = TrainOptions(epochs=4, batch_size=32, learning_rate=0.01)


def blobs(n: int, seed: int, noise: float = 0.5) -> Samples:
    """Four clouds in eight dimensions, which a small perceptron can tell apart."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, n)
    inputs = CENTRES[labels] + noise * rng.normal(size=(n, 8))
    return Samples((inputs.astype("float32"),), labels)


def splits(n: int = 300, noise: float = 0.5) -> Splits:
    return Splits(blobs(n, 1, noise), blobs(100, 2, noise), blobs(200, 3, noise), INPUTS, TASK)


def fnn(hidden: tuple[int, ...] = (12,), dropout: float = 0.2) -> Network:
    return build(architecture_of("fnn", {"hidden": list(hidden), "dropout": dropout}, INPUTS, (4,)), 0)


def fnn_of_pictures() -> Network:
    return build(architecture_of("fnn", {"hidden": [12]}, PICTURES, (4,)), 1)


def train(work: Path, options: TrainOptions = QUICK, seed: int = 5, **others) -> tuple[Network, TrainingRun]:
    arguments = {"network": fnn(), "splits": splits(), "progress": Silent()} | others
    return train_network(
        arguments.pop("network"), arguments.pop("splits"), options, SCORER, seed=seed, work=work, **arguments
    )


def state_bytes(network: Network) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in network.module.state_dict().items()}


def without_seconds(history: tuple[Epoch, ...]) -> list[Epoch]:
    return [replace(epoch, seconds=0.0) for epoch in history]


class Interrupts(Silent):
    """Progress that raises, as ^C would, in the middle of an epoch."""

    def __init__(self, after: int) -> None:
        self.left = after

    def advance(self, parts: int = 1, note: str = "") -> None:
        self.left -= parts
        if self.left <= 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("schedule", ["constant", "cosine", "one_cycle"])
def test_every_optimizer_and_schedule_learns(optimizer: str, schedule: str, tmp_path: Path) -> None:
    rate = 0.05 if optimizer == "sgd" else 0.01
    network, run = train(
        tmp_path,
        replace(QUICK, optimizer=optimizer, schedule=schedule, learning_rate=rate, weight_decay=1e-4),
    )
    assert evaluate(network, splits().test, SCORER, "test").value > 0.9
    assert run.history[-1].train_loss < run.history[0].train_loss
    assert (len(run.history), run.stopped_early, run.device, run.precision) == (4, False, "cpu", "fp32")


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    first, _ = train(tmp_path / "a")
    same, _ = train(tmp_path / "b")
    other, _ = train(tmp_path / "c", seed=6)
    assert state_bytes(first) == state_bytes(same)
    assert state_bytes(first) != state_bytes(other)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("after", [1, 60, 110])  # of 150 steps, 37 or 38 an epoch: in the 1st, 2nd and 3rd
def test_an_interrupted_training_ends_with_the_bytes_of_an_uninterrupted_one(
    optimizer: str, after: int, tmp_path: Path
) -> None:
    options = replace(QUICK, batch_size=8, optimizer=optimizer, patience=3)
    whole, whole_run = train(tmp_path / "whole", options)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", options, progress=Interrupts(after))
    resumed, resumed_run = train(tmp_path / "cut", options)
    assert state_bytes(resumed) == state_bytes(whole)
    assert without_seconds(resumed_run.history) == without_seconds(whole_run.history)


def test_an_interrupted_training_on_pictures_ends_with_the_same_bytes(tmp_path: Path) -> None:
    pictures = Samples((np.random.default_rng(0).random((96, 1, 8, 8), "float32"),), np.arange(96) % 4)
    data = Splits(pictures, pictures, pictures, PICTURES, TASK)
    network = build(
        architecture_of("cnn", {"channels": [8, 8], "block": "separable", "dropout": 0.1}, PICTURES, (4,)), 0
    )
    teacher, distillation = fnn_of_pictures(), DistillationOptions()
    given = {"network": network, "splits": data, "teachers": (teacher,), "distillation": distillation}
    whole, _ = train(tmp_path / "whole", **given)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", progress=Interrupts(8), **given)  # of 12 steps, 3 an epoch
    resumed, _ = train(tmp_path / "cut", **given)
    assert state_bytes(resumed) == state_bytes(whole)


def test_a_training_killed_without_warning_is_resumed_not_begun_again(tmp_path: Path) -> None:
    """SIGKILL in epoch 3 leaves a checkpoint of epoch 2; the resumed run only counts the rest."""
    script = (
        "import os, signal, sys\n"
        f"sys.path[:0] = {[str(Path(__file__).parent), *sys.path]!r}\n"
        f"from {Path(__file__).stem} import Interrupts, QUICK, train\n"
        "from dataclasses import replace\n"
        "from pathlib import Path\n"
        "class Killer(Interrupts):\n"
        "    def advance(self, parts=1, note=''):\n"
        "        self.left -= parts\n"
        "        if self.left <= 0: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"train(Path({str(tmp_path / 'cut')!r}), replace(QUICK, batch_size=8), progress=Killer(76))\n"
    )
    killed = subprocess.run([sys.executable, "-c", script], check=False, env=os.environ)
    assert killed.returncode == -signal.SIGKILL
    resumed_at: list[str] = []

    class Watch(Silent):
        def advance(self, parts: int = 1, note: str = "") -> None:
            if "resumed" in note:
                resumed_at.append(note)

    options = replace(QUICK, batch_size=8)
    resumed, _ = train(tmp_path / "cut", options, progress=Watch())
    whole, _ = train(tmp_path / "whole", options)
    assert resumed_at == ["resumed after epoch 2"]
    assert state_bytes(resumed) == state_bytes(whole)


def test_a_checkpoint_of_another_job_or_a_damaged_one_is_not_resumed(tmp_path: Path) -> None:
    expected, _ = train(tmp_path / "fresh", seed=8)
    train(tmp_path / "stale", seed=7)
    assert state_bytes(train(tmp_path / "stale", seed=8)[0]) == state_bytes(expected)
    file = tmp_path / "stale" / "checkpoint.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    assert state_bytes(train(tmp_path / "stale", seed=8)[0]) == state_bytes(expected)


def test_early_stopping_restores_the_weights_of_the_best_epoch(tmp_path: Path) -> None:
    # Noisy clouds and a high rate: the score soon moves up and down.
    data = splits(noise=1.5)
    options = replace(QUICK, epochs=40, patience=2, learning_rate=0.05, schedule="constant")
    network, run = train(tmp_path, options, splits=data, network=fnn((32, 32), dropout=0.0))
    scores = [epoch.validation_score for epoch in run.history]
    best = scores.index(max(scores))
    assert run.stopped_early
    assert len(scores) == best + 1 + 2
    assert evaluate(network, data.validation, SCORER, "validation").value == max(scores)


def test_training_leaves_no_trace_in_the_process_or_in_what_it_was_given(tmp_path: Path) -> None:
    torch.manual_seed(11)
    random_state, given = torch.get_rng_state(), fnn()
    before = state_bytes(given)
    with torch.no_grad():
        train(tmp_path, network=given)
        assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not torch.are_deterministic_algorithms_enabled()
    assert state_bytes(given) == before


def test_a_trained_network_is_plain_and_can_be_saved(tmp_path: Path) -> None:
    pictures = Samples((np.random.default_rng(0).random((64, 1, 8, 8), "float32"),), np.arange(64) % 4)
    data = Splits(pictures, pictures, pictures, PICTURES, TASK)
    network = build(architecture_of("cnn", {"channels": [4, 4]}, PICTURES, (4,)), 0)
    trained, _ = train(tmp_path / "work", replace(QUICK, epochs=1), network=network, splits=data)
    assert not trained.module.training
    assert all(tensor.is_contiguous() for tensor in trained.module.state_dict().values())
    save_network(trained, tmp_path / "network")


def test_a_first_layer_of_one_channel_answers_with_the_channels_last() -> None:
    network = build(architecture_of("cnn", {"channels": [4, 4]}, PICTURES, (4,)), 0)
    trainable = _trainable(network.module, network.architecture.inputs, torch.device("cpu"))
    found = trainable.get_submodule("stage1")(torch.zeros(2, 1, 8, 8))
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert not found.is_contiguous()


def test_bf16_trains_and_says_so(tmp_path: Path) -> None:
    network, run = train(tmp_path, replace(QUICK, precision="bf16"))
    assert run.precision == "bf16"
    assert evaluate(network, splits().test, SCORER, "test").value > 0.9
    assert {tensor.dtype for tensor in network.module.parameters()} == {torch.float32}


def test_a_clipped_gradient_moves_the_weights_less(tmp_path: Path) -> None:
    def moved(clip: float | None, folder: str) -> float:
        options = replace(QUICK, epochs=1, optimizer="sgd", momentum=0.0, gradient_clip=clip)
        network, _ = train(tmp_path / folder, options)
        start = dict(fnn().module.named_parameters())
        return sum(float((p - start[n]).detach().norm()) for n, p in network.module.named_parameters())

    assert moved(1e-4, "clipped") < 0.1 * moved(None, "free")


def test_a_student_learns_from_its_teachers_answers_alone(tmp_path: Path) -> None:
    """With alpha 1 the labels carry no weight: a student given wrong labels still agrees with its teacher."""
    teacher, _ = train(tmp_path / "teacher", network=fnn((32,), 0.0))
    data = splits()
    shuffled = Samples(data.train.inputs, np.random.default_rng(3).permutation(data.train.targets))
    wrong = replace(data, train=shuffled)
    options = DistillationOptions(temperature=2.0, alpha=1.0)
    student, _ = train(tmp_path / "student", splits=wrong, teachers=(teacher,), distillation=options)
    ignorant, _ = train(tmp_path / "ignorant", splits=wrong)
    assert evaluate(student, data.test, SCORER, "test").value > 0.9
    assert evaluate(ignorant, data.test, SCORER, "test").value < 0.6


def test_what_can_not_be_trained_is_refused_before_it_starts(tmp_path: Path) -> None:
    nothing = Samples((np.zeros((0, 8), "float32"),), np.zeros(0, "int64"))
    with pytest.raises(UsageError, match="validation split is empty"):
        train(tmp_path, splits=replace(splits(), validation=nothing))
    with pytest.raises(UsageError, match="training split is empty"):
        train(tmp_path, splits=replace(splits(), train=nothing))
    with pytest.raises(UsageError, match="quantised network can't be trained"):
        train(tmp_path, network=replace(fnn(), quantization=Quantization((), ())))
    with pytest.raises(UsageError, match="go together"):
        train(tmp_path, teachers=(fnn(),))
    with pytest.raises(UsageError, match=r"one sample .* batch normalisation; raise train\.batch_size"):
        train(tmp_path, replace(QUICK, batch_size=1))


def test_a_diverging_training_fails_and_says_in_which_epoch(tmp_path: Path) -> None:
    options = replace(QUICK, optimizer="sgd", learning_rate=1e30, schedule="constant")
    with pytest.raises(ArmletError, match=r"training diverged: the loss is (nan|inf) in epoch 1"):
        train(tmp_path, options)


def test_a_training_whose_very_last_step_diverges_fails_too(tmp_path: Path) -> None:
    # One step an epoch: its own loss is still that of the fresh weights.
    options = replace(
        QUICK, optimizer="sgd", learning_rate=1e30, schedule="constant", epochs=1, batch_size=300
    )
    with pytest.raises(ArmletError, match=r"diverged: the validation loss is (nan|inf) in epoch 1"):
        train(tmp_path, options)


def test_batches_larger_than_the_data_are_cut_to_it(tmp_path: Path) -> None:
    _, run = train(tmp_path, replace(QUICK, batch_size=10_000, epochs=1))
    assert run.history[0].train_loss > 0
