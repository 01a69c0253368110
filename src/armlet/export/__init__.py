"""Networks in interchange formats, each verified against torch."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from armlet.artifacts import Exported, TensorInfo
from armlet.data.splits import Samples
from armlet.errors import UnsupportedOperator, UsageError
from armlet.export.onnx import OPSET, to_onnx, write_onnx
from armlet.export.verify import verify
from armlet.models.network import Network

__all__ = ["ONNX_FILE", "export_onnx"]

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
        inputs=tuple(_info(value) for value in model.graph.inputs),
        outputs=tuple(_info(value) for value in model.graph.outputs),
        opset=OPSET,
        quantized=network.quantization is not None,
        n_verified=found.n_samples,
        max_abs_difference=found.max_abs_difference,
        tolerance=found.tolerance,
        tolerance_reason=found.reason,
        onnx_bytes=path.stat().st_size,
    )


def _info(value: ir.Value) -> TensorInfo:
    if value.name is None or value.shape is None or not value.shape.is_static() or value.dtype is None:
        raise UnsupportedOperator(f"the exporter gave {value.name} no fixed shape")
    scale, zero_point = _grid(value)
    return TensorInfo(value.name, tuple(value.shape.numpy()), value.dtype.numpy().name, scale, zero_point)


def _grid(value: ir.Value) -> tuple[float | None, int | None]:
    """Return scale and zero point of the INT8 form that the graph gives an input, or had an output in."""
    producer = value.producer()
    border = (
        [node for node in value.consumers() if node.op_type == "QuantizeLinear"]
        if producer is None
        else [producer]
    )
    if len(border) != 1 or border[0].op_type not in ("QuantizeLinear", "DequantizeLinear"):
        return None, None
    scale, zero_point = (x.const_value if x is not None else None for x in border[0].inputs[1:3])
    if scale is None or zero_point is None:
        return None, None
    return float(scale.numpy()), int(zero_point.numpy())
