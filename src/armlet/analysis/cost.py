"""What one inference costs on paper: multiply-accumulates, parameters and bytes of weights."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from armlet.analysis.graph import example_inputs
from armlet.artifacts import Cost
from armlet.models.network import Network
from armlet.models.recurrent import OPERATOR, recurrent_flops

_BYTES = {"int8": 1, "int32": 4}


def cost_of(network: Network) -> Cost:
    """Return the cost of a batch of one; quantised weights count one byte, their biases four.

    Multiply-accumulates are those of convolutions, matrix products, linear and recurrent layers, zeros of the padding
    and frames behind a length included.
    """
    module = network.module
    inputs = example_inputs(network.architecture.inputs, 1)
    with (
        FlopCounterMode(display=False, custom_mapping={OPERATOR: recurrent_flops}) as counter,
        torch.no_grad(),
    ):
        module(*inputs)
    quantization = network.quantization
    bytes_each = (
        {} if quantization is None else {p.parameter: _BYTES[p.dtype] for p in quantization.parameters}
    )
    parameters = dict(module.named_parameters())
    return Cost(
        macs=counter.get_total_flops() // 2,  # a multiply-accumulate is two floating point operations
        parameters=sum(p.numel() for p in parameters.values()),
        weight_bytes=sum(
            p.numel() * bytes_each.get(name, p.element_size()) for name, p in parameters.items()
        ),
    )


def packed_bytes(network: Network) -> int:
    """Return the bytes of all parameters with weights of 4 bits packed two to a byte.

    Programs hold each of them in a byte of its own (`Cost.weight_bytes`): their kernels read INT8.
    """
    found = cost_of(network).weight_bytes
    parameters = () if network.quantization is None else network.quantization.parameters
    small = [network.module.get_parameter(p.parameter).numel() for p in parameters if p.bits == 4]
    return found - sum(n // 2 for n in small)
