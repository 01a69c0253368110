"""The .tflite twin of an exported network, written on LiteRT's own schema without a converter.

Input -> Output: armlet's ONNX file, float or with QDQ nodes -> .tflite with the same inputs and outputs (names, shapes,
float32) and, inside, the same scales and zero points.

Source: Jacob et al. 2018; LiteRT's 8-bit quantization specification.
Limits: batch of one, static shapes; the operators of armlet's own feed-forward networks. LiteRT's integer kernels round
once where ONNX's QDQ form rounds once, but not always to the same side: results may differ by a step or two.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from armlet.artifacts import LitertTwin
from armlet.errors import MissingDependency, VerificationFailed
from armlet.export.litert.report import LitertReport
from armlet.rounding import steps_allowed

__all__ = ["LitertReport", "export_litert", "verify_litert", "write_litert"]

"""A requantisation that rounds to the other side is one step there, and a few where scales shrink on the way to the
output: at most 2 were seen, over networks of up to 24 convolutions. A misplaced weight or pad makes dozens."""
_STEPS = 4  # LiteRT rounds twice where the ONNX file rounds once
FLOAT_TOLERANCE = 1e-3
"""Both compute in float32, but add up in another order: 1e-6 was seen."""


def write_litert(onnx_file: Path, tflite_file: Path) -> LitertReport:
    """Write a .tflite file from an ONNX file; the same ONNX file gives the same bytes.

    Args:
        onnx_file: batch of one, static shapes, opset 13 or later, float32 or static int8 QDQ.
        tflite_file: is written.

    Raises:
        UnsupportedOperator: names each node and operator that has no .tflite form here.
        MissingDependency: ai-edge-litert is not installed.
    """
    try:
        from armlet.export.litert.write import write
    except ModuleNotFoundError as error:
        raise _missing(error) from error
    return write(onnx_file, tflite_file)


def verify_litert(tflite_file: Path, onnx_file: Path, samples: Sequence[npt.NDArray[np.generic]]) -> float:
    """Run both files and return the largest difference of any output.

    Args:
        tflite_file: written by `write_litert`.
        onnx_file: what it was written from.
        samples: [N, *shape] for each input, N > 0.

    Returns:
        For a float network the absolute difference, as a share of the output's largest value where that is above 1.
        For a quantised one, steps of the output's scale, or where the output itself is float, 1/255 of the range of
        its values over the samples.

    Raises:
        MissingDependency: ai-edge-litert or onnxruntime is not installed.
    """
    try:
        from armlet.export.litert.verify import difference
    except ModuleNotFoundError as error:
        raise _missing(error) from error
    return difference(tflite_file, onnx_file, samples)


def export_litert(
    onnx_file: Path, tflite_file: Path, samples: Sequence[npt.NDArray[np.generic]]
) -> LitertTwin:
    """Write a .tflite file and prove that it computes what the ONNX file does.

    Args:
        onnx_file: as `write_litert` takes it.
        tflite_file: is written.
        samples: [N, *shape] for each input, N > 0.

    Raises:
        UnsupportedOperator: names each node and operator that has no .tflite form here.
        VerificationFailed: an output differs by more than the tolerance; no file is left behind.
        MissingDependency: ai-edge-litert or onnxruntime is not installed.
    """
    report = write_litert(onnx_file, tflite_file)
    found = verify_litert(tflite_file, onnx_file, samples)
    tolerance, unit = FLOAT_TOLERANCE, "absolute"
    if report.quantized:
        tolerance, unit = max(_STEPS, steps_allowed(report.n_operators)), "quantisation steps"
    # Written so that NaN fails.
    if not found <= tolerance:
        tflite_file.unlink()
        raise VerificationFailed(
            f"{tflite_file.name} differs from {onnx_file.name} by {found:.3g} ({unit}); {tolerance:g} is allowed"
        )
    return LitertTwin(report.n_bytes, len(samples[0]), found, unit, report.float_layers)


def _missing(error: ModuleNotFoundError) -> MissingDependency:
    package = (error.name or "").partition(".")[0]
    if package == "armlet":
        raise error
    return MissingDependency(package, "writing .tflite files", "pip install 'armlet[compile]'")
