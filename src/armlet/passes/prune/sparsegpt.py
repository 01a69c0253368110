"""Zeros that the other weights of a row make good: one-shot pruning of a layer on its calibration inputs.

For a layer y = W x with inputs X, H = Σ x xᵀ is the Hessian of the squared error of each of its outputs. Column by
column the least important weights become zero, and what that adds to the error is taken back by the columns on the
right.

Source: Frantar and Alistarh 2023, "SparseGPT", algorithm 1; importance and correction are those of the optimal brain
surgeon (Hassibi and Stork 1993).
"""

from __future__ import annotations

import torch
from torch import Tensor

from armlet.analysis.sparsity import Pattern

BLOCK = 128
"""Columns among which the zeros are chosen before any of them is corrected for."""

DAMPING = 0.01
"""Share of the mean of the Hessian's diagonal that is added to it."""


def sparsegpt(weight: Tensor, hessian: Tensor, target: int | Pattern, block: int = BLOCK) -> Tensor:
    """Return a weight with zeros, its other values corrected.

    Args:
        weight: [outputs, inputs].
        hessian: [inputs, inputs], Σ x xᵀ over the calibration inputs.
        target: number of zeros, spread evenly over the blocks, or N of each M along the inputs.
        block: columns to a block; of a pattern, each group is chosen by itself.

    Raises:
        ValueError: the inputs do not divide into groups of the pattern.
    """
    width = target.m if isinstance(target, Pattern) else block
    n_inputs = weight.shape[1]
    if isinstance(target, Pattern) and n_inputs % width:
        raise ValueError(f"{n_inputs} inputs do not divide into groups of {width}")
    corrected, inverse = weight.double().clone(), _inverse_factor(hessian.double())
    n_zeros = 0
    for start in range(0, n_inputs, width):
        stop = min(start + width, n_inputs)
        importance = (corrected[:, start:stop] / inverse.diagonal()[start:stop]) ** 2
        if isinstance(target, Pattern):
            gone = importance.argsort(dim=1, stable=True).argsort(dim=1) < target.m - target.n
        else:
            n_due = target * stop // n_inputs - n_zeros
            gone = torch.zeros_like(importance, dtype=torch.bool)
            gone.view(-1)[importance.flatten().argsort(stable=True)[:n_due]] = True
            n_zeros += n_due
        for column in range(start, stop):
            pruned = torch.where(gone[:, column - start], 0.0, corrected[:, column])
            error = (corrected[:, column] - pruned) / inverse[column, column]
            corrected[:, column:] -= error[:, None] * inverse[column, column:]
            corrected[:, column] = pruned
    return corrected.to(weight.dtype)


def _inverse_factor(hessian: Tensor) -> Tensor:
    """Return the upper factor U of the damped Hessian's inverse, UᵀU = H⁻¹: its rows are the corrections."""
    mean = hessian.diagonal().mean()
    damping = DAMPING * mean if mean > 0 else torch.ones_like(mean)
    damped = hessian + damping * torch.eye(len(hessian), dtype=hessian.dtype)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor
