"""Whether the parts of attention and normalisation fit in the widths of their integers."""

from __future__ import annotations

import numpy as np

from armlet.compile.frontend.graph import (
    AddConstant,
    CountedMean,
    LayerNorm,
    MatMul,
    Multiply,
    RowMean,
    Softmax,
)
from armlet.compile.frontend.values import QuantizedTensor
from armlet.compile.quantized.arithmetic import (
    ACCUMULATOR_LIMIT,
    INT32_LIMIT,
    constant_addition,
    gains,
    normalization,
    requantization,
)

_LARGEST = 255
"""Of a difference of two int8 numbers."""


def check_attention(
    op: MatMul | Softmax | LayerNorm | Multiply | AddConstant | RowMean | CountedMean,
    shape: tuple[int, ...],
    inputs: tuple[QuantizedTensor, ...],
    output: QuantizedTensor,
) -> None:
    """Refuse what could overflow.

    Args:
        op: to compute in integers.
        shape: of its first input.
        inputs: their quantization.
        output: that of the result.

    Raises:
        OverflowError: an intermediate number could be too large, with the reason.
    """
    match op:
        case LayerNorm():
            by = normalization(shape[-1], inputs[0].scale, op.epsilon)
            gains(op, by.unit, output)
            return
        case AddConstant():
            constant_addition(op, inputs[0], output)
            return
        case Softmax():
            largest = 2**29
        case RowMean() | CountedMean():
            largest = shape[-2] * _LARGEST
        case MatMul():
            largest = shape[-1] * _LARGEST**2
        case Multiply():
            largest = _LARGEST**2
    factor = factor_of(op, shape, inputs, output)
    requantization(np.array([factor]))
    if largest >= ACCUMULATOR_LIMIT or largest * factor + 256 >= INT32_LIMIT:
        raise OverflowError("its accumulator could overflow 32 bits")


def factor_of(
    op: MatMul | Softmax | Multiply | RowMean | CountedMean,
    shape: tuple[int, ...],
    inputs: tuple[QuantizedTensor, ...],
    output: QuantizedTensor,
) -> float:
    """Return the factor from accumulators to the result, for the arguments of `check_attention`.

    That of a mean over a number of tokens is the one of the number 1, the largest.
    """
    match op:
        case Softmax():
            return 2.0**-29 / output.scale
        case RowMean():
            return inputs[0].scale / (output.scale * shape[-2])
        case CountedMean():
            return inputs[0].scale / output.scale
        case MatMul():
            return op.factor * inputs[0].scale * inputs[1].scale / output.scale
        case Multiply():
            return inputs[0].scale * inputs[1].scale / output.scale
