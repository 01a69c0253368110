"""Recurrent layers in integers: their constants, and their arithmetic in NumPy (`docs/integer-arithmetic.md`)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from armlet.compile.frontend.graph import Recurrent
from armlet.compile.frontend.values import Array, QuantizedTensor
from armlet.compile.quantized import reference
from armlet.compile.quantized.arithmetic import ACCUMULATOR_LIMIT, INT32_LIMIT, requantization
from armlet.compile.quantized.reference import FixedPoint

GATE_BITS = 10
"""Fraction bits of what a gate's function is taken of: int16 from -32 to 32."""
STATE_BITS = 15
"""Fraction bits of hidden states and of what gates give: int16 from -1 to 1."""
CELL_BITS = 11
"""Fraction bits of an lstm's cell state: int16 from -16 to 16."""
TABLE_STEP = 6
"""log2 of the numbers of 11 fraction bits between two entries of the table."""


@dataclass(frozen=True, slots=True, eq=False)
class RecurrentConstants:
    """What an integer layer multiplies with; D directions, G gates, H units, I inputs.

    Attributes:
        weight: int8 [D × G × H, I].
        bias: int32 [D × G × H], of the input's accumulators, the zero point of the input folded in.
        share: from those to gates.
        recurrent: int8 [D × G × H, H].
        recurrent_bias: int32 [D × G × H], with the zero point of the output folded in.
        product: from the recurrent accumulators to gates.
        result: from a hidden state to the output.
    """

    weight: Array
    bias: Array
    share: FixedPoint
    recurrent: Array
    recurrent_bias: Array
    product: FixedPoint
    result: FixedPoint


def constants_of(op: Recurrent, origin: QuantizedTensor, output: QuantizedTensor) -> RecurrentConstants:
    """Return the constants of a layer with integer weights.

    Raises:
        OverflowError: an accumulator could overflow, or a scale is out of proportion.
    """
    if op.quantized is None:
        raise OverflowError("its weights are not quantized to int8")
    folded = []
    for constant, bias, scale, zero in (
        (op.quantized[0], op.bias, origin.scale, origin.zero),
        (op.quantized[1], op.recurrent_bias, output.scale, output.zero),
    ):
        assert constant.scale is not None  # noqa: S101 - the frontend gives no others
        directions, rows, columns = constant.values.shape
        scales = scale * np.broadcast_to(constant.scale.astype(np.float64), (directions, rows)).reshape(-1)
        values = constant.values.reshape(-1, columns)
        whole = np.rint(bias.astype(np.float64).reshape(-1) / scales)
        largest = 256 * np.abs(values.astype(np.int64)).sum(1) + np.abs(whole)
        if np.any(largest >= ACCUMULATOR_LIMIT):
            raise OverflowError("its accumulator could overflow 32 bits")
        start = whole.astype(np.int64) - zero * values.astype(np.int64).sum(1)
        folded.append((values, start.astype(np.int32), _to_gates(scales, largest)))
    if op.cell == "rnn_relu" and 255 * output.scale >= 32:
        raise OverflowError("its states do not fit in 16 bits")
    result = requantization(np.array([2.0 ** -state_bits(op.cell) / output.scale]))
    return RecurrentConstants(*folded[0], *folded[1], result)


def state_bits(cell: str) -> int:
    """Return the fraction bits of a cell's hidden state."""
    return GATE_BITS if cell == "rnn_relu" else STATE_BITS


def _to_gates(scales: Array, largest: Array) -> FixedPoint:
    """Return the factors from accumulators of these scales, which are at most so large, to gates."""
    factors = scales * 2.0**GATE_BITS
    if np.any(largest * factors + 256 >= INT32_LIMIT):
        raise OverflowError("its weights are too large for gates of 16 bits")
    return requantization(factors)


def tanh_table() -> Array:
    """Return int16 [513]: tanh of -8, -8 + 1/32, ..., 8 in units of 2^-15."""
    values = np.rint(np.ldexp(np.tanh(np.arange(-256, 257) / 32), STATE_BITS))
    return np.clip(values, -(2**15) + 1, 2**15 - 1).astype(np.int16)


def tanh(x: Array) -> Array:
    """Return the hyperbolic tangent in units of 2^-15 of numbers with 11 fraction bits, between two entries a line."""
    table = tanh_table().astype(np.int64)
    place = np.clip(x.astype(np.int64), -(2**14), 2**14 - 1) + 2**14
    entry, rest = place >> TABLE_STEP, place & ((1 << TABLE_STEP) - 1)
    low = table[entry]
    found: Array = low + _rounded((table[entry + 1] - low) * rest, TABLE_STEP)
    return found


def sigmoid(x: Array) -> Array:
    """Return the sigmoid in units of 2^-15 of numbers with 10 fraction bits: half of 1 + tanh(x / 2)."""
    found: Array = (tanh(x) + 2**15) >> 1
    return found


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """What a layer gives; hidden and cell states are the numbers that go on, as float32 [D, H].

    Attributes:
        outputs: int8 [T, D, H].
        last: int8 [D, H], the hidden state behind the last frame.
    """

    outputs: Array
    last: Array
    hidden: Array
    memory: Array


def run(
    op: Recurrent,
    x: Array,
    constants: RecurrentConstants,
    output: QuantizedTensor,
    length: int | None = None,
    start: tuple[Array, Array] | None = None,
) -> Run:
    """Run a layer.

    Args:
        op: the layer.
        x: int8 [T, I], as stored.
        constants: of the layer.
        output: how the outputs are quantized.
        length: how many frames count, all where it is None.
        start: hidden and cell states before the first frame, float32 [D, H]; zero where it is None.
    """
    steps, directions = len(x), len(op.weight)
    hidden = constants.recurrent.shape[1]
    rows = constants.recurrent.shape[0] // directions
    n = steps if length is None else min(max(length, 0), steps)
    outputs = np.full((steps, directions, hidden), output.zero, np.int8)
    units = state_bits(op.cell), CELL_BITS
    given = (np.zeros((directions, hidden)),) * 2 if start is None else start
    states = [
        _int16(np.rint(np.ldexp(s, bits))).astype(np.int64) for s, bits in zip(given, units, strict=True)
    ]
    last = reference.requantize(states[0], _for_each(constants.result, directions), output.zero, (-128, 127))
    for d in range(directions):
        part = slice(d * rows, (d + 1) * rows)
        backwards = op.direction == "reverse" or d == 1
        accumulators = x.astype(np.int64) @ constants.weight[part].astype(np.int64).T + constants.bias[part]
        share = _rescaled(accumulators.T, constants.share, part).T
        for t in range(n)[:: -1 if backwards else 1]:
            product = constants.recurrent[part].astype(np.int64) @ last[d] + constants.recurrent_bias[part]
            gates = _rescaled(product[:, None], constants.product, part)[:, 0]
            states[0][d], states[1][d] = cell(op.cell, share[t], gates, states[0][d], states[1][d])
            last[d] = reference.requantize(states[0][None, d], constants.result, output.zero, (-128, 127))[0]
            outputs[t, d] = last[d]
    return Run(
        outputs, last, *(np.ldexp(s.astype(np.float32), -b) for s, b in zip(states, units, strict=True))
    )


def _for_each(factor: FixedPoint, n: int) -> FixedPoint:
    return FixedPoint(np.repeat(factor.multipliers, n), factor.shift)


def cell(kind: str, share: Array, product: Array, state: Array, memory: Array) -> tuple[Array, Array]:
    """Return hidden and cell state behind one frame, from the shares of all gates and the recurrent products."""
    if kind == "lstm":
        entry, out, forget, proposed = np.split(_int16(share + product), 4)
        kept = _rounded(sigmoid(forget) * memory, STATE_BITS)
        added = _rounded(sigmoid(entry) * tanh(2 * proposed), 2 * STATE_BITS - CELL_BITS)
        memory = _int16(kept + added)
        return _rounded(sigmoid(out) * tanh(memory), STATE_BITS), memory
    if kind == "gru":
        shares, products = np.split(share, 3), np.split(product, 3)
        update, reset = (sigmoid(_int16(s + p)) for s, p in zip(shares[:2], products[:2], strict=True))
        proposed = tanh(2 * _int16(shares[2] + _rounded(reset * products[2], STATE_BITS)))
        return proposed + _rounded(update * (state - proposed), STATE_BITS), memory
    total = _int16(share + product)
    return (tanh(2 * total) if kind == "rnn_tanh" else np.maximum(total, 0)), memory


def _rescaled(acc: Array, factor: FixedPoint, part: slice) -> Array:
    """Return gates, int16, from accumulators [rows, ...]."""
    multipliers = factor.multipliers[part].astype(np.int64)[:, None]
    return _int16((acc * multipliers + (1 << (factor.shift - 1))) >> factor.shift)


def _int16(x: Array) -> Array:
    limited: Array = np.clip(x, -(2**15), 2**15 - 1)
    return limited


def _rounded(x: Array, shift: int) -> Array:
    """Return x / 2^shift, rounded to the nearest, halves up."""
    shifted: Array = (x + (1 << (shift - 1))) >> shift
    return shifted
