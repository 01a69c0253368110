"""Which layers can be factorised, by what method, what each rank keeps and costs, and how it is done.

1. Linear layer, 1×1 convolution: a product of two, by singular values.
2. Larger convolution: 1×1, core, 1×1 (Tucker-2), or a column and a row kernel (spatial). Transposed: Tucker-2.
3. Stacked or single lstm of one direction: the recurrent matrix and what reads the layer share one projection of the
   hidden state (Prabhavalkar et al. 2016, "On the Compression of Recurrent Neural Network Models"); the layer becomes
   one with a recurrent projection.
4. Any other recurrent layer: its recurrent matrix becomes two factors in each direction.
5. The input matrix of a layer that reads none of rule 3: a projection of the frames, and a smaller matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Node

from armlet.analysis.graph import Traced, arguments, aten, shape_of
from armlet.models.factors import Factors, Shape, Whole, factors_of
from armlet.models.recurrent import OPERATOR, Recurrent, RecurrentNetwork
from armlet.passes.factorize.decompose import (
    Array,
    product,
    projection,
    spatial,
    spatial_matrix,
    spectrum,
    tucker2,
    unfolded,
)

Ranks = tuple[int, ...]
Convolutions = Literal["tucker", "spatial", "none"]


@dataclass(frozen=True, slots=True)
class Costs:
    """Multiply-accumulates of one inference, and weights."""

    macs: int
    parameters: int


@dataclass(frozen=True, slots=True)
class Candidate:
    """A layer that can be factorised.

    Attributes:
        name: of its module.
        method: in words.
        spectra: for each rank, the squared singular values that it cuts, the largest first.
        before: what its weights cost now.
        shapes: of the weights that take their place.
        positions: how often each of those is used in one inference.
        apply: puts the factors into a module.
    """

    name: str
    method: str
    spectra: tuple[Array, ...]
    before: Costs
    shapes: Callable[[Ranks], Sequence[Shape]]
    positions: tuple[int, ...]
    apply: Callable[[nn.Module, Ranks], None]

    @property
    def full(self) -> Ranks:
        """The ranks that lose nothing."""
        return tuple(len(values) for values in self.spectra)

    def after(self, ranks: Ranks) -> Costs:
        """Return what the factors cost."""
        sizes = [int(np.prod(shape)) for shape in self.shapes(ranks)]
        macs = sum(size * n for size, n in zip(sizes, self.positions, strict=True))
        return Costs(macs, sum(sizes))

    def saves(self, ranks: Ranks) -> bool:
        """Whether the factors cost less, and nothing more."""
        after, before = self.after(ranks), self.before
        return (after.macs <= before.macs and after.parameters <= before.parameters) and after != before

    def kept(self, ranks: Ranks) -> float:
        """Return the least share of the weights' squared norm that the factors keep: each rank's losses add up."""
        lost = [float(values[rank:].sum()) for values, rank in zip(self.spectra, ranks, strict=True)]
        total = float(self.spectra[0].sum())
        return max(0.0, 1 - sum(lost) / total) if total else 1.0

    def ranks_for(self, energy: float) -> Ranks:
        """Return the least ranks of which each loses its equal part of what may be lost, and at least 1."""
        allowed = (1 - energy) * float(self.spectra[0].sum()) / len(self.spectra)
        tails = [np.append(values[::-1].cumsum()[::-1], 0.0) for values in self.spectra]
        # Half a rounding of the sum: at 100 % ranks without any energy go.
        slack = 1e-13 * float(self.spectra[0].sum())
        return tuple(max(1, int(np.argmax(tail <= allowed + slack))) for tail in tails)

    def ladder(self) -> list[Ranks]:
        """Return the ranks for every energy at which one of them changes, the lowest first."""
        total = float(self.spectra[0].sum())
        losses = {float(tail) for values in self.spectra for tail in values[::-1].cumsum()}
        found = {self.ranks_for(1 - len(self.spectra) * lost / total) for lost in losses} if total else set()
        return sorted({(1,) * len(self.spectra), *found})


def candidates(
    module: nn.Module, traced: Traced, convolutions: Convolutions
) -> tuple[tuple[Candidate, ...], tuple[str, ...]]:
    """Return the layers that can be factorised, in graph order, and why others can't."""
    found: list[Candidate] = []
    notes: list[str] = []
    readers: set[str] = set()
    if isinstance(module, RecurrentNetwork):
        for candidate, reads in _recurrent(module, traced):
            found.append(candidate)
            readers |= reads
    factors = {f"{name}." for name, part in module.named_modules() if isinstance(part, Factors)}
    for name, nodes in _uses(traced).items():
        layer = module.get_submodule(name)
        if name in readers or name.startswith(tuple(factors)) or not isinstance(layer, Whole):
            continue
        made = _whole(name, layer, nodes, convolutions)
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


def _whole(name: str, layer: Whole, nodes: list[Node], convolutions: Convolutions) -> Candidate | str:
    """Return the candidate that a linear layer or a convolution is, or why it is none."""
    weight = _array(layer.weight)
    if isinstance(layer, nn.Linear):
        return _linear(name, weight, sum(_positions(node, picture=False) for node in nodes))
    if layer.groups > 1:
        return "a convolution in groups has little to share"
    if isinstance(layer.padding, str) or layer.padding_mode != "zeros":
        return f"its padding ({layer.padding}, {layer.padding_mode}) is not of zeros, by numbers"
    if convolutions == "none":
        return "convolutions: none"
    before = sum(_positions(_source(node), picture=True) for node in nodes)
    after = sum(_positions(node, picture=True) for node in nodes)
    if isinstance(layer, nn.ConvTranspose2d):
        return _tucker(name, layer, weight, (before, before, after))
    if layer.kernel_size == (1, 1):
        return _pointwise(name, weight, before, after)
    if convolutions == "spatial":
        between = sum(int(shape_of(n)[2]) * int(shape_of(_source(n))[3]) for n in nodes)
        if layer.padding[1] and layer.kernel_size[1] == 1:
            return "it pads an axis along which it has no kernel"
        return _spatial(name, weight, between, after)
    return _tucker(name, layer, weight, (before, after, after))


def _linear(name: str, weight: Array, positions: int) -> Candidate:
    n_out, n_in = weight.shape
    return Candidate(
        name, "product of two", (spectrum(weight),), Costs(positions * weight.size, weight.size),
        lambda r: ((r[0], n_in), (n_out, r[0])), (positions, positions),
        lambda module, r: _replace(module, name, product(weight, r[0])),
    )  # fmt: skip


def _pointwise(name: str, weight: Array, before: int, after: int) -> Candidate:
    n_out, n_in = weight.shape[:2]
    matrix = weight[:, :, 0, 0]
    return Candidate(
        name, "product of two", (spectrum(matrix),), Costs(after * weight.size, weight.size),
        lambda r: ((r[0], n_in, 1, 1), (n_out, r[0], 1, 1)), (after, after),
        lambda module, r: _replace(module, name, [f[:, :, None, None] for f in product(matrix, r[0])]),
    )  # fmt: skip


def _spatial(name: str, weight: Array, between: int, after: int) -> Candidate:
    n_out, n_in, height, width = weight.shape
    return Candidate(
        name, "column and row", (spectrum(spatial_matrix(weight)),), Costs(after * weight.size, weight.size),
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
        name, "Tucker-2", tuple(spectrum(unfolded(weight, dim)) for dim in (in_dim, 1 - in_dim)),
        Costs((positions[0] if transposed else positions[1]) * weight.size, weight.size),
        lambda r: ((r[0], n_in, 1, 1), core(r), (n_out, r[1], 1, 1)), positions, apply,
    )  # fmt: skip


def _recurrent(module: RecurrentNetwork, traced: Traced) -> Iterator[tuple[Candidate, set[str]]]:
    """Yield the candidates of rules 3 to 5, each with the names of the layers that it has a part of."""
    frames = next(int(shape_of(_source(n))[1]) for n in traced.nodes if n.target == OPERATOR.default)
    stack = [[layer for layer in level.children() if isinstance(layer, Recurrent)] for level in module.layers]
    names = {layer: name for name, layer in module.named_modules()}
    projected = False
    for number, level in enumerate(stack):
        first = level[0]
        if not projected:
            for layer in level:
                if layer.input_projection_weight is None:
                    yield _input(names[layer], layer, frames), set()
        projected = len(level) == 1 and _can_project(first)
        if not projected:
            for layer in level:
                if layer.projection_weight is None and layer.recurrent_factor_weight is None:
                    yield _factors(names[layer], layer, frames), set()
            continue
        if number + 1 < len(stack):
            readers = [f"{names[layer]}.{_reads(layer)}" for layer in stack[number + 1]]
            yield _hidden(names[first], module, readers, (frames, frames)), set()
        else:
            classifier = "classifier.0" if isinstance(module.classifier, Factors) else "classifier"
            yield _hidden(names[first], module, [f"{classifier}.weight"], (frames, 1)), {classifier}


def _can_project(layer: Recurrent) -> bool:
    free = layer.projection_weight is None and layer.recurrent_factor_weight is None
    return layer.cell == "lstm" and layer.direction != "bidirectional" and free


def _reads(layer: Recurrent) -> str:
    """Return the name of the tensor that a layer multiplies its inputs with."""
    return "weight" if layer.input_projection_weight is None else "input_projection_weight"


def _hidden(name: str, module: nn.Module, readers: list[str], positions: tuple[int, int]) -> Candidate:
    """Return the candidate of rule 3: `readers` are the names of the tensors that read the layer."""
    recurrent = _array(module.get_parameter(f"{name}.recurrent_weight"))[0]
    read = [_array(module.get_parameter(reader)) for reader in readers]
    hidden, frames = recurrent.shape[1], positions[0]
    stacked = np.concatenate([recurrent, *(values.reshape(-1, hidden) for values in read)])
    macs = frames * recurrent.size + positions[1] * sum(values.size for values in read)

    def shapes(ranks: Ranks) -> list[Shape]:
        (rank,) = ranks
        others = [(*values.shape[:-1], rank) for values in read]
        return [(recurrent.shape[0], rank), (rank, hidden), *others]

    def apply(module: nn.Module, ranks: Ranks) -> None:
        basis = projection(stacked, ranks[0])[0]
        layer = module.get_submodule(name)
        _set(layer, "recurrent_weight", (recurrent @ basis.T)[None])
        _set(layer, "projection_weight", basis[None])
        for reader in readers:
            owner = module.get_submodule(reader.rpartition(".")[0])
            values = _array(module.get_parameter(reader))
            _set(owner, reader.rpartition(".")[2], values @ basis.T)
            if isinstance(owner, nn.Linear):
                owner.in_features = ranks[0]

    return Candidate(
        name, "projection of the hidden state", (spectrum(stacked),), Costs(macs, stacked.size), shapes,
        (frames, frames, *[positions[1]] * len(read)), apply,
    )  # fmt: skip


def _factors(name: str, layer: Recurrent, frames: int) -> Candidate:
    """Return the candidate of rule 4: one rank for all directions, which have factors of their own."""
    weight = _array(layer.recurrent_weight)
    directions, rows, hidden = weight.shape
    values = np.sum([spectrum(matrix) for matrix in weight], axis=0)

    def apply(module: nn.Module, ranks: Ranks) -> None:
        pairs = [product(matrix, ranks[0]) for matrix in weight]
        layer = module.get_submodule(name)
        _set(layer, "recurrent_factor_weight", np.stack([narrow for narrow, _ in pairs]))
        _set(layer, "recurrent_weight", np.stack([widen for _, widen in pairs]))

    return Candidate(
        f"{name}.recurrent_weight", "product of two", (values,), Costs(frames * weight.size, weight.size),
        lambda r: ((directions, r[0], hidden), (directions, rows, r[0])), (frames, frames), apply,
    )  # fmt: skip


def _input(name: str, layer: Recurrent, frames: int) -> Candidate:
    """Return the candidate of rule 5; both directions share the projection."""
    weight = _array(layer.weight)
    directions, rows, n_in = weight.shape
    matrix = weight.reshape(-1, n_in)

    def apply(module: nn.Module, ranks: Ranks) -> None:
        narrow, widen = product(matrix, ranks[0])
        layer = module.get_submodule(name)
        _set(layer, "input_projection_weight", narrow)
        _set(layer, "weight", widen.reshape(directions, rows, ranks[0]))

    return Candidate(
        f"{name}.weight", "projection of the frames", (spectrum(matrix),),
        Costs(frames * weight.size, weight.size),
        lambda r: ((r[0], n_in), (directions, rows, r[0])), (frames, frames), apply,
    )  # fmt: skip


def _replace(module: nn.Module, name: str, weights: Sequence[Array]) -> None:
    """Put factors with these weights in the place of a layer, whose bias the last one gets."""
    layer = module.get_submodule(name)
    if not isinstance(layer, Whole):
        raise TypeError(f"{name} is a {type(layer).__name__}")
    with torch.random.fork_rng(devices=[]):  # the layers are drawn before they are filled
        factors = factors_of(layer, [values.shape for values in weights])
    state = {f"{n}.weight": _tensor(values, layer.weight) for n, values in enumerate(weights)}
    if layer.bias is not None:
        state[f"{len(weights) - 1}.bias"] = layer.bias.detach()
    factors.load_state_dict(state)
    module.set_submodule(name, factors.eval())


def _set(layer: nn.Module, name: str, values: Array) -> None:
    like = next(layer.parameters())
    setattr(layer, name, nn.Parameter(_tensor(values, like)))


def _tensor(values: Array, like: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(like.dtype)


def _array(weight: Tensor) -> Array:
    return np.asarray(weight.detach().double().cpu().numpy(), np.float64)


def _source(node: Node) -> Node:
    source = arguments(node)[0]
    if not isinstance(source, Node):
        raise TypeError(f"{node} has no value before it")
    return source


def _positions(node: Node, *, picture: bool) -> int:
    """Return how many vectors of channels a value has for each sample: pixels, or tokens."""
    shape = [int(n) for n in shape_of(node)[1:]]
    return int(np.prod(shape[1:] if picture else shape[:-1]))
