"""Packs the constants of a depthwise convolution and calls its kernel."""

from __future__ import annotations

from armlet.compile.frontend import graph as g
from armlet.compile.frontend.values import Array
from armlet.compile.kernels import depthwise
from armlet.compile.kernels.depthwise_dot import block_of
from armlet.compile.kernels.epilogue import result
from armlet.compile.layout.packing import pack_depthwise
from armlet.compile.layout.program import Kernel, ProgramBuilder


def emit_depthwise(
    layer: g.Layer,
    spec: depthwise.Depthwise,
    operands: tuple[object, Array, Array, Array | None],
    builder: ProgramBuilder,
) -> object:
    """Call the kernel of a layer; return its flat result.

    Args:
        layer: of the graph.
        spec: of the kernel.
        operands: padded input, weights [channels, 1, height, width], bias, and factors by channel where there are any.
        builder: of the program.
    """
    x, weight, bias, factors = operands
    block = block_of(spec, builder.vector)
    schedule = "vector" if block is None else block.step
    kernel = Kernel("depthwise_conv2d", schedule, spec, depthwise.build, spec.macs)
    arguments = [x, *pack_depthwise(weight, bias, factors, block)]
    return builder.call(layer.name, kernel, arguments, spec.out_size, result(spec.epilogue, builder.vector))
