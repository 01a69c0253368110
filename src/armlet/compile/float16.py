"""Makes every real number of a network float16 but for its inputs and outputs.

What kernels sum up and compute in float32 all the same is theirs: see `kernels.loops.LONGEST_SUM`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import replace

from armlet.compile.frontend.graph import Convert, Generic, Graph, Layer
from armlet.compile.frontend.values import Constant, Tensor
from armlet.errors import UnsupportedOperator


def to_float16(graph: Graph) -> Graph:
    """Return the graph on float16, between conversions of its float32 inputs and outputs.

    Raises:
        UnsupportedOperator: names every layer that has integers for real numbers.
    """
    if quantized := [layer for layer in graph.layers if has_integers(layer, graph)]:
        names = "\n  ".join(f"{layer.name} ({layer.kind})" for layer in quantized)
        raise UnsupportedOperator(
            "precision float16 is for networks that are not quantised, and these layers have integers for real"
            f" numbers:\n  {names}"
        )
    ends = [n for n in (*graph.inputs, *graph.outputs) if graph.tensors[n].dtype == "float32"]
    within = {name: f"{name}:float16" for name in ends}
    tensors = {name: _half(tensor) for name, tensor in graph.tensors.items()}
    tensors |= {inner: tensors[name] for name, inner in within.items()}
    tensors |= {name: graph.tensors[name] for name in ends}
    passed = set(graph.inputs).intersection(graph.outputs)
    read = [_conversion(n, within[n], "input") for n in graph.inputs if n in within]
    answers = [_conversion(within[n], n, "output") for n in graph.outputs if n in within and n not in passed]
    layers = (*read, *(_renamed(layer, within) for layer in graph.layers), *dict.fromkeys(answers))
    return dataclasses.replace(graph, layers=layers, tensors=tensors)


def _half(tensor: Tensor) -> Tensor:
    return replace(tensor, dtype="float16") if tensor.dtype == "float32" else tensor


def _conversion(value: str, result: str, end: str) -> Layer:
    return Layer(f"{end} {min(value, result, key=len)}", "Cast", Convert(), (value,), result)


def has_integers(layer: Layer, graph: Graph) -> bool:
    """Whether a layer computes on integers that stand for real numbers, or has such constants."""
    ends = (*layer.inputs, layer.output)
    if layer.integer is not None or any(graph.tensors[name].dtype in ("int8", "uint8") for name in ends):
        return True
    return any(constant.scale is not None for constant in _constants(layer))


def _constants(layer: Layer) -> Iterator[Constant]:
    for field in dataclasses.fields(layer.op):
        value = getattr(layer.op, field.name)
        for part in value if isinstance(value, tuple) else (value,):
            if isinstance(part, Constant):
                yield part


def _renamed(layer: Layer, names: dict[str, str]) -> Layer:
    """Return a layer that reads and writes values under other names."""
    op = layer.op
    if isinstance(op, Generic):
        node = type(op.node)()
        node.CopyFrom(op.node)
        node.input[:] = [names.get(n, n) for n in node.input]
        node.output[:] = [names.get(n, n) for n in node.output]
        op = replace(op, node=node)
    inputs = tuple(names.get(n, n) for n in layer.inputs)
    return replace(layer, op=op, inputs=inputs, output=names.get(layer.output, layer.output))
