"""Calls the kernel of linear layers whose weights have scales for groups of inputs."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import numpy as np

from armlet.compile.frontend import graph as g
from armlet.compile.kernels import grouped
from armlet.compile.kernels.epilogue import FloatClamp
from armlet.compile.layout.packing import pack_conv2d
from armlet.compile.layout.program import Kernel, ProgramBuilder


def emit_grouped(layer: g.Layer, op: g.Dense, builder: ProgramBuilder) -> None:
    """Call the product of a float value with such a weight; the value is moved where its groups lie apart."""
    rows = prod(builder.graph.tensors[layer.inputs[0]].shape[:-1])
    source = builder.row_major(layer.inputs[0])
    scales = op.weight.scale
    assert scales is not None  # noqa: S101 - blocks have scales
    outputs, inputs = op.weight.values.shape
    groups = scales.shape[1]
    spec = grouped.Dense(rows, inputs, outputs, groups, FloatClamp(op.clamp.low, op.clamp.high))
    tile = grouped.tile_of(spec, builder.vector)
    by_group = replace(spec.products, channels=groups)
    constants = [
        pack_conv2d(op.weight.values[:, :, None, None], spec.products, tile),
        pack_conv2d(scales.astype(np.float32)[:, :, None, None], by_group, tile),
        op.bias.real().astype(np.float32),
    ]
    kernel = Kernel("grouped_dense", tile.step, spec, grouped.build, spec.products.macs)
    var = builder.call(layer.name, kernel, [source.var, *constants], rows * outputs, "float32")
    builder.define(layer.output, var, None)
