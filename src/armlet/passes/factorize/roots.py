"""What layers multiply their weights with, on samples: the roots by which nearest results are found."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.fx import Node

from armlet.analysis.graph import Traced, arguments, aten, shape_of, value_name
from armlet.data.splits import Samples
from armlet.models.recurrent import OPERATOR
from armlet.passes.factorize.candidate import Roots, source_of
from armlet.passes.factorize.decompose import root_of

_BATCH = 128


def roots_of(traced: Traced, samples: Samples) -> Roots:
    """Return the roots of the linear layers, 1×1 convolutions and recurrent layers of a network.

    A layer that runs several times has one of all its inputs. A recurrent matrix is multiplied with the state before
    each frame, which is the layer's own answer to the frame before.
    """
    reads = [read for node in traced.nodes for read in _reads(node, traced)]
    if not reads:
        return {}
    observed = traced.runnable(tuple(dict.fromkeys(name for name, _, _ in reads)))
    names = list(dict.fromkeys(name for name, _, _ in reads))
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    with torch.no_grad():
        for start in range(0, len(samples), _BATCH):
            batch = samples.take(slice(start, start + _BATCH))
            found = dict(zip(names, observed(*map(torch.from_numpy, batch.inputs)), strict=True))
            for name, weight, dim in reads:
                value = found[name][0] if isinstance(found[name], tuple) else found[name]
                n_parts = _n_directions(weight, traced)
                rows = value.double().movedim(dim, -1).reshape(-1, n_parts, value.shape[dim] // n_parts)
                products = torch.einsum("nda,ndb->dab", rows, rows)
                sums[weight] = sums.get(weight, torch.zeros_like(products)) + products
                counts[weight] = counts.get(weight, 0) + len(rows)
    roots = {}
    for weight, total in sums.items():
        parts = torch.stack([torch.from_numpy(root_of(part.numpy() / counts[weight])) for part in total])
        roots[weight] = parts.numpy() if weight.endswith(".recurrent_weight") else parts[0].numpy()
    return roots


def _reads(node: Node, traced: Traced) -> list[tuple[str, str, int]]:
    """Return the values that a node multiplies with a weight: name, the weight's name, dimension of the channels."""
    if node.target == OPERATOR.default:
        weight, recurrent = (traced.tensor_name(arguments(node)[i]) for i in (2, 3))
        found = [(value_name(source_of(node)), weight, 2)]
        is_whole = arguments(node)[5] is None  # with a projection the answer is not the state
        found += [(value_name(node), recurrent, 2)] if is_whole else []
        return [(name, tensor, dim) for name, tensor, dim in found if tensor is not None]
    if node.target not in (aten.linear.default, aten.conv2d.default, aten.conv2d.padding):
        return []
    weight = traced.tensor_name(arguments(node)[1])
    if weight is None or math.prod(int(n) for n in shape_of(arguments(node)[1])[2:]) > 1:
        return []
    is_linear = node.target == aten.linear.default
    return [(value_name(source_of(node)), weight, -1 if is_linear else 1)]


def _n_directions(weight: str, traced: Traced) -> int:
    """Return how many directions stand beside each other in what a weight is multiplied with."""
    if not weight.endswith(".recurrent_weight"):
        return 1
    return int(traced.program.state_dict[weight].shape[0])
