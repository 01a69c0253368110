from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from armlet.artifacts import Counts
from armlet.bench.cycles import estimate_latency, glue, hottest
from armlet.bench.llvm import cost_blocks, find_llvm
from armlet.devices.base import Block
from armlet.errors import ArmletError, MissingDependency
from armlet.spec.load import load_target
from armlet.spec.target import Target


def code(*words: int) -> bytes:
    return b"".join(word.to_bytes(4, "little") for word in words)


NOP = 0xD503201F
ADD = 0x8B000000  # add x0, x0, x0
MUL = 0x9B007C00  # mul x0, x0, x0
RET = 0xD65F03C0
SDOT = 0x4E829420  # sdot v0.4s, v1.16b, v2.16b
UNDEFINED = 0xFFFFFFFF
BRANCHES = {
    "b": 0x14000002, "bl": 0x94000002, "b.ne": 0x54000041, "cbz x0": 0xB4000040, "cbnz w0": 0x35000040,
    "tbz x0": 0x36000040, "tbnz x0": 0x37000040, "br x0": 0xD61F0000, "blr x0": 0xD63F0000, "ret": RET,
}  # fmt: skip


def counts(**changes: object) -> Counts:
    values = {
        "instructions": 1_000_000, "memory_accesses": 400_000, "l1_misses": 1000, "l2_misses": 10,
        "cycles": 900_000.0, "kernels": (), "core_model": "cortex-a72 (llvm-mca 19.1.7)", "coverage": 1.0,
        "emulator": "qemu-aarch64 7.2.22 -cpu cortex-a72",
    }  # fmt: skip
    return Counts(**(values | changes))


@pytest.fixture
def board() -> Target:
    return load_target("raspberry-pi-4")  # constant 1.62, spread 25 %, 1800 MHz


def test_an_estimate_is_constant_times_cycles_over_clock(board: Target) -> None:
    latency = estimate_latency(counts(), board)

    assert latency is not None
    assert latency.label == "estimated"
    assert latency.typical_ms == pytest.approx(0.81)  # 1.62 × 900 000 / 1 800 000 000 s
    assert latency.low_ms == pytest.approx(0.648)  # 0.81 is 25 % above it
    assert latency.high_ms == pytest.approx(1.08)  # 0.81 is 25 % below it


def test_an_estimate_says_how_it_came_about(board: Target) -> None:
    latency = estimate_latency(counts(), board)

    assert latency is not None
    assert latency.how == (
        "estimated from exact instruction counts under qemu-aarch64 7.2.22 -cpu cortex-a72 and the core model"
        " cortex-a72 (llvm-mca 19.1.7) at 1800 MHz, constant 1.62 from:"
        f" {board.calibration.source.rstrip('.')}; one thread;"
        " never compared with the board running this program"
    )


def test_an_estimate_of_a_program_for_several_threads_is_that_of_one_and_says_so(board: Target) -> None:
    one, several = estimate_latency(counts(), board), estimate_latency(counts(), board, threads=4)

    assert one is not None
    assert several is not None
    assert (
        "one thread of the 4 that the program may use: what the others save is not modelled;" in several.how
    )
    assert replace(several, how=one.how) == one


@pytest.mark.parametrize(("misses", "high"), [(50_000, 1.08), (50_001, 1.62), (-1, 1.62)])
def test_many_or_unknown_misses_double_the_upper_bound(board: Target, misses: int, high: float) -> None:
    latency = estimate_latency(counts(l1_misses=misses), board)

    assert latency is not None
    assert latency.high_ms == pytest.approx(high)
    assert latency.typical_ms == pytest.approx(0.81)
    assert ("upper bound is at least twice" in latency.how) == (high > 1.5)


def test_a_wide_interval_is_never_narrowed_by_misses(board: Target) -> None:
    wide = board.calibration.model_copy(update={"spread": 0.6})
    latency = estimate_latency(counts(l1_misses=500_000), board.model_copy(update={"calibration": wide}))

    assert latency is not None
    assert latency.high_ms == pytest.approx(0.81 / 0.4)


def test_another_llvm_than_the_constants_was_fitted_with_is_told(board: Target) -> None:
    latency = estimate_latency(counts(core_model="cortex-a72 (llvm-mca 14.0.6)"), board)

    assert latency is not None
    assert latency.how.endswith("the constant was fitted with llvm-mca 19")


def test_without_calibration_or_clock_there_is_no_estimate(board: Target) -> None:
    no_clock = board.core.model_copy(update={"clock_mhz": None})

    assert estimate_latency(counts(), board.model_copy(update={"calibration": None})) is None
    assert estimate_latency(counts(), board.model_copy(update={"core": no_clock})) is None


def test_blocks_that_the_emulator_split_are_joined() -> None:
    first = Block(0x1000, code(NOP, NOP), 7, 10, 2, 1)
    second = Block(0x1008, code(NOP, RET), 7, 20, 3, 1)

    assert glue([second, first]) == [Block(0x1000, code(NOP, NOP, NOP, RET), 7, 30, 5, 2)]


@pytest.mark.parametrize("branch", BRANCHES.values(), ids=BRANCHES)
def test_blocks_are_not_joined_across_a_branch(branch: int) -> None:
    blocks = [Block(0x1000, code(NOP, branch), 7), Block(0x1008, code(NOP), 7)]

    assert glue(blocks) == blocks


def test_blocks_run_at_other_counts_or_elsewhere_are_not_joined() -> None:
    blocks = [
        Block(0x1000, code(NOP, NOP), 7),
        Block(0x1008, code(NOP), 8),
        Block(0x1010, code(NOP), 7),
    ]

    assert glue(blocks) == blocks


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 3), st.booleans()), max_size=20))
def test_joining_keeps_every_executed_instruction(shapes: list[tuple[int, int, bool]]) -> None:
    blocks, address = [], 0x1000
    for n, executions, branch in shapes:
        words = [NOP] * (n - 1) + [RET if branch else NOP]
        blocks.append(Block(address, code(*words), executions, n))
        address += 4 * n
    merged = glue(blocks)

    assert sum(b.n_instructions * b.executions for b in merged) == sum(n * e for n, e, _ in shapes)
    assert sum(b.memory_accesses for b in merged) == sum(n for n, _, _ in shapes)
    assert all(a.address + len(a.code) == b.address for a, b in itertools.pairwise(merged))


def test_the_hottest_blocks_cover_the_share_and_no_more() -> None:
    cold, warm, hot = Block(0, code(NOP), 1), Block(4, code(NOP), 9), Block(8, code(NOP), 90)

    assert hottest([cold, warm, hot], 0.90) == [hot]
    assert hottest([cold, warm, hot], 0.91) == [hot, warm]
    assert hottest([cold, warm, hot], 1.0) == [hot, warm, cold]
    assert hottest([], 0.9995) == []


def test_dependent_instructions_cost_their_latency() -> None:
    adds, muls = cost_blocks(find_llvm(), [code(*[ADD] * 8), code(*[MUL] * 8)], "cortex-a72")

    # Cortex-A72 Software Optimization Guide, sections 3.3 and 3.5: ADD 1 cycle, 64-bit MUL 5 cycles
    assert adds.cycles == pytest.approx(8, rel=0.02)
    assert muls.cycles == pytest.approx(40, rel=0.02)
    assert (adds.n_costed, muls.n_costed) == (8, 8)


def test_independent_instructions_run_side_by_side() -> None:
    (cost,) = cost_blocks(find_llvm(), [code(*[NOP] * 30)], "cortex-a72")

    assert cost.cycles < 16  # dispatch takes at least two a cycle


def test_an_instruction_outside_the_features_is_refused() -> None:
    llvm = find_llvm()

    (cost,) = cost_blocks(llvm, [code(SDOT)], "neoverse-n1", ["dotprod"])
    assert cost.n_costed == 1
    with pytest.raises(ArmletError, match=r"read 0 of 1 instructions with -mcpu=cortex-a72"):
        cost_blocks(llvm, [code(SDOT)], "cortex-a72")
    with pytest.raises(ArmletError, match=r"read 1 of 2 instructions"):
        cost_blocks(llvm, [code(NOP, UNDEFINED)], "cortex-a72")


def test_an_unknown_core_is_refused() -> None:
    with pytest.raises(ArmletError, match="cortex-a999"):
        cost_blocks(find_llvm(), [code(NOP)], "cortex-a999")


def test_missing_tools_name_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)

    with pytest.raises(MissingDependency, match="apt-get install llvm-19"):
        find_llvm()
