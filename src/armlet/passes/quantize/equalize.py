"""Cross-layer equalisation: rescales the channels between two layers so that the weights of both use their range.

Source: Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.1. With
r1 and r2 the largest weights of a channel in the first and in the second layer, the first is divided and the second
multiplied by s = √(r1 / r2), which leaves the network's answers and makes the two ranges equal. A pair changes its
neighbours', so all pairs are gone through until nothing moves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from armlet.analysis.graph import Traced, arguments, module_name
from armlet.passes.quantize.fold_batch_norm import Moments
from armlet.passes.quantize.joints import Joint, input_ranges, joints, scale_inputs, scale_outputs

_MOST_ROUNDS = 50
_STILL = 1e-3


@dataclass(frozen=True, slots=True)
class Equalized:
    """What equalisation did.

    Attributes:
        moments: those given, of the rescaled channels.
        n_pairs: pairs of layers that were rescaled.
        notes: which pairs were not, and why.
    """

    moments: Mapping[str, Moments]
    n_pairs: int
    notes: tuple[str, ...]


def equalize(traced: Traced, moments: Mapping[str, Moments]) -> Equalized:
    """Rescale the channels between layers, in place.

    Args:
        traced: of the module whose parameters change.
        moments: of layers' outputs, by their names.
    """
    pairs, notes = joints(traced)
    total = [torch.ones((), dtype=torch.float64) for _ in pairs]
    for _ in range(_MOST_ROUNDS):
        factors = [_rescale(traced, pair) for pair in pairs]
        total = [so_far * factor for so_far, factor in zip(total, factors, strict=True)]
        if all((factor - 1).abs().max() < _STILL for factor in factors):
            break
    changed = dict(moments)
    for pair, factor in zip(pairs, total, strict=True):
        name = module_name(pair.first)
        if name in changed:
            changed[name] = Moments(changed[name].mean / factor, changed[name].std / factor)
    return Equalized(changed, len(pairs), notes)


def _rescale(traced: Traced, pair: Joint) -> Tensor:
    """Make the ranges of a pair equal; return what the first layer was divided by, float64 [C]."""
    first, second = parameter_of(traced, pair.first, 1), parameter_of(traced, pair.second, 1)
    bias = parameter_of(traced, pair.first, 2)
    if first is None or second is None:
        raise ValueError(f"{pair.first.name} or {pair.second.name} has no weight of its own")
    ranges1 = first.detach().double().abs().flatten(1).amax(dim=1)
    ranges2 = input_ranges(pair.second, second.detach().double()).reshape(-1, pair.copies).amax(dim=1)
    # A channel without weights on either side has no range to make equal.
    factor = torch.where((ranges1 > 0) & (ranges2 > 0), torch.sqrt(ranges1 / ranges2.clamp(min=1e-30)), 1.0)
    scale_outputs(first, bias, 1 / factor)
    scale_inputs(pair.second, second, factor.repeat_interleave(pair.copies))
    return factor


def parameter_of(traced: Traced, node: torch.fx.Node, position: int) -> Tensor | None:
    """Return the parameter that a node takes at a position, None where it takes none."""
    found = arguments(node)
    name = traced.tensor_name(found[position]) if len(found) > position else None
    return None if name is None else traced.program.state_dict[name]
