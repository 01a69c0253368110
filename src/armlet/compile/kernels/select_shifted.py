"""Sums of the inputs that each pixel of a convolution reads, for weights that are more than int8 numbers by a shift.

Σ x · (w + shift) = Σ x · w + shift · Σ x: the products are those of int8, and the last sum is the same for all outputs.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from armlet.compile.frontend import graph as g
from armlet.compile.frontend.values import Array
from armlet.compile.kernels import conv2d
from armlet.compile.kernels.epilogue import Accumulators
from armlet.compile.layout.packing import pack_conv2d, shifted, starts
from armlet.compile.layout.program import Kernel, ProgramBuilder


def with_sums(
    layer: g.Layer, spec: conv2d.Conv2d, operands: tuple[Any, Array], builder: ProgramBuilder
) -> tuple[conv2d.Conv2d, Array, list[Any]]:
    """Return a convolution with int8 weights, those, and its further arguments: none, or sums of inputs, and shifts.

    Args:
        layer: that is computed.
        spec: of the kernel.
        operands: its input, and the weight [outputs, inputs / groups, kernel height, kernel width].
        builder: of the program, to which the call that makes the sums is added.
    """
    x, weight = operands
    weight, shifts = shifted(weight)
    spec = replace(spec, weights_reach_minus_128=bool(weight.dtype == np.int8 and weight.min() == -128))
    if shifts is None:
        return spec, weight, []
    columns = builder.vector.lanes("int32")  # equal ones: a vector of them is as fast as one
    outputs = columns * spec.groups
    ones = np.ones((outputs, *weight.shape[1:]), np.int8)
    sums = replace(spec, outputs=outputs, epilogue=Accumulators(), weights_reach_minus_128=False, border=None)
    tile = conv2d.tile_of(sums, builder.vector)
    constants = [pack_conv2d(ones, sums, tile), starts(np.zeros(outputs, np.int32), ones, tile)]
    kernel = Kernel("window_sum", tile.step, sums, conv2d.build)
    size = sums.out_height * sums.out_width * outputs
    found = builder.call(layer.name, kernel, [x, *constants], size, "int32")
    return replace(spec, sums=columns), weight, [found, shifts]
