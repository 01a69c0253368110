"""Chooses which real convolutions are computed by Winograd's minimal filtering, and transforms their weights."""

from __future__ import annotations

import numpy as np

from armlet.compile.frontend import graph as g
from armlet.compile.frontend.values import Array
from armlet.compile.kernels import conv2d, winograd
from armlet.compile.kernels.epilogue import FloatClamp
from armlet.compile.kernels.loops import Vector
from armlet.compile.kernels.loops import n_bytes as n_bytes_of
from armlet.compile.layout.packing import pack_conv2d
from armlet.compile.layout.program import Kernel, ProgramBuilder

CACHED_BYTES = 1 << 20
"""Weights up to this many bytes are taken to stay in the outer cache from one inference to the next."""
BYTE_COST = {16: 1.5, 32: 3, 64: 3}
"""Multiply-accumulates in the time that a byte of memory takes, by the bytes of a register.

Raspberry Pi 4 and 5 do 4 and 8 of them in a cycle of 1.5 and 2.4 GHz, and read about 4 and 12 bytes in a nanosecond.
"""


def tile_for(spec: conv2d.Conv2d, vector: Vector) -> int | None:
    """Return m for a convolution, None where it is faster as it stands or has no such form.

    Costs are counted in multiply-accumulates: a vector operation of a transform costs as much as one, about eight for
    each element. Weights that no cache holds are read in order, ahead of what is computed: the slower of both counts.
    """
    fits = spec.kernel == (3, 3) and spec.stride == (1, 1) and spec.groups == 1
    if not fits or not isinstance(spec.epilogue, FloatClamp):
        return None

    def read(weights: int) -> int:
        n_bytes = weights * n_bytes_of(vector.real)
        return int(n_bytes * BYTE_COST[vector.n_bytes]) if n_bytes > CACHED_BYTES else 0

    pairs = spec.channels * spec.outputs
    best, least = None, max(spec.macs, read(9 * pairs))
    for tile in winograd.PAIRS:
        if tile > min(spec.out_height, spec.out_width, winograd.LARGEST_TILE[vector.real]):
            continue
        fast = winograd.Winograd(spec.height, spec.width, spec.channels, spec.outputs, tile, spec.epilogue)
        elements = fast.n_tiles * fast.alpha**2
        computed = elements * (pairs + 8 * (spec.channels + spec.outputs))
        cost = max(computed, read(fast.alpha**2 * pairs))
        if cost < least:
            best, least = tile, cost
    return best


def emit_winograd(
    layer: g.Layer,
    conv: conv2d.Conv2d,
    tile: int,
    operands: tuple[object, Array, Array],
    builder: ProgramBuilder,
) -> object:
    """Call the kernel of a layer; return its flat result.

    Args:
        layer: of the graph.
        conv: the convolution, over the padded input.
        tile: from `tile_for`.
        operands: padded input, weights [outputs, channels, 3, 3], bias.
        builder: of the program.
    """
    x, weight, bias = operands
    assert isinstance(conv.epilogue, FloatClamp)  # noqa: S101 - `tile_for` has looked
    extents = conv.height, conv.width, conv.channels, conv.outputs
    spec = winograd.Winograd(*extents, tile, conv.epilogue, conv.border)
    products = spec.products
    cut = conv2d.tile_of(products, builder.vector)
    packed = np.concatenate([pack_conv2d(w, products, cut) for w in winograd.transformed(weight, tile)])
    kernel = Kernel("conv2d", f"winograd {tile}", spec, winograd.build, spec.macs)
    return builder.call(layer.name, kernel, [x, packed, bias], spec.out_size, builder.vector.real)
