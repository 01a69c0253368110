"""Chooses the kernels of a recurrent layer: the input's share of all steps, then the loop over time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from armlet.compile.frontend import graph as g
from armlet.compile.kernels import conv2d, integer_recurrent, recurrent
from armlet.compile.kernels.epilogue import FloatClamp, Requantize, WeightScale
from armlet.compile.layout.packing import pack_conv2d
from armlet.compile.layout.program import Kernel, ProgramBuilder
from armlet.compile.quantized.recurrent import constants_of, tanh_table


def emit_recurrent(layer: g.Layer, op: g.Recurrent, builder: ProgramBuilder) -> None:
    """Call both kernels of a layer: on integers, or in float32 with weights that are integers or not."""
    if layer.integer is not None:
        _emit_integer(layer, op, builder)
    else:
        _emit_float(layer, op, builder)


def _emit_float(layer: g.Layer, op: g.Recurrent, builder: ProgramBuilder) -> None:
    vector, steps = builder.vector, builder.graph.tensors[layer.inputs[0]].shape[0]
    gates = recurrent.GATES[op.cell]
    hidden = op.weight.shape[1] // gates
    padded = recurrent.padded_units(hidden, vector)

    def padding(values: g.Array) -> g.Array:
        """Return values [D, gates × hidden, ...] with rows of zeros behind the units of each gate."""
        whole = values.reshape(len(values), gates, hidden, *values.shape[2:])
        wide = [(0, 0)] * whole.ndim
        wide[2] = (0, padded - hidden)
        return np.pad(whole, wide).reshape(len(values), gates * padded, *values.shape[2:])

    spec = recurrent.Recurrence(
        cell=op.cell,  # type: ignore[arg-type]  # the frontend gives no others
        direction=op.direction,  # type: ignore[arg-type]
        steps=steps,
        hidden=hidden,
        padded=padded,
        rank=op.recurrent[0].shape[2] if len(op.recurrent) > 1 else None,
        has_length="length" in op.given,
        initial=tuple(part for part in op.given if part != "length"),  # type: ignore[misc]
        parts=op.parts,  # type: ignore[arg-type]
        integer_weights=op.quantized is not None,
    )
    share = _share(layer, op, padding, builder)
    if op.quantized is None:
        factors = [
            *op.recurrent[1:],
            padding(op.recurrent[0]),
        ]  # the right factor, if there are two, comes first
        arguments = [share, *(recurrent.pack_product(factor, vector) for factor in factors)]
    else:
        packed = recurrent.pack_product(padding(op.quantized[1].values), vector)
        arguments = [share, packed, padding(_row_scales(op.quantized[1])).reshape(-1)]
    arguments += [padding(op.recurrent_bias).reshape(-1)] if op.cell == "gru" else []
    arguments += [builder.row_major(name).var for name in layer.inputs[1:]]
    kernel = Kernel(op.cell, "loop over time", spec, recurrent.build, spec.macs)
    size = sum(map(spec.size, spec.parts))
    builder.define(layer.output, builder.call(layer.name, kernel, arguments, size, "float32"), None)


def _share(
    layer: g.Layer, op: g.Recurrent, padding: Callable[[g.Array], g.Array], builder: ProgramBuilder
) -> object:
    """Call the kernel that computes the input's share of all gates of all steps."""
    steps, _, inputs = builder.graph.tensors[layer.inputs[0]].shape
    weight, bias = padding(op.weight if op.quantized is None else op.quantized[0].values), op.bias
    constants = []
    if op.quantized is not None:
        scales = _row_scales(op.quantized[0])
        bias, constants = (bias / scales).astype(np.float32), [padding(scales).reshape(-1)]
    rows = weight.shape[0] * weight.shape[1]
    epilogue = FloatClamp(None, None) if op.quantized is None else WeightScale(None, None)
    dense = conv2d.Conv2d(1, steps, inputs, rows, (1, 1), (1, 1), 1, epilogue)
    tile = conv2d.tile_of(dense, builder.vector)
    packed = pack_conv2d(weight.reshape(-1, inputs)[:, :, None, None], dense, tile)
    kernel = Kernel(f"{op.cell}_input", tile.step, dense, conv2d.build, dense.macs)
    operands = [builder.row_major(layer.inputs[0]).var, packed, padding(bias).reshape(-1), *constants]
    return builder.call(layer.name, kernel, operands, steps * rows, "float32")


def _row_scales(weight: g.Constant) -> g.Array:
    """Return the scale of each row of int8 weights [D, rows, columns], float32 [D, rows]."""
    assert weight.scale is not None  # noqa: S101 - the frontend gives no others
    return np.broadcast_to(weight.scale, weight.values.shape[:2])


def _emit_integer(layer: g.Layer, op: g.Recurrent, builder: ProgramBuilder) -> None:
    """Call the kernels of a layer that takes int8 values; where its states go on, all that it gives is in float32."""
    assert layer.integer is not None  # noqa: S101 - the caller has looked
    vector, (steps, _, inputs) = builder.vector, builder.graph.tensors[layer.inputs[0]].shape
    output, result = layer.integer.output, builder.graph.tensors[layer.output].dtype
    constants = constants_of(op, layer.integer.inputs[0], output)
    rows = len(constants.weight)
    to_gates = Requantize(constants.share.shift, 0, -(2**15), 2**15 - 1, "int16")
    reach = bool(constants.weight.min() == -128)
    dense = conv2d.Conv2d(1, steps, inputs, rows, (1, 1), (1, 1), 1, to_gates, reach)
    tile = conv2d.tile_of(dense, vector)
    kernel = Kernel(f"{op.cell}_input", tile.step, dense, conv2d.build, dense.macs)
    weight = pack_conv2d(constants.weight[:, :, None, None], dense, tile)
    operands = [builder.row_major(layer.inputs[0]).var, weight, constants.bias, constants.share.multipliers]
    share = builder.call(layer.name, kernel, operands, steps * rows, "int16")
    spec = integer_recurrent.IntegerRecurrence(
        cell=op.cell,  # type: ignore[arg-type]  # the frontend gives no others
        direction=op.direction,  # type: ignore[arg-type]
        steps=steps,
        hidden=constants.recurrent.shape[1],
        has_length="length" in op.given,
        initial=tuple(word for word in op.given if word != "length"),  # type: ignore[misc]
        parts=op.parts,  # type: ignore[arg-type]
        scale=output.scale if result == "float32" else None,
        product=Requantize(constants.product.shift, 0, -(2**15), 2**15 - 1, "int16"),
        result=Requantize(constants.result.shift, output.zero, -128, 127),
        multiplier=int(constants.result.multipliers[0]),
        weights_reach_minus_128=bool(constants.recurrent.min() == -128),
    )
    convolution = spec.convolution
    packed = pack_conv2d(
        constants.recurrent[:, :, None, None], convolution, conv2d.tile_of(convolution, vector)
    )
    arguments = [share, packed, constants.recurrent_bias, constants.product.multipliers, tanh_table()]
    arguments += [builder.row_major(name).var for name in layer.inputs[1:]]
    loop = Kernel(op.cell, "loop over time", spec, integer_recurrent.build, spec.macs, "int8")
    size = sum(map(spec.size, spec.parts))
    builder.define(layer.output, builder.call(layer.name, loop, arguments, size, result), None)
