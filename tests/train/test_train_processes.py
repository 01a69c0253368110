"""Training in two processes: learns, reports, and fails or stops without leaving anything running."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from armlet.artifacts import InputSpec, Task
from armlet.data.splits import Samples, Splits
from armlet.errors import ArmletError, UsageError
from armlet.metrics import Scorer
from armlet.models.network import architecture_of, build
from armlet.progress import Silent
from armlet.train import TrainOptions, evaluate, train_network
from armlet.train.job import JOB_FOLDER, RESULT_FOLDER, load_result
from armlet.train.launch import _relay

INPUTS = (InputSpec("input", (8,)),)
TASK = Task("classification", (4,), ("a", "b", "c", "d"))
SCORER = Scorer(TASK)
OPTIONS = TrainOptions(epochs=4, batch_size=32, learning_rate=0.01, processes=2)


def splits(n: int = 300) -> Splits:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(4, 8))
    labels = rng.integers(0, 4, n + 300)
    inputs = (centres[labels] + 0.5 * rng.normal(size=(n + 300, 8))).astype("float32")
    samples = Samples((inputs,), labels)
    parts = [samples.take(np.arange(a, b)) for a, b in ((0, n), (n, n + 100), (n + 100, n + 300))]
    return Splits(*parts, INPUTS, TASK)


def fnn():
    return build(architecture_of("fnn", {"hidden": [12]}, INPUTS, (4,)), 0)


def parts_of(whole: Splits) -> tuple[Samples, Samples, Samples]:
    return whole.train, whole.validation, whole.test


def workers_of(work: Path) -> list[str]:
    """Command lines of processes that still work on the job in `work`."""
    listing = subprocess.run(["ps", "-eo", "args"], check=True, capture_output=True, text=True).stdout
    return [line for line in listing.splitlines() if str(work) in line]


class Calls(Silent):
    def __init__(self) -> None:
        self.total, self.done = 0, 0

    def start(self, what: str, total: int | None = None) -> None:
        self.total = total or 0

    def advance(self, parts: int = 1, note: str = "") -> None:
        self.done += parts


@pytest.mark.slow
def test_two_processes_learn_together_and_relay_their_progress(tmp_path: Path) -> None:
    progress = Calls()
    network, run = train_network(fnn(), splits(), OPTIONS, SCORER, seed=1, work=tmp_path, progress=progress)
    assert run.device == "2 × cpu"
    assert len(run.history) == 4
    assert evaluate(network, splits().test, SCORER, "test").value > 0.9
    assert progress.done == progress.total == 4 * (300 // 32)
    assert workers_of(tmp_path) == []


@pytest.mark.slow
def test_accelerate_launch_trains_a_job_to_the_same_weights(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    network, _ = train_network(fnn(), splits(), OPTIONS, SCORER, seed=1, work=first, progress=Silent())
    shutil.copytree(first / JOB_FOLDER, second / JOB_FOLDER)
    accelerate = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2"]
    worker = ["-m", "armlet.train.worker", str(second)]
    port = ["--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0"]
    subprocess.run([*accelerate, *port, *worker], check=True, capture_output=True, timeout=300)
    again, run = load_result(second / RESULT_FOLDER)
    assert run.device == "2 × cpu"
    for name, value in network.module.state_dict().items():
        torch.testing.assert_close(again.module.state_dict()[name], value, rtol=0, atol=0)


@pytest.mark.slow
def test_two_processes_fill_in_hidden_parts_together(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frames = (InputSpec("input", (8, 3)),)
    parts = [
        Samples((rng.normal(size=(96, 8, 3)).astype("float32"),), rng.integers(0, 4, 96)) for _ in range(3)
    ]
    network = build(architecture_of("lstm", {"hidden": [6]}, frames, (4,)), 0)
    _, run = train_network(
        network,
        Splits(*parts, frames, TASK),
        replace(OPTIONS, epochs=2),
        SCORER,
        seed=1,
        work=tmp_path,
        progress=Silent(),
        mask=0.3,
    )
    assert run.history[-1].train_loss < run.history[0].train_loss


@pytest.mark.slow
def test_a_failing_worker_fails_the_training_with_its_reason(tmp_path: Path) -> None:
    options = replace(OPTIONS, learning_rate=1e30, optimizer="sgd", schedule="constant")
    with pytest.raises(ArmletError, match=r"^training diverged: the loss is (nan|inf) in epoch 1"):
        train_network(fnn(), splits(), options, SCORER, seed=1, work=tmp_path, progress=Silent())
    assert workers_of(tmp_path) == []


@pytest.mark.slow
def test_an_interrupt_stops_the_workers_and_a_second_run_resumes(tmp_path: Path) -> None:
    class Interrupts(Silent):
        def __init__(self) -> None:
            self.left = 60  # of 36 or 37 steps an epoch: in the second

        def advance(self, parts: int = 1, note: str = "") -> None:
            self.left -= parts
            if self.left <= 0:
                raise KeyboardInterrupt

    notes: list[str] = []

    class Watch(Silent):
        def advance(self, parts: int = 1, note: str = "") -> None:
            notes.append(note)

    options = replace(OPTIONS, batch_size=8)
    with pytest.raises(KeyboardInterrupt):
        train_network(fnn(), splits(), options, SCORER, seed=1, work=tmp_path, progress=Interrupts())
    assert workers_of(tmp_path) == []
    _, run = train_network(fnn(), splits(), options, SCORER, seed=1, work=tmp_path, progress=Watch())
    assert notes[0].startswith("resumed after epoch")
    assert [epoch.epoch for epoch in run.history] == [1, 2, 3, 4]


def test_a_batch_that_can_not_feed_every_process_is_refused_before_any_starts(tmp_path: Path) -> None:
    options = replace(OPTIONS, batch_size=1)
    with pytest.raises(UsageError, match="a batch of 1 samples can't feed 2 processes"):
        train_network(fnn(), splits(), options, SCORER, seed=1, work=tmp_path / "work", progress=Silent())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_worker_that_crashes_fails_the_training_with_the_end_of_its_log(tmp_path: Path) -> None:
    network = fnn()
    wide = Splits(
        *(Samples((s.inputs[0][:, :5],), s.targets) for s in parts_of(splits())),
        (InputSpec("input", (5,)),),
        TASK,
    )
    with pytest.raises(ArmletError, match=r"in 2 processes failed with status 1(.|\n)*mat1 and mat2"):
        train_network(network, wide, OPTIONS, SCORER, seed=1, work=tmp_path, progress=Silent())


def test_a_line_that_is_no_progress_is_shown_and_not_swallowed() -> None:
    with pytest.raises(
        ArmletError, match=r"a training process wrote 'Segmentation fault', which is no progress"
    ):
        _relay(io.StringIO('["say", "hello"]\nSegmentation fault\n'), Silent())


def test_a_launcher_from_outside_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="start it alone, with --distributed 2"):
        train_network(fnn(), splits(), OPTIONS, SCORER, seed=1, work=tmp_path, progress=Silent())
