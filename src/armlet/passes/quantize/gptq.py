"""Rounding column by column: what rounding one input's weights does wrong, those not yet rounded make good.

Source: Frantar et al. 2023, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", after
the optimal brain surgeon (Hassibi and Stork 1993). For layers that are one matrix product: linear layers and
convolutions in one group. Others are rounded to the nearest. Scales stay those of the float weights, of groups of
inputs, too, where the paper finds a group's scales anew once the columns before it are rounded.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from armlet.analysis.graph import arguments, aten
from armlet.models.quantization import weight_limit
from armlet.passes.quantize.adaround import Rounded, scales_of
from armlet.passes.quantize.ranges import BATCH, Samples
from armlet.passes.quantize.simulation import Layer, Simulation

_DAMPING = 0.01
"""Share of the mean of the Hessian's diagonal that is added to it, as in the paper's code."""


def gptq(simulation: Simulation, samples: Samples) -> tuple[Rounded, ...]:
    """Choose the rounding of every layer's weights, first to last; what comes before a layer is rounded already.

    Args:
        simulation: its layers get the chosen weights.
        samples: calibration samples, [N, *shape] for each input.

    Returns:
        the layers that were chosen for; others have no form as one matrix product.
    """
    return tuple(_adjust(simulation, layer, samples) for layer in simulation.layers if _is_product(layer))


def _is_product(layer: Layer) -> bool:
    return layer.node.target is not aten.conv_transpose2d.input and layer.groups == 1


def _adjust(simulation: Simulation, layer: Layer, samples: Samples) -> Rounded:
    weight = simulation.weight(layer)
    columns = weight.flatten(1).double()
    second_moments = torch.zeros(columns.shape[1], columns.shape[1], dtype=torch.float64)
    inputs = simulation.inputs(layer, samples)
    n = 0
    for batch in torch.split(inputs, BATCH):
        rows = _rows(layer, batch, weight).double()
        second_moments += rows.T @ rows
        n += len(rows)
    second_moments /= n
    scales = scales_of(layer, weight).expand(weight.shape).flatten(1).double()
    limit = weight_limit(layer.weight.bits)
    nearest = torch.clamp(torch.round(columns / scales), -limit, limit) * scales
    chosen = round_columns(columns, second_moments, scales, limit)
    before, after = (_error(columns - found, second_moments) for found in (nearest, chosen))
    if after < before:
        simulation.set_weight(layer, chosen.reshape(weight.shape).float())
    return Rounded(layer.name, before, min(before, after))


def round_columns(weight: Tensor, second_moments: Tensor, scales: Tensor, limit: int) -> Tensor:
    """Round a matrix so that its products with the inputs change little.

    Args:
        weight: float64 [O, K].
        second_moments: float64 [K, K], mean of x xᵀ over the inputs x.
        scales: float64 [O, K].
        limit: the largest integer.

    Returns:
        float64 [O, K], integers times scales.
    """
    moments = second_moments.clone()
    damping = _DAMPING * moments.diagonal().mean()
    # An input that is always zero has no say; any curvature will do for it.
    moments.diagonal().add_(damping if damping > 0 else 1.0)
    inverse = torch.linalg.inv(moments)
    upper = torch.linalg.cholesky(inverse, upper=True)
    left, rounded = weight.clone(), torch.empty_like(weight)
    for k in range(weight.shape[1]):
        rounded[:, k] = torch.clamp(torch.round(left[:, k] / scales[:, k]), -limit, limit) * scales[:, k]
        error = (left[:, k] - rounded[:, k]) / upper[k, k]
        left[:, k + 1 :] -= error[:, None] * upper[k, k + 1 :]
    return rounded


def _rows(layer: Layer, inputs: Tensor, weight: Tensor) -> Tensor:
    """Return what the weight is multiplied with, [n, K]: of a convolution, its windows."""
    if layer.node.target is aten.linear.default:
        return inputs.reshape(-1, inputs.shape[-1])
    given = [*arguments(layer.node)[3:6], *[1, 0, 1][len(arguments(layer.node)) - 3 :]]
    stride, dilation = _pair(given[0]), _pair(given[2])
    kernel = (weight.shape[2], weight.shape[3])
    if given[1] == "same":
        # An even kernel has one more place behind than before.
        around = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        inputs = functional.pad(
            inputs,
            (around[1] // 2, around[1] - around[1] // 2, around[0] // 2, around[0] - around[0] // 2),
        )
    padding = (0, 0) if isinstance(given[1], str) else _pair(given[1])
    windows = functional.unfold(inputs, kernel, dilation, padding, stride)
    return windows.transpose(1, 2).flatten(0, 1)


def _pair(value: int | list[int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def _error(difference: Tensor, second_moments: Tensor) -> float:
    """Return the mean squared difference of the outputs."""
    return float(((difference @ second_moments) * difference).sum(dim=1).mean())
