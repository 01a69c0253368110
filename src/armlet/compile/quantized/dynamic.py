"""Layers whose input is quantised while the program runs: their arithmetic in NumPy, and what they consist of.

The arithmetic is that of ONNX's DynamicQuantizeLinear, MatMulInteger and ConvInteger, with a defined answer for all
inputs; `docs/integer-arithmetic.md` says it in words.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import replace

import numpy as np

from armlet.compile.frontend.graph import (
    Conv2d,
    Layer,
    QuantizeBy,
    Range,
    Spread,
)
from armlet.compile.frontend.values import Array, Clamp, QuantizedTensor, Tensor
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
    return _finished(acc, np.float32(origin.scale) * scales, bias, clamp)


def conv2d(x: Array, op: Conv2d) -> Array:
    """Return float32 [O, H', W'] of x float32 [C, H, W] and a layer with an int8 weight and a scale for each output.

    The border of zeros counts as part of the value: zero has the zero point exactly.
    """
    top, left, bottom, right = op.padding
    padded = np.pad(x, ((0, 0), (top, bottom), (left, right)))
    origin, outputs = quantization_of(padded), len(op.weight.values)
    shifted = reference.quantize(padded, origin).astype(np.int32) - origin.zero
    acc = reference.conv2d(shifted, op.weight.values, np.zeros(outputs, np.int32), op.stride, op.groups)
    assert op.weight.scale is not None  # noqa: S101 - a dynamic layer has it
    factors = np.float32(origin.scale) * op.weight.scale.astype(np.float32)
    bias = op.bias.real().astype(np.float32)
    return _finished(acc, factors[:, None, None], bias[:, None, None], op.clamp)


def _finished(acc: Array, factors: Array, bias: Array, clamp: Clamp) -> Array:
    """Return float32 from exact accumulators: their product, no less than the least number, plus the bias, limited."""
    with np.errstate(over="ignore", invalid="ignore"):
        products = acc.astype(np.float32) * factors
        y = np.where(products > np.float32(LOWEST), products, np.float32(LOWEST)) + bias
    if clamp.low is not None:
        y = np.where(y > np.float32(clamp.low), y, np.float32(clamp.low))
    return y if clamp.high is None else np.where(y < np.float32(clamp.high), y, np.float32(clamp.high))


def expand(layer: Layer, tensors: MutableMapping[str, Tensor]) -> tuple[Layer, ...]:
    """Return what a layer consists of: its input with a border, its range and integers, and the product.

    What another layer has put into `tensors` already is left out.
    """
    (value,), kind, layers = layer.inputs, "DynamicQuantizeLinear", []
    op = layer.op
    if isinstance(op, Conv2d) and any(op.padding):
        # Zero lies in every range, and so has its integer exactly: the border can go around the floats.
        source, value = value, f"{value}:border {op.padding}"
        if value not in tensors:
            one, channels, height, width = tensors[source].shape
            top, left, bottom, right = op.padding
            shape = (one, channels, height + top + bottom, width + left + right)
            tensors[value] = Tensor(shape, "float32")
            layers.append(Layer(layer.name, kind, Spread((1, 1), op.padding), (source,), value))
        op = replace(op, padding=(0, 0, 0, 0))
    scale, integers = f"{value}:range", f"{value}:dynamic"
    if integers not in tensors:
        tensors[scale], tensors[integers] = Tensor((2,), "float32"), Tensor(tensors[value].shape, "int8")
        layers.append(Layer(layer.name, kind, Range(), (value,), scale))
        layers.append(Layer(layer.name, kind, QuantizeBy(), (value, scale), integers))
    return (*layers, replace(layer, op=op, inputs=(integers, scale)))
