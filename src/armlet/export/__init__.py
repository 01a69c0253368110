"""Networks in interchange formats, each verified against torch."""

from __future__ import annotations

from pathlib import Path

from armlet.analysis.onnx_info import tensor_info
from armlet.artifacts import Exported
from armlet.data.splits import Samples
from armlet.errors import UsageError
from armlet.export.onnx import OPSET, to_onnx, write_onnx
from armlet.export.stream import STREAM_FILE, export_stream
from armlet.export.verify import verify
from armlet.models.network import Network

__all__ = ["ONNX_FILE", "STREAM_FILE", "export_onnx", "export_stream"]

ONNX_FILE = "model.onnx"
_N_VERIFIED = 256


def export_onnx(network: Network, samples: Samples, folder: Path) -> Exported:
    """Write `model.onnx` (batch of one, static shapes) and prove it against torch.

    Args:
        network: float, or quantised: then the file has QDQ nodes.
        samples: of which the first 256 are compared.
        folder: is made if missing.

    Raises:
        UsageError: there are no samples.
        UnsupportedOperator: the network has no ONNX form.
        VerificationFailed: ONNX Runtime and torch disagree.
    """
    if len(samples) == 0:
        raise UsageError("there are no samples to verify the export on")
    model = to_onnx(network)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ONNX_FILE
    write_onnx(model, path)
    found = verify(network, path, samples.take(slice(_N_VERIFIED)))
    return Exported(
        inputs=tuple(tensor_info(value) for value in model.graph.inputs),
        outputs=tuple(tensor_info(value) for value in model.graph.outputs),
        opset=OPSET,
        quantized=network.quantization is not None,
        n_verified=found.n_samples,
        max_abs_difference=found.max_abs_difference,
        tolerance=found.tolerance,
        tolerance_reason=found.reason,
        onnx_bytes=path.stat().st_size,
    )
