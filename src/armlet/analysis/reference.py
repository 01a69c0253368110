"""ONNX Runtime as the reference: without graph optimisation it rounds where the file says so and nowhere else."""

from __future__ import annotations

from pathlib import Path

import onnxruntime


def reference_session(onnx_file: Path) -> onnxruntime.InferenceSession:
    """Open an ONNX file for evaluation as it stands: QDQ nodes in float, one thread, on the CPU.

    ONNX Runtime's own integer kernels, which its optimisation would choose, saturate on some machines.
    """
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(onnx_file), options, providers=["CPUExecutionProvider"])
