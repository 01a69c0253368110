from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from armlet.artifacts import Counts, KernelCount
from armlet.bench.cycles import UNNAMED, count_cycles, estimate_latency
from armlet.devices.emulator import Emulator
from armlet.errors import UsageError
from armlet.spec.target import Target


@pytest.fixture(scope="module")
def sample() -> np.ndarray:
    sample = np.random.default_rng(0).normal(size=(1, 64)).astype(np.float32)
    sample[0, :3] = 64, 10, 3  # walk over 10 lines, 3 times
    return sample


@pytest.fixture(scope="module")
def counts(board: Target, network_program: Path, sample: np.ndarray) -> Counts:
    return count_cycles(Emulator(board).count(network_program, sample), network_program, board)


def kernel(counts: Counts, symbol: str) -> KernelCount:
    (found,) = (k for k in counts.kernels if k.symbol == symbol)
    return found


def test_each_function_gets_exactly_its_instructions(counts: Counts) -> None:
    assert kernel(counts, "spin").instructions == 1 + 2 * 1000 + 1  # as written in the assembly
    assert kernel(counts, "dense").instructions > 2 * 64 * 64
    assert UNNAMED not in [k.symbol for k in counts.kernels]


def test_kernels_add_up_and_come_in_the_order_of_execution(counts: Counts) -> None:
    assert sum(k.instructions for k in counts.kernels) == counts.instructions
    assert sum(k.cycles for k in counts.kernels) == pytest.approx(counts.cycles)
    ours = [k.symbol for k in counts.kernels if k.symbol in ("dense", "relu", "spin", "walk")]
    assert ours == ["dense", "relu", "spin", "walk"]


def test_a_loop_of_one_dependent_instruction_costs_a_cycle_an_iteration(counts: Counts) -> None:
    # `subs` waits for the one before; `b.ne` runs beside it. The A72's latency of an integer add is 1 cycle.
    assert kernel(counts, "spin").cycles == pytest.approx(1000, rel=0.1)  # and a tenth to fill the pipeline


def test_nearly_everything_is_costed_and_the_tools_are_named(counts: Counts, board: Target) -> None:
    assert 0.999 < counts.coverage <= 1
    assert counts.core_model.startswith("cortex-a72 (llvm-mca ")
    assert counts.emulator.endswith("-cpu cortex-a72")
    latency = estimate_latency(counts, board)
    assert latency is not None
    assert counts.emulator in latency.how
    assert counts.core_model in latency.how


def test_without_a_cache_simulation_misses_are_unknown_not_zero(
    board: Target, network_program: Path, sample: np.ndarray, counts: Counts
) -> None:
    blocks = Emulator(board).count(network_program, sample, simulate_caches=False)
    found = count_cycles(blocks, network_program, board)

    assert (found.memory_accesses, found.l1_misses, found.l2_misses) == (-1, -1, -1)
    assert found.cycles == counts.cycles


def test_a_stripped_program_has_no_kernels_but_the_same_total(
    board: Target, network_program: Path, sample: np.ndarray, counts: Counts, tmp_path: Path
) -> None:
    stripped = tmp_path / "stripped"
    subprocess.run(["aarch64-linux-gnu-strip", "-o", str(stripped), str(network_program)], check=True)
    found = count_cycles(Emulator(board).count(stripped, sample), stripped, board)

    assert [k.symbol for k in found.kernels] == [UNNAMED]
    assert found.instructions == counts.instructions


def test_a_position_independent_program_is_attributed_the_same(
    network_pie: Path, board: Target, sample: np.ndarray, counts: Counts
) -> None:
    found = count_cycles(Emulator(board).count(network_pie, sample), network_pie, board)

    assert kernel(found, "spin") == kernel(counts, "spin")


def test_a_target_without_a_core_model_is_refused(
    board: Target, network_program: Path, sample: np.ndarray
) -> None:
    blocks = Emulator(board).count(network_program, sample)
    bare = board.model_copy(update={"core": board.core.model_copy(update={"cost_model": None})})

    with pytest.raises(UsageError, match=r"has no core\.cost_model"):
        count_cycles(blocks, network_program, bare)


def test_a_core_model_that_llvm_lacks_is_refused_with_the_nearest(
    board: Target, network_program: Path, sample: np.ndarray
) -> None:
    blocks = Emulator(board).count(network_program, sample)
    core = board.core.model_copy(update={"cost_model": "neoverse-n11"})

    with pytest.raises(
        UsageError, match=r"core\.cost_model: .* no core 'neoverse-n11' \(did you mean 'neoverse-n1'"
    ):
        count_cycles(blocks, network_program, board.model_copy(update={"core": core}))
