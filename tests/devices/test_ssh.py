"""Boards behind ssh: addresses, and programs that are carried there, run, timed, and gone again."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.boards import requires_board
from tests.devices.ssh_board import SERVER, FakeBoard, serve

import armlet as library
from armlet.bundle import Bundle
from armlet.devices.board import DeviceFailed
from armlet.devices.probe import probe
from armlet.devices.ssh import SshBoard, parse_ssh
from armlet.errors import MissingDependency, UsageError, VerificationFailed
from armlet.spec.load import load_target

requires_server = pytest.mark.skipif(SERVER is None, reason="needs OpenSSH's server: scripts/test unpacks it")
SHORT = {"seconds": 1.0, "processes": 2, "samples": 40}


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeBoard]:
    with serve(tmp_path_factory.mktemp("board")) as found:
        yield found


@pytest.fixture
def fault(board: FakeBoard) -> Iterator[object]:
    """Makes the board misbehave, until the end of a test."""
    asked: list[Path] = []

    def ask(name: str) -> None:
        asked.append(board.folder / name)
        asked[-1].touch()

    yield ask
    for path in asked:
        path.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A dense layer as a program for a Raspberry Pi 4 and for this machine."""
    folder = tmp_path_factory.mktemp("dense")
    weights = np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 16))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 8))],
        [numpy_helper.from_array(weights, "w")],
    )
    model = folder / "dense.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), model)
    made = {}
    for target in ("raspberry-pi-4", "raspberry-pi-5", "host"):
        made[target] = library.compile_onnx(model, target, output=folder / f"{target}.armlet").folder
    return made


@pytest.mark.parametrize(
    ("url", "host", "user", "port", "folder"),
    [
        ("ssh://pi@board.local", "board.local", "pi", None, "/tmp"),
        ("ssh://board:2222", "board", None, 2222, "/tmp"),
        (
            "ssh://MyBoard:22",
            "MyBoard",
            None,
            22,
            "/tmp",
        ),  # as an alias of ssh's configuration may be written
        ("ssh://a%40b@[::1]:22/?folder=/home/pi", "::1", "a@b", 22, "/home/pi"),
    ],
)
def test_addresses_are_read(url: str, host: str, user: str | None, port: int | None, folder: str) -> None:
    found = parse_ssh(url)
    assert (found.host, found.user, found.port, found.folder) == (host, user, port, folder)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ssh://", "is no address of a board; write ssh://"),
        ("ssh://pi@board/folder", "is no address"),
        ("ssh://pi:secret@board", "is no address"),
        ("ssh://-oProxyCommand=evil", "is no address"),
        ("ssh://board:port", "write ssh://"),
        ("ssh://board?dir=/tmp", "unknown or repeated option dir"),
        ("ssh://board?folder=tmp", "give an absolute path"),
    ],
)
def test_other_addresses_are_refused(url: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_ssh(url)


def test_without_ssh_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingDependency, match="apt-get install openssh-client"):
        SshBoard("ssh://board")


def test_a_board_that_does_not_listen_is_named() -> None:
    with pytest.raises(
        DeviceFailed, match=r"ssh://127\.0\.0\.1:9: no connection: .*start an ssh server there"
    ):
        SshBoard("ssh://127.0.0.1:9", timeout_s=5).open()


@requires_server
def test_files_go_there_and_back(board: FakeBoard) -> None:
    content = bytes(range(256)) * 100
    with SshBoard(board.url).open() as place:
        place.put("some file", content)
        assert place.get("some file") == content
        assert place.execute(["echo", "a  b", "$HOME"]).stdout == b"a  b $HOME\n"
        assert place.execute(["sh", "-c", "exit 7"]).code == 7
        with pytest.raises(DeviceFailed, match="no file can't be read"):
            place.get("no file")
        assert len(board.left) == 1
    assert board.left == []


@requires_server
@requires_board
def test_a_program_is_carried_compared_and_timed(board: FakeBoard, bundles: dict[str, Path]) -> None:
    run = library.bench(bundles["raspberry-pi-4"], board.url, latency="1000 s", **SHORT)

    (found,) = run.benchmarks
    assert found.facts is not None
    assert [core.name for core in found.facts.cores] == ["cortex-a72"] * 2
    assert found.answers is not None
    assert found.answers.n_identical == found.answers.n_samples == 4
    assert found.timing is not None
    assert found.timing.n >= 40
    assert found.timing.cpus == (1,)  # the last of two alike
    assert found.latency is not None
    assert found.latency.label == "measured (device)"
    assert found.latency.typical_ms == found.timing.p50
    assert run.passes
    assert run.checks[0].outcome == "pass"
    assert board.left == []
    assert "--time" in board.log


@requires_server
@requires_board
def test_a_budget_that_fails_is_said(board: FakeBoard, bundles: dict[str, Path]) -> None:
    run = library.bench(bundles["raspberry-pi-4"], board.url, latency="1 ns", **SHORT)
    assert not run.passes
    assert run.checks[0].outcome == "fail"


def test_a_budget_of_nothing_is_one(bundles: dict[str, Path]) -> None:
    run = library.bench(bundles["host"], latency="0 ms", **SHORT)
    assert run.checks[0].outcome == "fail"


def test_each_program_is_pinned_to_as_many_cpus_as_it_has_threads(
    bundles: dict[str, Path], tmp_path: Path
) -> None:
    two = library.compile_onnx(
        bundles["host"].parent / "dense.onnx", threads=2, output=tmp_path / "two.armlet"
    ).folder
    timings = [b.timing for b in library.bench([bundles["host"], two], **SHORT).benchmarks]
    assert [(t.threads, len(t.cpus)) for t in timings if t] == [(1, 1), (2, min(2, os.cpu_count() or 1))]


def test_every_output_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("y", "z")
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Neg", ["x"], ["z"])],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 8))],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 8)) for name in names],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9),
        tmp_path / "n.onnx",
    )
    bundle = library.compile_onnx(tmp_path / "n.onnx", output=tmp_path / "n.armlet").folder

    def second_differs(*_: object) -> object:
        return lambda samples: [np.maximum(samples[0], 0), 1 - samples[0]]

    monkeypatch.setattr("armlet.program.open_route", second_differs)
    with pytest.raises(VerificationFailed, match=r"answers on the device differ .* by up to 1, more than"):
        library.bench(bundle, **SHORT)


@requires_server
@requires_board
def test_two_programs_take_turns(board: FakeBoard, bundles: dict[str, Path]) -> None:
    both = [bundles["raspberry-pi-4"]] * 2
    start = len(board.log)

    run = library.bench(both, board.url, **SHORT)

    assert len(run.benchmarks) == 2
    assert len(run.comparisons) == 1
    timed = [line.split()[1] for line in board.log[start:].splitlines() if "--time" in line]
    first, other = timed[0], next(folder for folder in timed if folder != timed[0])
    assert timed[-4:] == [first, other, first, other]


@requires_server
@requires_board
def test_a_connection_that_drops_once_is_made_again(
    board: FakeBoard, bundles: dict[str, Path], fault
) -> None:
    fault("drop-once")
    run = library.bench(bundles["raspberry-pi-4"], board.url, **SHORT)
    assert run.benchmarks[0].timing is not None
    assert board.left == []


@requires_server
@requires_board
@pytest.mark.parametrize(
    ("what", "timeout", "message"),
    [
        ("drop", 60, "no connection: Connection .* closed"),
        ("slow", 3, "ran longer than 3 s"),
        ("full", 60, r"run \(\d+ bytes\) can't be written to .*[Ff]ile"),
    ],
)
def test_a_fault_is_said_and_nothing_is_left(
    board: FakeBoard, bundles: dict[str, Path], fault, what: str, timeout: float, message: str
) -> None:
    fault(what)
    with pytest.raises(DeviceFailed, match=message):
        library.bench(bundles["raspberry-pi-4"], board.url, timeout=timeout, **SHORT)
    assert board.left == []


@requires_server
def test_a_program_for_another_cpu_is_refused(board: FakeBoard, bundles: dict[str, Path]) -> None:
    with pytest.raises(
        DeviceFailed, match=r"a program for x86_64 .* is a aarch64: make a bundle for a target"
    ):
        library.bench(bundles["host"], board.url, **SHORT)
    with pytest.raises(DeviceFailed, match=r"target raspberry-pi-5 has dotprod, fp16, which .* lacks"):
        library.bench(bundles["raspberry-pi-5"], board.url, **SHORT)
    with pytest.raises(DeviceFailed, match="use --device emulator"):
        library.bench(bundles["raspberry-pi-4"], "host", **SHORT)


@requires_server
def test_a_board_that_may_be_another_is_not_trusted(board: FakeBoard) -> None:
    known = board.folder / "known_hosts"
    kept = known.read_text()
    try:
        known.write_text("")
        with pytest.raises(DeviceFailed, match=r"Host key verification failed.*connect once by hand"):
            SshBoard(board.url).open()
        other = (board.folder / "user_key.pub").read_text()
        known.write_text(f"[127.0.0.1]:{board.port} {other}")
        with pytest.raises(DeviceFailed, match=r"verification failed.*another board.*ssh-keygen -R"):
            SshBoard(board.url).open()
    finally:
        known.write_text(kept)


@requires_server
def test_what_people_have_ssh_do_does_not_disturb(board: FakeBoard) -> None:
    config = board.folder / "config"
    kept = config.read_text()
    try:
        config.write_text(
            kept + "  RemoteCommand uptime\n  ExitOnForwardFailure yes\n  LocalForward 1 nowhere:1\n"
        )
        with SshBoard(board.url).open() as place:
            assert place.execute(["echo", "hi"]).stdout == b"hi\n"
    finally:
        config.write_text(kept)


@requires_server
def test_a_folder_that_can_not_be_written_is_named(board: FakeBoard) -> None:
    url = board.url.replace(f"{board.folder}/tmp", "/proc")
    with pytest.raises(DeviceFailed, match=r"no folder can be made in /proc.*another one: \?folder=DIR"):
        SshBoard(url).open()


def test_the_emulated_board_is_counted(bundles: dict[str, Path]) -> None:
    first, again = (library.bench(bundles["raspberry-pi-4"], "emulator") for _ in range(2))

    assert first == again
    (found,) = first.benchmarks
    assert found.counts is not None
    assert found.counts.instructions > 100
    assert found.timing is None
    assert found.latency is not None
    assert found.latency.label == "estimated"
    with pytest.raises(UsageError, match="target host has no emulated board"):
        library.bench(bundles["host"], "emulator")


def test_this_machine_is_a_device(bundles: dict[str, Path]) -> None:
    (found,) = library.bench(bundles["host"], **SHORT).benchmarks

    assert found.latency is not None
    assert found.latency.label == "measured (host)"
    assert found.answers is not None
    assert found.answers.n_identical == 4


def test_a_changed_bundle_is_refused(bundles: dict[str, Path], tmp_path: Path) -> None:
    changed = shutil.copytree(bundles["host"], tmp_path / "changed.armlet")
    (changed / "bin" / "run").write_bytes(b"#!/bin/sh\n")
    with pytest.raises(UsageError, match="is corrupted"):
        library.bench(changed, **SHORT)
    assert Bundle.open(bundles["host"])


@pytest.mark.parametrize(
    ("device", "options", "message"),
    [
        ("telnet://board", {}, "there is no such device; one of host, emulator, ssh://"),
        ("host", {"processes": 3}, "an even number"),
        ("host", {"samples": 0}, "above zero"),
        ("host", {"seconds": float("nan")}, "finite and above zero"),
        ("host", {"seconds": float("inf")}, "finite and above zero"),
        ("host", {"timeout": 0.0}, "finite and above zero"),
        ("host", {"latency": "1 h"}, "latency: '1 h' is not a number with one of the units"),
        ("host", {"cpus": (4096,)}, "--cpus 4096: the device has 0"),
    ],
)
def test_bad_usage_is_refused(
    bundles: dict[str, Path], device: str, options: dict[str, int], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        library.bench(bundles["host"], device, **options)


@requires_server
def test_a_board_tells_what_it_is(board: FakeBoard) -> None:
    with SshBoard(board.url).open() as place:
        assert probe(place).machine == "aarch64"


@requires_server
def test_the_command_line(armlet, board: FakeBoard, bundles: dict[str, Path], tmp_path: Path) -> None:
    short = ("--seconds", "1", "--samples", "40", "--processes", "2")
    kept, target = tmp_path / "run.json", tmp_path / "my-board.yaml"

    done = armlet("bench", bundles["host"], *short, "-o", kept)
    assert done.returncode == 0, done.stderr
    assert "answers as the same program does here: bit for bit" in done.stdout
    data = json.loads(kept.read_text())
    assert data["passes"] is True
    assert data["benchmarks"][0]["protocol"] == {"samples": 40, "seconds": 1.0, "processes": 2, "cpus": []}
    assert data["benchmarks"][0]["timing"]["n"] >= 40

    failing = armlet("bench", bundles["host"], *short, "--latency", "1 ns", "--json")
    assert failing.returncode == 1
    assert json.loads(failing.stdout)["checks"][0]["outcome"] == "fail"

    nowhere = armlet("bench", bundles["host"], *short, "-o", tmp_path / "none" / "run.json")
    assert nowhere.returncode == 2
    assert "there is no folder" in nowhere.stderr

    assert armlet("bench", bundles["host"], "--device", board.url, *short).returncode == 4
    assert armlet("bench", bundles["host"], "--device", "board", *short).returncode == 2

    probed = armlet("devices", "probe", board.url, "-o", target)
    assert probed.returncode == 0, probed.stderr
    assert "2 × cortex-a72" in probed.stdout
    assert load_target(str(target)).core.llvm_cpu == "cortex-a72"
    again = armlet("devices", "probe", board.url, "-o", target)
    assert again.returncode == 2
    assert "is there already" in again.stderr
    assert json.loads(armlet("devices", "probe", "host", "--json").stdout)["cores"]
