"""Innermost loops of matrix products keep the cores' multipliers busy, by LLVM's models of the cores."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize("precision", ["float32", "int8"])
@pytest.mark.parametrize("board", ["raspberry-pi-4", "raspberry-pi-5"])
def test_loops_reach_85_percent_of_the_issue_limit(benchmark_of, board: str, precision: str):
    issue_limit = benchmark_of("issue_limit")
    for layer in issue_limit.LAYERS:
        found = issue_limit.measure(layer, board, precision)
        assert issue_limit.share_of(found) >= 0.85, found
        assert found["multiplications"] >= found["instructions"] / 2, found


def test_the_innermost_loop_is_the_longest_that_has_no_other_branch(benchmark_of):
    nop, back_3, back_5, on_2 = (
        0xD503201F,
        0x54FFFFA1,
        0x54FFFF61,
        0x54000041,
    )  # nop; b.ne by so many instructions
    words = [nop, nop, on_2, nop, nop, nop, back_3, back_5, nop]
    code = b"".join(word.to_bytes(4, "little") for word in words)
    assert benchmark_of("issue_limit").innermost_loop(code) == code[3 * 4 : 7 * 4]
