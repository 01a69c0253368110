"""What the passes that quantise have in common: samples, names of modules, notes and checks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from armlet.analysis.cost import cost_of
from armlet.data.splits import Samples
from armlet.models.network import Network
from armlet.passes.quantize.placement import Placement

# Each purpose of a seed draws from a stream of its own.
_STREAM = 3


def calibration_samples(train: Samples, n: int, seed: int) -> tuple[Tensor, ...]:
    """Return at most `n` random training samples, [n, *shape] for each input; the same seed draws the same."""
    chosen = np.random.default_rng((seed, _STREAM)).permutation(len(train))[:n]
    return tuple(map(torch.from_numpy, train.take(np.sort(chosen)).inputs))


def scale_problems(network: Network) -> tuple[str, ...]:
    """Return what is wrong with a quantised network's scales; empty when nothing is."""
    if network.quantization is None:
        return ("the result is not quantised",)
    bad = [a.node for a in network.quantization.activations if not 0 < a.scale < np.inf]
    bad += [p.parameter for p in network.quantization.parameters if not all(0 < s < np.inf for s in p.scales)]
    return (f"scales that are not positive numbers: {', '.join(bad)}",) if bad else ()


def four_bit_bytes(network: Network) -> int:
    """Return the bytes of all parameters with weights of 4 bits two to a byte.

    Programs hold each of them in a byte of its own (`Cost.weight_bytes`): their kernels read INT8.
    """
    found = cost_of(network).weight_bytes
    parameters = () if network.quantization is None else network.quantization.parameters
    small = [network.module.get_parameter(p.parameter).numel() for p in parameters if p.bits == 4]
    return found - sum(n // 2 for n in small)


def packing_note(network: Network) -> Iterator[str]:
    """Say what weights of 4 bits would need, and what they do need."""
    packed, linked = four_bit_bytes(network), cost_of(network).weight_bytes
    if packed < linked:
        yield (
            f"weights of 4 bits: {packed} bytes of parameters when packed, {linked} in the program,"
            " whose kernels read a byte for each"
        )


def group_note(network: Network, placement: Placement, size: int) -> Iterator[str]:
    """Say which linear layers have scales for groups of inputs, if that was asked for, and which have none and why."""
    if not size or network.quantization is None:
        return
    groups = {p.parameter: p.group for p in network.quantization.parameters}
    n, others = 0, []
    for layer in placement.layers:
        weight = network.module.get_parameter(layer.weight)
        if groups.get(layer.weight):
            n += 1
        elif weight.dim() == 2 and layer.weight in groups:
            whole = weight.shape[1] % size == 0
            reason = "it has few values" if whole else f"{weight.shape[1]} inputs"
            others.append(f"{layer.weight.removesuffix('.weight')} ({reason})")
    text = f"weights of {n} linear layers have a scale for each {size} inputs"
    yield f"{text}; without groups are {', '.join(others)}" if others else text


def of_types(types: tuple[str, ...], module: nn.Module) -> list[str]:
    """Return the names of the modules whose class is called so."""
    return [name for name, part in module.named_modules() if name and type(part).__name__ in types]


def unmatched_types(types: tuple[str, ...], module: nn.Module) -> Iterator[str]:
    """Give a problem for each type that none of the modules is."""
    known = sorted({type(part).__name__ for part in module.modules() if not any(part.children())})
    for name in types:
        if not of_types((name,), module):
            yield f"exclude_types has {name!r}, which none of the modules is; there are {', '.join(known)}"


def shared_values(network: Network) -> frozenset[str]:
    """Return the names of weights with few values, which later passes keep."""
    return frozenset(c.parameter for c in network.constraints if c.keeps == "values")
