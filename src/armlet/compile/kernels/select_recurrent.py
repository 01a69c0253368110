"""Chooses the kernels of a recurrent layer: the input's share of all steps, then the loop over time."""

from __future__ import annotations

from armlet.compile.frontend import graph as g
from armlet.compile.kernels import conv2d, integer_recurrent
from armlet.compile.kernels.epilogue import Requantize
from armlet.compile.layout.packing import pack_conv2d
from armlet.compile.layout.program import Kernel, ProgramBuilder
from armlet.compile.quantized.recurrent import constants_of, tanh_table


def emit_integer(layer: g.Layer, op: g.Recurrent, builder: ProgramBuilder) -> None:
    """Call both kernels of a layer that takes int8 values; where its states go on, all that it gives is in float32."""
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
