"""Compares a .tflite file with the ONNX file that it was written from.

The reference is ONNX Runtime without graph optimisations, which computes quantised layers on dequantised numbers: it
rounds where the file says so and nowhere else.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from ai_edge_litert.interpreter import Interpreter

from armlet.analysis.reference import reference_session
from armlet.export.litert.flatbuffer import Array
from armlet.export.litert.graph import Graph

_INTEGER_LEVELS = 255

Samples = Sequence[npt.NDArray[np.generic]]
"""[N, *shape] for each input."""


def difference(tflite_file: Path, onnx_file: Path, samples: Samples) -> float:
    """Return the largest difference; see `armlet.export.litert.verify_litert`."""
    graph = Graph(onnx_file)
    expected = _onnx_outputs(onnx_file, graph, samples)
    found = _litert_outputs(tflite_file, graph, samples)
    differences = []
    for name, reference, result in zip(graph.outputs, expected, found, strict=True):
        if reference.shape != result.shape:
            raise ValueError(f"output {name} has shape {result.shape[1:]}, not {reference.shape[1:]}")
        differences.append(np.abs(_in_steps(result, reference, graph, name)).max())
    # Not Python's max, which loses NaN.
    return float(np.max(differences))


def _in_steps(result: Array, reference: Array, graph: Graph, output: str) -> Array:
    """Return the differences of an output: in its steps if it is quantised, else of its largest value above 1."""
    if output in graph.dequantized:
        step = graph.scales[graph.dequantized[output]].scales[0]
        return np.asarray(np.rint(result / step) - np.rint(reference / step))
    spread = float(np.ptp(reference))
    largest = float(np.abs(reference).max(initial=1.0))
    unit = spread / _INTEGER_LEVELS if graph.quantized and spread else largest
    return np.asarray((result - reference) / unit)


def _onnx_outputs(onnx_file: Path, graph: Graph, samples: Samples) -> list[Array]:
    session = reference_session(onnx_file)
    rows = [session.run(list(graph.outputs), feed) for feed in _feeds(graph, samples)]
    return [np.stack(column) for column in zip(*rows, strict=True)]


def _litert_outputs(tflite_file: Path, graph: Graph, samples: Samples) -> list[Array]:
    interpreter = Interpreter(model_path=str(tflite_file), num_threads=1)
    with _quiet():
        interpreter.allocate_tensors()
    run = interpreter.get_signature_runner()
    rows = []
    for feed in _feeds(graph, samples):
        results = run(**feed)
        rows.append([results[name] for name in graph.outputs])
    return [np.stack(column) for column in zip(*rows, strict=True)]


def _feeds(graph: Graph, samples: Samples) -> Iterator[dict[str, npt.NDArray[np.generic]]]:
    """Give one sample after the other, by the names of the inputs."""
    for i in range(len(samples[0])):
        yield {name: x[i : i + 1] for name, x in zip(graph.inputs, samples, strict=True)}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the line off stderr with which LiteRT says which kernels it chose: it has no setting for that."""
    kept = os.dup(2)
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
