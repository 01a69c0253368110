"""Chooses how a depthwise convolution is multiplied, and packs its constants."""

from __future__ import annotations

from armlet.compile.frontend import graph as g
from armlet.compile.frontend.values import Array
from armlet.compile.kernels import depthwise
from armlet.compile.kernels.depthwise_dot import block_of
from armlet.compile.kernels.epilogue import Epilogue
from armlet.compile.layout.packing import pack_depthwise
from armlet.compile.layout.program import Kernel, ProgramBuilder


def emit_depthwise(
    layer: g.Layer,
    extents: tuple[int, int, int, tuple[int, int], tuple[int, int], Epilogue],
    operands: tuple[object, Array, Array, Array | None],
    builder: ProgramBuilder,
) -> object:
    """Call the kernel of a layer; return its flat result.

    Args:
        layer: of the graph.
        extents: height, width and channels of the padded input, kernel, stride, and what becomes of the sums.
        operands: padded input, weights [channels, 1, height, width], bias, and factors by channel where there are any.
        builder: of the program.
    """
    x, weight, bias, factors = operands
    spec = depthwise.Depthwise(*extents, depthwise.largest_weight(weight), builder.small)
    block = block_of(spec, builder.vector)
    schedule = "vector" if block is None else block.step
    kernel = Kernel("depthwise_conv2d", schedule, spec, depthwise.build, spec.macs)
    size = spec.out_height * spec.out_width * spec.channels
    arguments = [x, *pack_depthwise(weight, bias, factors, block)]
    return builder.call(layer.name, kernel, arguments, size, builder.element(layer))
