"""Linear layers whose input is quantised while the program runs: their arithmetic in NumPy, and their layers.

The arithmetic is that of ONNX's DynamicQuantizeLinear and MatMulInteger, with a defined answer for all inputs;
`docs/integer-arithmetic.md` says it in words.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import replace

import numpy as np

from armlet.compile.frontend.graph import Array, Clamp, Layer, QuantizeBy, QuantizedTensor, Range, Tensor
from armlet.compile.quantized import reference

LARGEST = 2.0**126
"""Values beyond it count as this much, so that no range is infinite."""
LEAST = 2.0**-118
"""A smaller range counts as none, so that no scale is denormal."""
LOWEST = float(np.finfo(np.float32).min)


def quantization_of(x: Array) -> QuantizedTensor:
    """Return the quantisation of the range of x float32 that zero is in; what is not a number is left out."""
    known = x[~np.isnan(x)]
    low = np.maximum(known.min(initial=0.0), np.float32(-LARGEST)).astype(np.float32)
    high = np.minimum(known.max(initial=0.0), np.float32(LARGEST)).astype(np.float32)
    spread = high - low
    scale = np.float32(1) if spread < np.float32(LEAST) else spread / np.float32(255)
    return QuantizedTensor(float(scale), int(np.minimum(np.rint(-low / scale), 255)) - 128)


def dense(x: Array, weight: Array, scales: Array, bias: Array, clamp: Clamp) -> Array:
    """Return float32 [rows, outputs] of x float32 [rows, inputs].

    Args:
        x: of any values; what is not a number counts as the least integer.
        weight: int8 [outputs, inputs].
        scales: of the weight, float32 [outputs].
        bias: float32 [outputs].
        clamp: limits of the result.
    """
    origin = quantization_of(x)
    shifted = reference.quantize(x, origin).astype(np.int32) - origin.zero
    acc = reference.dense(shifted, weight, np.zeros(len(bias), np.int32)).T
    with np.errstate(over="ignore", invalid="ignore"):
        products = acc.astype(np.float32) * (np.float32(origin.scale) * scales)
        y = np.where(products > np.float32(LOWEST), products, np.float32(LOWEST)) + bias
    if clamp.low is not None:
        y = np.where(y > np.float32(clamp.low), y, np.float32(clamp.low))
    return y if clamp.high is None else np.where(y < np.float32(clamp.high), y, np.float32(clamp.high))


def expand(layer: Layer, tensors: MutableMapping[str, Tensor]) -> tuple[Layer, ...]:
    """Return what a layer consists of: its input's range and integers, unless they are there, and the product."""
    (value,) = layer.inputs
    scale, integers = f"{value}:range", f"{value}:dynamic"
    product = replace(layer, inputs=(integers, scale))
    if integers in tensors:
        return (product,)
    tensors[scale], tensors[integers] = Tensor((2,), "float32"), Tensor(tensors[value].shape, "int8")
    kind = "DynamicQuantizeLinear"
    return (
        Layer(layer.name, kind, Range(), (value,), scale),
        Layer(layer.name, kind, QuantizeBy(), (value, scale), integers),
        product,
    )
