"""Whether the parts of attention and normalisation fit in the widths of their integers."""

from __future__ import annotations

import numpy as np

from armlet.compile.frontend.graph import (
    AddConstant,
    LayerNorm,
    MatMul,
    Multiply,
    QuantizedTensor,
    RowMean,
    Softmax,
)
from armlet.compile.quantized.arithmetic import constant_addition, gains, normalization, requantization

_LARGEST = 255
"""Of a difference of two int8 numbers."""


def check_attention(
    op: MatMul | Softmax | LayerNorm | Multiply | AddConstant | RowMean,
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
        case Softmax():
            largest, factor = 2**29, 2.0**-29 / output.scale
        case LayerNorm():
            by = normalization(shape[-1], inputs[0].scale, op.epsilon)
            gains(op, by.unit, output)
            return
        case AddConstant():
            constant_addition(op, inputs[0], output)
            return
        case RowMean():
            largest, factor = shape[-2] * _LARGEST, inputs[0].scale / (output.scale * shape[-2])
        case MatMul():
            factor = op.factor * inputs[0].scale * inputs[1].scale / output.scale
            largest = shape[-1] * _LARGEST**2
        case Multiply():
            largest, factor = _LARGEST**2, inputs[0].scale * inputs[1].scale / output.scale
    requantization(np.array([factor]))
    if largest >= 2**30 or largest * factor + 256 >= 2**31:
        raise OverflowError("its accumulator could overflow 32 bits")
