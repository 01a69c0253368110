"""Writes a .tflite file from an ONNX file."""

from __future__ import annotations

from pathlib import Path

import armlet.export.litert.windows  # noqa: F401 - registers its emitters
from armlet.errors import UnsupportedOperator
from armlet.export.litert.flatbuffer import FlatModel
from armlet.export.litert.graph import Graph
from armlet.export.litert.operators import EMITTERS, Context
from armlet.export.litert.report import LitertReport
from armlet.export.litert.values import Values


def write(onnx_file: Path, tflite_file: Path) -> LitertReport:
    """Write the twin; see `armlet.export.litert.write_litert`."""
    graph = Graph(onnx_file)
    if unknown := [layer for layer in graph.layers if layer.node.op_type not in EMITTERS]:
        raise UnsupportedOperator(
            "; ".join(str(layer.refuse("the operator is not known")) for layer in unknown)
        )
    model = FlatModel()
    context = Context(graph, model, Values(graph, model))
    inputs = [context.values.add(name) for name in graph.inputs]
    for layer in graph.layers:
        EMITTERS[layer.node.op_type](layer, context)
    outputs = [context.values.read(name) for name in graph.outputs]
    for tensor in outputs:
        if tensor in inputs or tensor.quantization is not None:
            raise UnsupportedOperator(f"output {tensor.name} is not a computed float32 value")
    data = model.to_bytes(inputs, outputs)
    tflite_file.write_bytes(data)
    floats = [
        layer.name
        for layer in graph.layers
        if graph.quantized and not layer.integer and layer.node.op_type != "QuantizeLinear"
    ]
    return LitertReport(len(data), model.n_operators, graph.quantized, tuple(floats))
