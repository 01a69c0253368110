"""Layers that slide a window over a picture: convolutions and pooling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as tfl

from armlet.export.litert.flatbuffer import Array, Scales, Tensor
from armlet.export.litert.graph import Layer
from armlet.export.litert.operators import EMITTERS, Context, bias_of, fused
from armlet.export.litert.values import Order


@dataclass(frozen=True, slots=True)
class _Window:
    """Kernel, strides and dilations along (H, W), and the padding: LiteRT's own, or elements put around before."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    padding: int
    around: tuple[tuple[int, int], ...]

    @property
    def is_padded(self) -> bool:
        """Whether a picture has to be padded before."""
        return any(map(any, self.around))


@EMITTERS.register("Conv")
def emit_conv(layer: Layer, context: Context) -> None:
    """CONV_2D [O, kh, kw, I], or DEPTHWISE_CONV_2D [1, kh, kw, O] where each group is one channel."""
    weight = context.graph.constant(layer, 1)
    if weight.values.ndim != 4:
        raise layer.refuse("only two-dimensional convolutions have one")
    window = _window(layer, context, weight.values.shape[2:])
    n_channels = context.graph.shape(layer.inputs[0])[1]
    groups = layer.integer_of("group", 1)
    depthwise = groups == n_channels > 1
    values = weight.values if layer.integer else weight.real
    kernel = values[:, 0].transpose(1, 2, 0)[None] if depthwise else values.transpose(0, 2, 3, 1)
    scales = None
    if layer.integer and weight.quantization is not None:
        scales = Scales(weight.quantization.scales, 0, 3 if depthwise else 0)
    x = context.values.read(layer.inputs[0], Order.CHANNELS_LAST)
    if window.is_padded:
        x = _padded(layer, context, x, window, None)
    inputs = [
        x,
        context.model.add_constant(layer.inputs[1], kernel, scales),
        bias_of(layer, context, x, scales, len(values)),
    ]
    strides, dilations = window.strides, window.dilations
    options: Any
    if depthwise:
        builtin, version = (
            tfl.BuiltinOperator.DEPTHWISE_CONV_2D,
            3 if layer.integer else 2 if max(dilations) > 1 else 1,
        )
        options = tfl.DepthwiseConv2DOptionsT(
            padding=window.padding, strideH=strides[0], strideW=strides[1],
            depthMultiplier=values.shape[0] // n_channels, fusedActivationFunction=fused(layer),
            dilationHFactor=dilations[0], dilationWFactor=dilations[1],
        )  # fmt: skip
    else:
        builtin, version = tfl.BuiltinOperator.CONV_2D, 6 if groups > 1 else 3 if layer.integer else 1
        options = tfl.Conv2DOptionsT(
            padding=window.padding, strideH=strides[0], strideW=strides[1],
            fusedActivationFunction=fused(layer), dilationHFactor=dilations[0], dilationWFactor=dilations[1],
        )  # fmt: skip
    result = context.values.add(layer.output, Order.CHANNELS_LAST)
    context.model.add_operator(builtin, version, inputs, result, options)


@EMITTERS.register("MaxPool")
def emit_max_pool(layer: Layer, context: Context) -> None:
    """MAX_POOL_2D; padding never wins."""
    lowest = np.array(-128, np.int8) if layer.integer else np.array(np.finfo(np.float32).min)
    _pool(layer, context, tfl.BuiltinOperator.MAX_POOL_2D, lowest)


@EMITTERS.register("AveragePool")
def emit_average_pool(layer: Layer, context: Context) -> None:
    """AVERAGE_POOL_2D; LiteRT's own padding is never counted."""
    _pool(layer, context, tfl.BuiltinOperator.AVERAGE_POOL_2D, None)


def _pool(layer: Layer, context: Context, builtin: int, fill: Array | None) -> None:
    counted = fill is None and layer.integer_of("count_include_pad", 0) == 1
    window = _window(layer, context, layer.integers("kernel_shape"), explicit=counted)
    if max(window.dilations) > 1:
        raise layer.refuse("its window is dilated")
    if fill is None and window.is_padded and not counted:
        raise layer.refuse("its padding is not counted, and is not like .tflite's SAME")
    x = context.values.read(layer.inputs[0], Order.CHANNELS_LAST)
    if window.is_padded:
        x = _padded(layer, context, x, window, fill)
    options = tfl.Pool2DOptionsT(
        padding=window.padding, strideH=window.strides[0], strideW=window.strides[1],
        filterHeight=window.kernel[0], filterWidth=window.kernel[1],
    )  # fmt: skip
    result = context.values.add(layer.output, Order.CHANNELS_LAST)
    context.model.add_operator(builtin, 2 if layer.integer else 1, [x], result, options)


def _window(layer: Layer, context: Context, kernel: Sequence[int], *, explicit: bool = False) -> _Window:
    """Read a layer's window; `explicit` pads the picture before even where SAME would do."""
    strides = layer.integers("strides", (1, 1))
    dilations = layer.integers("dilations", (1, 1))
    pads = layer.integers("pads", (0, 0, 0, 0))
    if len(kernel) != 2 or layer.text("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise layer.refuse("only pictures with explicit pads have one")
    extents = context.graph.shape(layer.inputs[0])[2:]
    results = context.graph.shape(layer.output)[2:]
    around, same = [], []
    for axis in (0, 1):
        span = (kernel[axis] - 1) * dilations[axis] + 1
        extent, stride, before = extents[axis], strides[axis], pads[axis]
        if results[axis] != (extent + before + pads[axis + 2] - span) // stride + 1:
            raise layer.refuse("its output size is rounded up")
        # Of the padding behind, only what a window reaches: strides often leave some of it out.
        reached = (results[axis] - 1) * stride + span
        around.append((before, max(reached - extent - before, 0)))
        total = max((-(-extent // stride) - 1) * stride + span - extent, 0)
        same.append((total // 2, total - total // 2))
        explicit = explicit or results[axis] != -(-extent // stride)
    if not any(map(any, around)) or explicit or around != same:
        return _Window(tuple(kernel), strides, dilations, tfl.Padding.VALID, tuple(around))
    return _Window(tuple(kernel), strides, dilations, tfl.Padding.SAME, ((0, 0), (0, 0)))


def _padded(layer: Layer, context: Context, x: Tensor, window: _Window, fill: Array | None) -> Tensor:
    """Return a picture [N, H, W, C] with its window's padding: zeros, or `fill`."""
    amounts = np.array([(0, 0), *window.around, (0, 0)], np.int32)
    shape = [extent + int(sum(pair)) for extent, pair in zip(x.shape, amounts, strict=True)]
    result = context.model.add_tensor(f"{layer.output}/padded", shape, x.quantization)
    inputs = [x, context.model.add_constant(f"{layer.output}/padding", amounts)]
    version = 1 if x.quantization is None else 2
    if fill is None:  # zeros: for int8, LiteRT takes the zero point
        context.model.add_operator(tfl.BuiltinOperator.PAD, version, inputs, result, tfl.PadOptionsT())
    else:
        inputs.append(context.model.add_constant(f"{layer.output}/lowest", fill, x.quantization))
        context.model.add_operator(tfl.BuiltinOperator.PADV2, version, inputs, result, tfl.PadV2OptionsT())
    return result
