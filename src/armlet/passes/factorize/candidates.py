"""Which layers can be factorised, by what method, what each rank keeps and costs, and how it is done.

1. Linear layer, 1×1 convolution: a product of two, by singular values.
2. Larger convolution: 1×1, core, 1×1 (Tucker-2), a column and a row kernel (spatial), or 1×1, a column and a row kernel
   of each channel, 1×1 (cp). Transposed: Tucker-2.
3. The matrices of recurrent layers: see `armlet.passes.factorize.recurrent`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from torch.fx import Node

from armlet.analysis.graph import Traced, arguments, aten, shape_of
from armlet.models.factors import Factors, Shape, Whole, factors_of
from armlet.models.recurrent import RecurrentNetwork
from armlet.passes.factorize.candidate import (
    Candidate,
    Convolutions,
    Costs,
    Roots,
    array_of,
    energies,
    energy_of,
    source_of,
    tensor_of,
)
from armlet.passes.factorize.canonical import Fits
from armlet.passes.factorize.decompose import (
    Array,
    product,
    spatial,
    spatial_matrix,
    spectrum,
    tucker2,
    unfolded,
)
from armlet.passes.factorize.losses import Ranks, Spectra
from armlet.passes.factorize.recurrent import recurrent_candidates


def candidates(
    module: nn.Module, traced: Traced, convolutions: Convolutions, roots: Roots | None = None
) -> tuple[tuple[Candidate, ...], tuple[str, ...]]:
    """Return the layers that can be factorised, in graph order, and why others can't.

    Args:
        module: in eval mode.
        traced: its graph.
        convolutions: see rule 2.
        roots: of what layers multiply, from `roots_of`: the energy is then that of results, else that of weights.
    """
    roots = roots or {}
    found: list[Candidate] = []
    notes: list[str] = []
    readers: set[str] = set()
    if isinstance(module, RecurrentNetwork):
        for candidate, reads in recurrent_candidates(module, traced, roots):
            found.append(candidate)
            readers |= reads
    factors = {f"{name}." for name, part in module.named_modules() if isinstance(part, Factors)}
    for name, nodes in _uses(traced).items():
        layer = module.get_submodule(name)
        if name in readers or name.startswith(tuple(factors)) or not isinstance(layer, Whole):
            continue
        made = _whole(name, layer, nodes, convolutions, roots)
        if isinstance(made, str):
            notes.append(f"{name} stays whole: {made}")
        else:
            found.append(made)
    return tuple(found), tuple(notes)


_WEIGHTED = (aten.linear.default, aten.conv2d.default, aten.conv2d.padding, aten.conv_transpose2d.input)


def _uses(traced: Traced) -> dict[str, list[Node]]:
    """Return the nodes that use the weight of each linear layer and convolution, by the module's name."""
    found: dict[str, list[Node]] = {}
    for node in traced.nodes:
        if node.target in _WEIGHTED and (weight := traced.tensor_name(arguments(node)[1])) is not None:
            found.setdefault(weight.rpartition(".")[0], []).append(node)
    return found


def _whole(
    name: str, layer: Whole, nodes: list[Node], convolutions: Convolutions, roots: Roots
) -> Candidate | str:
    """Return the candidate that a linear layer or a convolution is, or why it is none."""
    weight = array_of(layer.weight)
    if isinstance(layer, nn.Linear):
        positions = sum(_positions(node, picture=False) for node in nodes)
        return _linear(name, weight, positions, roots.get(f"{name}.weight"))
    if layer.groups > 1:
        return "a convolution in groups has little to share"
    if isinstance(layer.padding, str) or layer.padding_mode != "zeros":
        return f"its padding ({layer.padding}, {layer.padding_mode}) is not of zeros, by numbers"
    if convolutions == "none":
        return "convolutions: none"
    before = sum(_positions(source_of(node), picture=True) for node in nodes)
    after = sum(_positions(node, picture=True) for node in nodes)
    if isinstance(layer, nn.ConvTranspose2d):
        return _tucker(name, layer, weight, (before, before, after))
    if layer.kernel_size == (1, 1):
        return _pointwise(name, weight, after, roots.get(f"{name}.weight"))
    if convolutions == "cp":
        return _canonical(name, weight, nodes)
    if convolutions == "spatial":
        between = sum(int(shape_of(n)[2]) * int(shape_of(source_of(n))[3]) for n in nodes)
        if layer.padding[1] and layer.kernel_size[1] == 1:
            return "it pads an axis along which it has no kernel"
        return _spatial(name, weight, between, after)
    return _tucker(name, layer, weight, (before, after, after))


def _linear(name: str, weight: Array, positions: int, root: Array | None) -> Candidate:
    n_out, n_in = weight.shape
    return Candidate(
        name, "product of two", Spectra((energies(weight, root),)), Costs(positions * weight.size, weight.size),
        lambda r: ((r[0], n_in), (n_out, r[0])), (positions, positions),
        lambda module, r: _replace(module, name, product(weight, r[0], root)), energy_of(root),
    )  # fmt: skip


def _pointwise(name: str, weight: Array, after: int, root: Array | None) -> Candidate:
    n_out, n_in = weight.shape[:2]
    matrix = weight[:, :, 0, 0]
    return Candidate(
        name, "product of two", Spectra((energies(matrix, root),)), Costs(after * weight.size, weight.size),
        lambda r: ((r[0], n_in, 1, 1), (n_out, r[0], 1, 1)), (after, after),
        lambda module, r: _replace(module, name, [f[:, :, None, None] for f in product(matrix, r[0], root)]),
        energy_of(root),
    )  # fmt: skip


def _spatial(name: str, weight: Array, between: int, after: int) -> Candidate:
    n_out, n_in, height, width = weight.shape
    return Candidate(
        name, "column and row", Spectra((spectrum(spatial_matrix(weight)),)), Costs(after * weight.size, weight.size),
        lambda r: ((r[0], n_in, height, 1), (n_out, r[0], 1, width)), (between, after),
        lambda module, r: _replace(module, name, spatial(weight, r[0])),
    )  # fmt: skip


def _tucker(name: str, layer: Whole, weight: Array, positions: tuple[int, int, int]) -> Candidate:
    """Return the candidate of rule 2; of a transposed convolution inputs are the weight's first dimension."""
    transposed = isinstance(layer, nn.ConvTranspose2d)
    n_in, n_out = weight.shape[:2] if transposed else weight.shape[1::-1]
    kernel = weight.shape[2:]
    in_dim = 0 if transposed else 1

    def core(ranks: Ranks) -> Shape:
        return (*(ranks if transposed else ranks[::-1]), *kernel)

    def apply(module: nn.Module, ranks: Ranks) -> None:
        first, second, middle = tucker2(weight, (ranks[0], ranks[1]) if transposed else (ranks[1], ranks[0]))
        narrow, widen = (first, second) if transposed else (second, first)
        _replace(module, name, (narrow.T[:, :, None, None], middle, widen[:, :, None, None]))

    return Candidate(
        name, "Tucker-2", Spectra(tuple(spectrum(unfolded(weight, dim)) for dim in (in_dim, 1 - in_dim))),
        Costs((positions[0] if transposed else positions[1]) * weight.size, weight.size),
        lambda r: ((r[0], n_in, 1, 1), core(r), (n_out, r[1], 1, 1)), positions, apply,
    )  # fmt: skip


def _canonical(name: str, weight: Array, nodes: list[Node]) -> Candidate:
    """Return the candidate of rule 2 with four factors; three where the kernel is of length 1 along an axis."""
    n_out, n_in, height, width = weight.shape
    before, after = [shape_of(source_of(node)) for node in nodes], [shape_of(node) for node in nodes]
    # Along an axis where the kernel is of length 1, the first factor takes the stride.
    rows, columns = after if height == 1 else before, after if width == 1 else before
    first, second, last = (
        sum(int(down[2]) * int(across[3]) for down, across in zip(*pair, strict=True))
        for pair in ((rows, columns), (after, columns), (after, after))
    )
    positions = (first, *[second] * (height > 1), *[last] * (width > 1), last)
    costs = Costs(last * weight.size, weight.size)

    def shapes(ranks: Ranks) -> list[Shape]:
        (rank,) = ranks
        between = [(rank, 1, *kernel) for kernel in ((height, 1), (1, width)) if kernel != (1, 1)]
        return [(rank, n_in, 1, 1), *between, (n_out, rank, 1, 1)]

    def apply(module: nn.Module, ranks: Ranks) -> None:
        outputs, inputs, *kernels = fits.at(*ranks).components
        for part in kernels:
            outputs = outputs * part[0] if len(part) == 1 else outputs
        parts = [inputs.T, *(part.T for part in kernels if len(part) > 1), outputs]
        _replace(module, name, [part.reshape(s) for part, s in zip(parts, shapes(ranks), strict=True)])

    sizes = [int(np.prod(shape)) for shape in shapes((1,))]
    macs = sum(size * n for size, n in zip(sizes, positions, strict=True))
    fits = Fits(weight, min(costs.macs // macs, costs.parameters // sum(sizes)))
    return Candidate(name, "CP", fits, costs, shapes, positions, apply)


def _replace(module: nn.Module, name: str, weights: Sequence[Array]) -> None:
    """Put factors with these weights in the place of a layer, whose bias the last one gets."""
    layer = module.get_submodule(name)
    if not isinstance(layer, Whole):
        raise TypeError(f"{name} is a {type(layer).__name__}")
    with torch.random.fork_rng(devices=[]):  # the layers are drawn before they are filled
        factors = factors_of(layer, [values.shape for values in weights])
    state = {f"{n}.weight": tensor_of(values, layer.weight) for n, values in enumerate(weights)}
    if layer.bias is not None:
        state[f"{len(weights) - 1}.bias"] = layer.bias.detach()
    factors.load_state_dict(state)
    module.set_submodule(name, factors.eval())


def _positions(node: Node, *, picture: bool) -> int:
    """Return how many vectors of channels a value has for each sample: pixels, or tokens."""
    shape = [int(n) for n in shape_of(node)[1:]]
    return int(np.prod(shape[1:] if picture else shape[:-1]))
