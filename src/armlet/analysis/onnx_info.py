"""What an app has to know of the inputs and outputs of an ONNX graph."""

from __future__ import annotations

import onnx_ir as ir

from armlet.artifacts import TensorInfo
from armlet.errors import UnsupportedOperator


def tensor_info(value: ir.Value) -> TensorInfo:
    """Return name, shape, type and INT8 grid of an input or output.

    Raises:
        UnsupportedOperator: its shape is not fixed.
    """
    if value.name is None or value.shape is None or not value.shape.is_static() or value.dtype is None:
        raise UnsupportedOperator(f"{value.name} has no fixed shape")
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
