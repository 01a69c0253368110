"""Chooses the kernels of a recurrent layer: the input's share of all steps, then the loop over time."""

from __future__ import annotations

import numpy as np

from armlet.compile.frontend import graph as g
from armlet.compile.frontend.values import Array, Constant
from armlet.compile.kernels import conv2d, integer_recurrent, recurrent
from armlet.compile.kernels.epilogue import Epilogue, FloatClamp, Requantize, WeightScale, result
from armlet.compile.layout.packing import pack_conv2d, starts
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

    def padding(values: Array) -> Array:
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
    if op.quantized is None:
        # The right factor, if there are two, comes first.
        weights, factors = op.weight, [*op.recurrent[1:], padding(op.recurrent[0])]
        bias, recurrent_bias, scales, recurrent_scales = op.bias, op.recurrent_bias, [], []
        epilogue: Epilogue = FloatClamp(None, None)
    else:
        weights, factors = op.quantized[0].values, [padding(op.quantized[1].values)]
        by_row, recurrent_by_row = map(_row_scales, op.quantized)
        bias, recurrent_bias = _in_units(op.bias, by_row), _in_units(op.recurrent_bias, recurrent_by_row)
        scales, recurrent_scales = ([padding(s).reshape(-1)] for s in (by_row, recurrent_by_row))
        epilogue = WeightScale(None, None)
    constants = [padding(bias).reshape(-1), *scales]
    share = _share(layer, op, padding(weights).reshape(-1, weights.shape[2]), constants, epilogue, builder)
    arguments = [share, *(recurrent.pack_product(factor, vector) for factor in factors), *recurrent_scales]
    arguments += [padding(recurrent_bias).reshape(-1)] if op.cell == "gru" else []
    arguments += [builder.row_major(name).var for name in layer.inputs[1:]]
    kernel = Kernel(op.cell, "loop over time", spec, recurrent.build, spec.macs)
    size = sum(map(spec.size, spec.parts))
    builder.define(layer.output, builder.call(layer.name, kernel, arguments, size, vector.real), None)


def _share(
    layer: g.Layer,
    op: g.Recurrent,
    weight: Array,
    constants: list[Array],
    epilogue: Epilogue,
    builder: ProgramBuilder,
) -> object:
    """Call the kernel that computes the input's share of all gates of all steps.

    Args:
        layer: whose first input it is.
        op: its operator.
        weight: [D × gates, inputs].
        constants: bias, and factors by row where there are any.
        epilogue: what makes a share of an accumulator.
        builder: of the program.
    """
    steps, (rows, inputs) = builder.graph.tensors[layer.inputs[0]].shape[0], weight.shape
    reach = weight.dtype == np.int8 and bool(weight.min() == -128)
    dense = conv2d.Conv2d(1, steps, inputs, rows, (1, 1), (1, 1), 1, epilogue, reach)
    tile = conv2d.tile_of(dense, builder.vector)
    kernel = Kernel(f"{op.cell}_input", tile.step, dense, conv2d.build, dense.macs)
    packed = pack_conv2d(weight[:, :, None, None], dense, tile)
    bias, *factors = constants
    operands = [builder.row_major(layer.inputs[0]).var, packed, starts(bias, weight, tile), *factors]
    return builder.call(layer.name, kernel, operands, steps * rows, result(epilogue, builder.vector))


def _row_scales(weight: Constant) -> Array:
    """Return the scale of each row of int8 weights [D, rows, columns], float32 [D, rows]."""
    assert weight.scale is not None  # noqa: S101 - the frontend gives no others
    return np.broadcast_to(weight.scale, weight.values.shape[:2])


def _in_units(bias: Array, scales: Array) -> Array:
    """Return what sums of products with int8 weights begin at."""
    return (bias / scales).astype(np.float32)


def _emit_integer(layer: g.Layer, op: g.Recurrent, builder: ProgramBuilder) -> None:
    """Call the kernels of a layer that takes int8 values; where its states go on, all that it gives is in float32."""
    assert layer.integer is not None  # noqa: S101 - the caller has looked
    vector, steps = builder.vector, builder.graph.tensors[layer.inputs[0]].shape[0]
    output, dtype = layer.integer.output, builder.graph.tensors[layer.output].dtype
    constants = constants_of(op, layer.integer.inputs[0], output)
    to_gates = Requantize(constants.share.shift, 0, -(2**15), 2**15 - 1, "int16")
    added = [constants.bias, constants.share.multipliers]
    share = _share(layer, op, constants.weight, added, to_gates, builder)
    spec = integer_recurrent.IntegerRecurrence(
        cell=op.cell,  # type: ignore[arg-type]  # the frontend gives no others
        direction=op.direction,  # type: ignore[arg-type]
        steps=steps,
        hidden=constants.recurrent.shape[1],
        has_length="length" in op.given,
        initial=tuple(word for word in op.given if word != "length"),  # type: ignore[misc]
        parts=op.parts,  # type: ignore[arg-type]
        scale=output.scale if dtype == "float32" else None,
        product=Requantize(constants.product.shift, 0, -(2**15), 2**15 - 1, "int16"),
        result=Requantize(constants.result.shift, output.zero, -128, 127),
        multiplier=int(constants.result.multipliers[0]),
        weights_reach_minus_128=bool(constants.recurrent.min() == -128),
    )
    tile = conv2d.tile_of(spec.convolution, vector)
    packed = pack_conv2d(constants.recurrent[:, :, None, None], spec.convolution, tile)
    bias = starts(constants.recurrent_bias, constants.recurrent, tile)
    arguments = [share, packed, bias, constants.product.multipliers, tanh_table()]
    arguments += [builder.row_major(name).var for name in layer.inputs[1:]]
    loop = Kernel(op.cell, "loop over time", spec, integer_recurrent.build, spec.macs, "int8")
    size = sum(map(spec.size, spec.parts))
    builder.define(layer.output, builder.call(layer.name, loop, arguments, size, dtype), None)
