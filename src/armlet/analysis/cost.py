"""What one inference costs on paper: multiply-accumulates, parameters, and bytes of weights, in memory and packed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from armlet.analysis.graph import example_inputs
from armlet.analysis.storage import packed_bytes
from armlet.artifacts import Cost
from armlet.models.network import Network
from armlet.models.recurrent import OPERATOR, recurrent_flops

if TYPE_CHECKING:
    from armlet.models.quantization import ParameterQuantization

_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_UNCOUNTED = {
    OPERATOR: recurrent_flops,
    _ATTENTION: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),  # type: ignore[no-untyped-call]
}
"""Operators that torch does not count by itself, by their shapes."""
_BYTES = {"int8": 1, "int32": 4}


def cost_of(network: Network) -> Cost:
    """Return the cost of a batch of one; quantised weights count one byte, their biases and scales of groups four.

    Multiply-accumulates are those of convolutions, matrix products, linear and recurrent layers, zeros of the padding
    and frames behind a length included.
    """
    module = network.module
    inputs = example_inputs(network.architecture.inputs, 1)
    with (
        FlopCounterMode(display=False, custom_mapping=_UNCOUNTED) as counter,
        torch.no_grad(),
        _without_fused_attention(),
    ):
        module(*inputs)
    quantization = network.quantization
    quantized = {} if quantization is None else {p.parameter: p for p in quantization.parameters}
    parameters = dict(module.named_parameters())
    scale_bytes = 4 * sum(len(q.scales) for q in quantized.values() if q.group)
    return Cost(
        macs=counter.get_total_flops() // 2,  # a multiply-accumulate is two floating point operations
        parameters=sum(p.numel() for p in parameters.values()),
        weight_bytes=sum(
            p.numel() * (_BYTES[quantized[name].dtype] if name in quantized else p.element_size())
            for name, p in parameters.items()
        )
        + scale_bytes,
        stored_bytes=sum(packed_bytes(_as_stored(p, quantized.get(name))) for name, p in parameters.items())
        + scale_bytes,
    )


@contextlib.contextmanager
def _without_fused_attention() -> Iterator[None]:
    """Let torch's own transformer layers compute operator by operator: their fused form counts as nothing."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _as_stored(parameter: torch.Tensor, quantization: ParameterQuantization | None) -> np.ndarray:
    values: np.ndarray = parameter.detach().cpu().numpy()
    if quantization is None:
        return values
    from armlet.models.quantization import quantized_values

    return quantized_values(values, quantization)
