"""How the outputs of a board's program are held against the host's."""

import dataclasses

import numpy as np
import pytest

from armlet.artifacts import Compiled
from armlet.errors import VerificationFailed
from armlet.stages.compare import compare

INTEGER = Compiled(
    "board", "aarch64-linux-gnu", "cortex-a72", (), "net", (), (), 1, 1, 64, 64, (), (), True, ()
)  # fmt: skip
FLOAT = dataclasses.replace(INTEGER, integer_only=False)
OUTPUTS = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)


def altered(value: float) -> np.ndarray:
    outputs = OUTPUTS.copy()
    outputs[2, 1] = value
    return outputs


def test_equal_outputs_of_integer_programs_match_exactly():
    match = compare(OUTPUTS, OUTPUTS.copy(), INTEGER, INTEGER)
    assert (match.n_samples, match.n_identical, match.max_abs_difference, match.tolerance) == (5, 5, 0.0, 0.0)
    assert match.holds


def test_integer_programs_that_differ_by_one_bit_are_refused():
    with pytest.raises(VerificationFailed, match="1 of 5 outputs of the program for board differ"):
        compare(altered(np.nextafter(OUTPUTS[2, 1], np.float32(9))), OUTPUTS, INTEGER, INTEGER)


def test_float_programs_match_within_the_tolerance_only():
    near, far = altered(OUTPUTS[2, 1] + 1e-5), altered(OUTPUTS[2, 1] + 1e-2)
    assert compare(near, OUTPUTS, FLOAT, FLOAT).holds
    assert compare(near, OUTPUTS, FLOAT, FLOAT).n_identical == 4
    assert not compare(far, OUTPUTS, FLOAT, FLOAT).holds


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("kind", [INTEGER, FLOAT])
def test_values_that_are_not_finite_never_match_not_even_each_other(value, kind):
    for found, expected in (
        (altered(value), OUTPUTS),
        (OUTPUTS, altered(value)),
        (altered(value), altered(value)),
    ):
        with pytest.raises(VerificationFailed, match="not finite"):
            compare(found, expected, kind, kind)


def test_differences_of_int8_outputs_do_not_wrap():
    low, high = np.full((1, 2), -128, np.int8), np.full((1, 2), 127, np.int8)
    assert compare(high, low, FLOAT, FLOAT).max_abs_difference == 255
