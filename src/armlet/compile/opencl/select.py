"""Chooses the kernel of every layer of a program for a GPU; all values lie in row-major order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from math import prod
from types import MappingProxyType
from typing import Any, cast

import numpy as np

from armlet.compile.float16 import has_integers
from armlet.compile.frontend import graph as g
from armlet.compile.frontend.values import Array
from armlet.compile.kernels import elementwise, layer_norm, move, softmax
from armlet.compile.kernels.epilogue import FloatClamp
from armlet.compile.kernels.generic import lower_generic
from armlet.compile.kernels.loops import LARGEST, Vector
from armlet.compile.kernels.recurrent import GATES, Recurrence
from armlet.compile.kernels.select import island_from
from armlet.compile.layout.order import keeps_order
from armlet.compile.layout.program import Kernel, ProgramBuilder
from armlet.compile.lowered import CallInfo, LoweredProgram
from armlet.compile.opencl import recurrent, rows, windows
from armlet.compile.opencl.generic import schedule
from armlet.compile.opencl.items import LOCAL_BYTES
from armlet.errors import UnsupportedOperator
from armlet.spec.recipe import Precision

ITEM = "work items"
"""Name of the schedule of kernels that give an element, a row or a tile of the result to each work item."""


def check_graph(graph: g.Graph) -> None:
    """Refuse what has no kernel for GPUs.

    Raises:
        UnsupportedOperator: names every such layer, with the reason.
    """
    refused = [f"{n.name} ({n.kind}): {reason}" for n in graph.layers for reason in _reasons(n, graph)]
    if refused:
        raise UnsupportedOperator(
            "OpenCL programs are float32 or float16, and these layers can't be part of one:\n  "
            + "\n  ".join(refused)
        )


def select_kernels(graph: g.Graph, precision: Precision) -> LoweredProgram:
    """Return the program of a graph that `check_graph` lets pass, on real numbers of a type."""
    builder = ProgramBuilder(graph, Vector(16, 32, "widening", real=precision))
    return builder.build(lambda: _emit_layers(graph, builder))


def _reasons(layer: g.Layer, graph: g.Graph) -> Iterator[str]:
    op = layer.op
    if has_integers(layer, graph):
        yield "it is quantised"
    elif isinstance(op, g.Generic):
        if not op.elementwise and op.node.op_type not in _GENERIC:
            yield "it has no kernel for GPUs"
    elif type(op) not in _EMITTERS:
        yield "it has no kernel for GPUs"
    elif isinstance(op, g.Recurrent) and recurrent.local_bytes(_recurrence(layer, op, graph)) > LOCAL_BYTES:
        yield f"its states take more than the {LOCAL_BYTES} bytes that every OpenCL device has for a work group"


def _emit_layers(graph: g.Graph, builder: ProgramBuilder) -> None:
    position = 0
    while position < len(graph.layers):
        layer, island = graph.layers[position], island_from(graph, position)
        if isinstance(layer.op, g.Generic) and layer.op.node.op_type == "LogSoftmax":
            _log_softmax(layer, layer.op, builder)
        elif island:
            _generic(island, builder)
        else:
            _EMITTERS[type(layer.op)](layer, layer.op, builder)
        position += max(len(island), 1)


def _call(
    layer: g.Layer,
    builder: ProgramBuilder,
    kernel: Kernel,
    *constants: Array,
    inputs: tuple[str, ...] | None = None,
) -> None:
    """Call a kernel on the layer's inputs, or on some of them, and then constants."""
    names = layer.inputs if inputs is None else inputs
    result = builder.graph.tensors[layer.output]
    operands = [*(builder.value(name).var for name in names), *constants]
    builder.define(layer.output, builder.call(layer.name, kernel, operands, result.size, result.dtype), None)


def _window(
    layer: g.Layer, op: g.Conv2d | g.Pool, kernel: tuple[int, int], builder: ProgramBuilder
) -> windows.Window:
    _, channels, height, width = builder.graph.tensors[layer.inputs[0]].shape
    return windows.Window(channels, height, width, kernel, op.stride, op.padding)


def _conv2d(layer: g.Layer, op: g.Conv2d, builder: ProgramBuilder) -> None:
    outputs, inputs, *kernel = op.weight.values.shape
    window = _window(layer, op, (kernel[0], kernel[1]), builder)
    spec = windows.Conv2d(window, outputs, op.groups, op.clamp.low, op.clamp.high)
    blocks = op.weight.real().astype(np.float32).reshape(outputs // spec.tile, spec.tile, inputs, *kernel)
    packed = np.ascontiguousarray(blocks.transpose(0, 2, 3, 4, 1)).reshape(-1)
    kernel_ = Kernel("conv2d", ITEM, spec, windows.build_conv2d, spec.macs)
    _call(layer, builder, kernel_, packed, op.bias.real().astype(np.float32))


def _dense(layer: g.Layer, op: g.Dense, builder: ProgramBuilder) -> None:
    n_rows = prod(builder.graph.tensors[layer.inputs[0]].shape[:-1])
    weight = op.weight.real().astype(np.float32)
    spec = rows.Dense(n_rows, weight.shape[1], weight.shape[0], op.clamp.low, op.clamp.high)
    packed = np.ascontiguousarray(weight.T).reshape(-1)
    kernel = Kernel("dense", ITEM, spec, rows.build_dense, spec.macs)
    _call(layer, builder, kernel, packed, op.bias.real().astype(np.float32))


def _pool(layer: g.Layer, op: g.Pool, builder: ProgramBuilder) -> None:
    window = _window(layer, op, op.kernel, builder)
    spec = windows.Pool(window, "max" if op.kind == "max_pool2d" else "mean")
    _call(layer, builder, Kernel(op.kind, ITEM, spec, windows.build_pool))


def _sum(layer: g.Layer, op: g.Add | g.Limit, builder: ProgramBuilder) -> None:
    size = builder.graph.tensors[layer.output].size
    spec = elementwise.FloatSum(size, len(layer.inputs), FloatClamp(op.clamp.low, op.clamp.high))
    name = "add" if len(layer.inputs) > 1 else "clamp"
    _call(layer, builder, Kernel(name, ITEM, spec, rows.build_sum))


def _convert(layer: g.Layer, op: g.Convert, builder: ProgramBuilder) -> None:
    del op
    origin, result = (builder.graph.tensors[n] for n in (layer.inputs[0], layer.output))
    spec = elementwise.Convert(result.size, origin.dtype, result.dtype)
    _call(layer, builder, Kernel("convert", ITEM, spec, rows.build_convert))


def _lookup(layer: g.Layer, op: g.Lookup, builder: ProgramBuilder) -> None:
    n_rows, width = op.table.values.shape
    size = builder.graph.tensors[layer.inputs[0]].size
    spec = move.Lookup(n_rows, width, size, builder.vector.real)
    table = op.table.real().astype(np.float32).reshape(-1)
    _call(layer, builder, Kernel("lookup", ITEM, spec, rows.build_lookup), table)


def _matmul(layer: g.Layer, op: g.MatMul, builder: ProgramBuilder) -> None:
    left, right = (builder.graph.tensors[name].shape for name in layer.inputs)
    *leading, n_rows, inner = left
    spec = rows.MatMul(prod(leading), n_rows, inner, right[-1], op.factor)
    _call(layer, builder, Kernel("matmul", ITEM, spec, rows.build_matmul, spec.macs))


def _softmax(layer: g.Layer, op: g.Softmax, builder: ProgramBuilder) -> None:
    *leading, columns = builder.graph.tensors[layer.inputs[0]].shape
    mask = [] if op.mask is None else [op.mask.reshape(-1)]
    if builder.vector.real == "float16":
        mask = [m.clip(*LARGEST) for m in mask]
    spec = softmax.Softmax(prod(leading), columns, op.mask_rows)
    _call(layer, builder, Kernel("softmax", ITEM, spec, rows.build_softmax), *mask)


def _log_softmax(layer: g.Layer, op: g.Generic, builder: ProgramBuilder) -> None:
    del op
    *leading, columns = builder.graph.tensors[layer.inputs[0]].shape
    _call(
        layer,
        builder,
        Kernel("log_softmax", ITEM, rows.LogSoftmax(prod(leading), columns), rows.build_softmax),
    )


def _layer_norm(layer: g.Layer, op: g.LayerNorm, builder: ProgramBuilder) -> None:
    *leading, columns = builder.graph.tensors[layer.inputs[0]].shape
    spec = layer_norm.LayerNorm(prod(leading), columns, op.epsilon, one_gain=op.gain.size < columns)
    _call(layer, builder, Kernel("layer_norm", ITEM, spec, rows.build_layer_norm), op.gain, op.bias)


def _row_mean(layer: g.Layer, op: g.RowMean, builder: ProgramBuilder) -> None:
    del op
    _, n_rows, columns = builder.graph.tensors[layer.inputs[0]].shape
    _call(layer, builder, Kernel("mean", ITEM, rows.ColumnMean(n_rows, columns), rows.build_column_mean))


def _reshape(layer: g.Layer, op: g.Reshape, builder: ProgramBuilder) -> None:
    del op
    builder.define(layer.output, builder.value(layer.inputs[0]).var, None)


def _transpose(layer: g.Layer, op: g.Transpose, builder: ProgramBuilder) -> None:
    tensor = builder.graph.tensors[layer.inputs[0]]
    if keeps_order(tensor.shape, op.order):
        builder.define(layer.output, builder.value(layer.inputs[0]).var, None)
        return
    spec = move.Transpose(tensor.shape, op.order, tensor.dtype)
    _call(layer, builder, Kernel("transpose", ITEM, spec, rows.build_transpose))


def _concat(layer: g.Layer, op: g.Concat, builder: ProgramBuilder) -> None:
    result = builder.graph.tensors[layer.output]
    n_rows = prod(result.shape[: op.axis])
    lengths = tuple(builder.graph.tensors[n].size // n_rows for n in layer.inputs)
    spec = move.Concat(n_rows, lengths, result.dtype)
    _call(layer, builder, Kernel("concat", ITEM, spec, rows.build_concat))


def _part(layer: g.Layer, op: g.Part, builder: ProgramBuilder) -> None:
    whole, part = (builder.graph.tensors[n] for n in (layer.inputs[0], layer.output))
    spec = move.Part(whole.size, op.start, part.size, part.dtype)
    _call(layer, builder, Kernel("part", ITEM, spec, rows.build_part))


def _spread(layer: g.Layer, op: g.Spread, builder: ProgramBuilder) -> None:
    source, result = (builder.graph.tensors[n].shape for n in (layer.inputs[0], layer.output))
    spec = windows.Spread(source[1], source[2], source[3], op.stride, op.padding, result[2], result[3])
    _call(layer, builder, Kernel("spread", ITEM, spec, windows.build_spread))


def _enlarge(layer: g.Layer, op: g.Enlarge, builder: ProgramBuilder) -> None:
    _, channels, height, width = builder.graph.tensors[layer.inputs[0]].shape
    spec = windows.Enlarge(channels, height, width, op.factor)
    _call(layer, builder, Kernel("enlarge", ITEM, spec, windows.build_enlarge))


def _recurrence(layer: g.Layer, op: g.Recurrent, graph: g.Graph) -> Recurrence:
    hidden = op.weight.shape[1] // GATES[op.cell]
    return Recurrence(
        cell=cast(Any, op.cell),  # the frontend gives no others
        direction=cast(Any, op.direction),
        steps=graph.tensors[layer.inputs[0]].shape[0],
        hidden=hidden,
        padded=hidden,
        rank=op.recurrent[0].shape[2] if len(op.recurrent) > 1 else None,
        has_length="length" in op.given,
        initial=cast(Any, tuple(part for part in op.given if part != "length")),
        parts=cast(Any, op.parts),
    )


def _recurrent(layer: g.Layer, op: g.Recurrent, builder: ProgramBuilder) -> None:
    spec = _recurrence(layer, op, builder.graph)
    x, weight = layer.inputs[0], op.weight.reshape(-1, op.weight.shape[2])
    dense = rows.Dense(spec.steps, weight.shape[1], weight.shape[0], None, None)
    kernel = Kernel(f"{op.cell}_input", ITEM, dense, rows.build_dense, dense.macs)
    operands = [builder.value(x).var, np.ascontiguousarray(weight.T).reshape(-1), op.bias.reshape(-1)]
    share = builder.call(layer.name, kernel, operands, spec.steps * weight.shape[0], builder.vector.real)
    products = [recurrent.pack(factor) for factor in reversed(op.recurrent)]  # the right factor comes first
    further = [op.recurrent_bias.reshape(-1)] if op.cell == "gru" else []
    arguments = [share, *products, *further, *(builder.value(name).var for name in layer.inputs[1:])]
    loop = Kernel(op.cell, "loop over time in a work group", spec, recurrent.build, spec.macs)
    size = sum(map(spec.size, spec.parts))
    builder.define(layer.output, builder.call(layer.name, loop, arguments, size, builder.vector.real), None)


def _generic(island: tuple[g.Layer, ...], builder: ProgramBuilder) -> None:
    """Call one kernel for each of some layers that TVM's ONNX import reads, elementwise ones of a chain in one."""
    tensors = builder.graph.tensors
    inner = {layer.output for layer in island}
    inputs = list(dict.fromkeys(n for layer in island for n in layer.inputs if n not in inner))
    shapes = {name: tensors[name].shape for name in [*inputs, *inner]}
    variables: dict[str, Any] = {n: builder.alias(builder.value(n).var, shapes[n]) for n in inputs}
    outside = [n for other in builder.graph.layers if other not in island for n in other.inputs]
    outputs = [layer.output for layer in island if layer.output in {*outside, *builder.graph.outputs}]
    names = "+".join(layer.name for layer in island)
    for call in lower_generic(island, shapes, outputs, False, builder.vector, schedule):
        op = call.name.removeprefix("fused_")
        kernel = builder.add_kernel(op, call.function)
        arguments = [variables[a] if isinstance(a, str) else a for a in call.arguments]
        info = CallInfo(names, op, ITEM, builder.vector.real, 0)
        variables[call.output] = builder.call_tir(info, kernel, arguments, call.shape, call.dtype)
    for name in outputs:
        builder.define(name, builder.alias(variables[name], (tensors[name].size,)), None)


_GENERIC = frozenset({"LogSoftmax", "ReduceSum", "ReduceMax", "BatchNormalization"})
"""ONNX operators without a layer type of their own, which are not element by element."""

# Each function takes the operator of its own class, which no common type but Any can say.
_EMITTERS: Mapping[type, Callable[[g.Layer, Any, ProgramBuilder], None]] = MappingProxyType(
    {
        g.Conv2d: _conv2d,
        g.Dense: _dense,
        g.Pool: _pool,
        g.Add: _sum,
        g.Limit: _sum,
        g.Convert: _convert,
        g.Lookup: _lookup,
        g.MatMul: _matmul,
        g.Softmax: _softmax,
        g.LayerNorm: _layer_norm,
        g.RowMean: _row_mean,
        g.Reshape: _reshape,
        g.Transpose: _transpose,
        g.Concat: _concat,
        g.Part: _part,
        g.Spread: _spread,
        g.Enlarge: _enlarge,
        g.Recurrent: _recurrent,
    }
)
"""What emits each operator; generic ones are emitted by the island."""
