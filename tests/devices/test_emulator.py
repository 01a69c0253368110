from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from armlet.artifacts import TensorInfo
from armlet.devices.base import BlockCounts, ProgramFailed
from armlet.devices.emulator import EmulatedProgram, Emulator
from armlet.errors import UsageError
from armlet.spec.load import load_target
from armlet.spec.target import Cache, Caches, Target

OUTPUTS = (TensorInfo("y", (1, 64)),)


@pytest.fixture
def emulator(board: Target) -> Emulator:
    return Emulator(board, timeout_s=60)


def walking(stride: int, n: int, repeats: int) -> np.ndarray:
    """One sample whose first three values tell the program which memory to touch."""
    sample = np.random.default_rng(0).normal(size=(1, 64)).astype(np.float32)
    sample[0, :3] = stride, n, repeats
    return sample


def l1_misses(counts: BlockCounts) -> int:
    return sum(block.l1_misses for block in counts.blocks)


def l2_misses(counts: BlockCounts) -> int:
    return sum(block.l2_misses for block in counts.blocks)


def test_a_program_gives_the_outputs_of_its_arithmetic(emulator: Emulator, network_program: Path) -> None:
    samples = np.repeat(walking(1, 1, 1), 7, axis=0)
    samples[:, 3:] = np.random.default_rng(1).normal(size=(7, 61))
    weights = (np.arange(4096) % 7 - 3).reshape(64, 64).astype(np.float32)

    outputs = emulator.run(network_program, samples, OUTPUTS)

    # 64 float32 products of up to about 10 are added in another order than NumPy's
    np.testing.assert_allclose(outputs, np.maximum(samples @ weights.T, 0), atol=1e-4)
    program = EmulatedProgram(emulator, network_program, OUTPUTS)
    np.testing.assert_array_equal(program.run_batch((samples,))[0], outputs)


def test_counts_are_the_same_in_every_run(emulator: Emulator, network_program: Path, tmp_path: Path) -> None:
    sample = walking(64, 1000, 2)
    first = emulator.count(network_program, sample)
    moved = tmp_path / "a program of another name in another folder"
    moved.write_bytes(network_program.read_bytes())
    moved.chmod(0o755)

    assert first.instructions > 10_000
    assert emulator.count(network_program, sample) == first
    assert emulator.count(moved, sample) == first


def test_executions_do_not_depend_on_the_cache_simulation(emulator: Emulator, network_program: Path) -> None:
    sample = walking(64, 10, 1)
    with_caches = emulator.count(network_program, sample)
    without = emulator.count(network_program, sample, simulate_caches=False)

    assert [(b.address, b.executions) for b in without.blocks] == [
        (b.address, b.executions) for b in with_caches.blocks
    ]
    assert with_caches.caches_simulated
    assert not without.caches_simulated
    assert sum(b.memory_accesses for b in without.blocks) == 0


# Beside `walk` an inference touches the stack, 64 weights' rows (16 KiB), input and output; the walked lines are
# 64 bytes apart. A72: L1 32 KiB in 2 ways, L2 1 MiB.
@pytest.mark.parametrize(
    ("stride", "n", "repeats", "l1", "l2"),
    [
        (64, 4096, 2, 2 * 4096, 0),  # 256 KiB streamed twice: each line leaves the L1 before it is used again
        (64, 32768, 1, 32768, 32768),  # 2 MiB: each line leaves the L2, too
        (16384, 3, 1000, 3000, 0),  # three lines of one set with two ways
        (16384, 2, 1000, 0, 0),  # two lines of it stay
        (1, 128, 1000, 0, 0),  # two lines, touched again and again
    ],
)
def test_the_cache_simulation_finds_known_misses(
    emulator: Emulator, network_program: Path, stride: int, n: int, repeats: int, l1: int, l2: int
) -> None:
    counts = emulator.count(network_program, walking(stride, n, repeats))

    # of the other 300 or so lines those may miss that the walk or the set's other lines pushed out
    assert l1 <= l1_misses(counts) <= l1 + 400
    assert l2 <= l2_misses(counts) <= l2 + 400


def test_the_line_size_comes_from_the_target(board: Target, network_program: Path) -> None:
    caches = Caches(
        l1=Cache(size="32 KiB", ways=2, line="128 B"), l2=Cache(size="1 MiB", ways=16, line="128 B")
    )
    counts = Emulator(board.model_copy(update={"caches": caches})).count(
        network_program, walking(64, 4096, 2)
    )

    assert 4096 <= l1_misses(counts) <= 4096 + 400  # two steps of 64 bytes in each line


def test_a_core_that_the_emulator_lacks_is_refused_with_the_nearest(board: Target) -> None:
    unknown = board.emulator.model_copy(update={"cpu": "cortex-a722"})

    with pytest.raises(
        UsageError, match=r"emulator\.cpu: .* has no core 'cortex-a722' \(did you mean 'cortex-a72'"
    ):
        Emulator(board.model_copy(update={"emulator": unknown}))
    Emulator(board.model_copy(update={"emulator": unknown.model_copy(update={"cpu": "cortex-a72,pmu=off"})}))


def test_32_bit_programs_run_but_are_not_counted(network_program: Path) -> None:
    emulator = Emulator(load_target("raspberry-pi-2"))

    assert emulator.description.startswith("qemu-arm ")
    with pytest.raises(UsageError, match="instructions are counted in 64-bit code only, not under qemu-arm"):
        emulator.count(network_program, walking(1, 1, 1))


MAIN = "int main(void) { %s return 0; }"
SDOT = '__asm__ volatile(".arch armv8.2-a+dotprod\\n sdot v0.4s, v1.16b, v2.16b");'


def test_an_instruction_that_the_core_lacks_is_told(board: Target, build: Callable[..., Path]) -> None:
    program = build(MAIN % SDOT)

    with pytest.raises(ProgramFailed, match=r"an instruction that the target's core \(cortex-a72\) lacks"):
        Emulator(board).run(program, walking(1, 1, 1), OUTPUTS)
    with pytest.raises(ProgramFailed, match="wrote no outputs"):  # the newer core has it
        Emulator(load_target("raspberry-pi-5")).run(program, walking(1, 1, 1), OUTPUTS)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("*(volatile int *)8 = 1;", "read or wrote memory that is not its own"),
        ("return 3;", "exited with 3"),
        ("__builtin_trap();", "SIGTRAP|SIGILL|lacks"),
    ],
)
def test_a_crash_is_told(emulator: Emulator, build: Callable[..., Path], body: str, message: str) -> None:
    with pytest.raises(ProgramFailed, match=message):
        emulator.run(build(MAIN % body), walking(1, 1, 1), OUTPUTS)


def test_a_program_that_hangs_is_ended(board: Target, build: Callable[..., Path]) -> None:
    program = build("int main(void) { for (volatile int i = 0;; i++) {} }")

    with pytest.raises(ProgramFailed, match=r"ran longer than 0\.5 s"):
        Emulator(board, timeout_s=0.5).run(program, walking(1, 1, 1), OUTPUTS)


def test_outputs_of_the_wrong_size_are_refused(emulator: Emulator, network_program: Path) -> None:
    with pytest.raises(ProgramFailed, match="wrote 256 bytes for 1 samples, not 40"):
        emulator.run(network_program, walking(1, 1, 1), (TensorInfo("y", (1, 10)),))


def test_a_program_without_marks_is_not_counted(emulator: Emulator, build: Callable[..., Path]) -> None:
    with pytest.raises(ProgramFailed, match="did not mark the start and the end"):
        emulator.count(build(MAIN % ""), walking(1, 1, 1))


def test_no_samples_give_no_answers(emulator: Emulator, network_program: Path) -> None:
    assert emulator.run(network_program, np.empty((0, 64), np.float32), OUTPUTS).shape == (0, 64)


def test_a_program_that_is_not_there_is_told(emulator: Emulator, tmp_path: Path) -> None:
    with pytest.raises(ProgramFailed, match="there is no program"):
        emulator.run(tmp_path / "run", walking(1, 1, 1), OUTPUTS)


def test_a_target_without_an_emulator_is_refused() -> None:
    with pytest.raises(UsageError, match="target host has no emulator"):
        Emulator(load_target("host"))
