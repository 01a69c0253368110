"""The matrices of recurrent layers that can be factorised.

1. Stacked or single lstm of one direction: the recurrent matrix and what reads the layer share one projection of the
   hidden state (Prabhavalkar et al. 2016, "On the Compression of Recurrent Neural Network Models"); the layer becomes
   one with a recurrent projection.
2. Any other recurrent layer: its recurrent matrix becomes two factors in each direction.
3. The input matrix of a layer that reads none of rule 1: a projection of the frames, and a smaller matrix.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch import nn

from armlet.analysis.graph import Traced, shape_of
from armlet.models.factors import Factors, Shape
from armlet.models.recurrent import OPERATOR, Recurrent, RecurrentNetwork
from armlet.passes.factorize.candidate import (
    Candidate,
    Costs,
    Roots,
    array_of,
    energies,
    energy_of,
    set_weight,
    source_of,
)
from armlet.passes.factorize.decompose import Array, product
from armlet.passes.factorize.losses import Ranks, Spectra


def recurrent_candidates(
    module: RecurrentNetwork, traced: Traced, roots: Roots
) -> Iterator[tuple[Candidate, set[str]]]:
    """Yield the candidates of rules 1 to 3, each with the names of the layers that it has a part of."""
    frames = next(int(shape_of(source_of(n))[1]) for n in traced.nodes if n.target == OPERATOR.default)
    stack = [[layer for layer in level.children() if isinstance(layer, Recurrent)] for level in module.layers]
    names = {layer: name for name, layer in module.named_modules()}
    projected = False
    for number, level in enumerate(stack):
        first = level[0]
        if not projected:
            for layer in level:
                if layer.input_projection_weight is None:
                    yield _input(names[layer], layer, frames, roots.get(f"{names[layer]}.weight")), set()
        projected = len(level) == 1 and _can_project(first)
        if not projected:
            for layer in level:
                if layer.projection_weight is None and layer.recurrent_factor_weight is None:
                    yield (
                        _factors(names[layer], layer, frames, roots.get(f"{names[layer]}.recurrent_weight")),
                        set(),
                    )
            continue
        root = roots.get(f"{names[first]}.recurrent_weight")
        if number + 1 < len(stack):
            readers = [f"{names[layer]}.{_reads(layer)}" for layer in stack[number + 1]]
            yield _hidden(names[first], module, readers, (frames, frames), root), set()
        else:
            classifier = "classifier.0" if isinstance(module.classifier, Factors) else "classifier"
            yield _hidden(names[first], module, [f"{classifier}.weight"], (frames, 1), root), {classifier}


def _can_project(layer: Recurrent) -> bool:
    free = layer.projection_weight is None and layer.recurrent_factor_weight is None
    return layer.cell == "lstm" and layer.direction != "bidirectional" and free


def _reads(layer: Recurrent) -> str:
    """Return the name of the tensor that a layer multiplies its inputs with."""
    return "weight" if layer.input_projection_weight is None else "input_projection_weight"


def _hidden(
    name: str, module: nn.Module, readers: list[str], positions: tuple[int, int], root: Array | None
) -> Candidate:
    """Return the candidate of rule 1: `readers` are the names of the tensors that read the layer."""
    recurrent = array_of(module.get_parameter(f"{name}.recurrent_weight"))[0]
    read = [array_of(module.get_parameter(reader)) for reader in readers]
    hidden, frames, state = recurrent.shape[1], positions[0], None if root is None else root[0]
    stacked = np.concatenate([recurrent, *(values.reshape(-1, hidden) for values in read)])
    splits = np.cumsum([len(recurrent), *(values.size // hidden for values in read)])[:-1]
    macs = frames * recurrent.size + positions[1] * sum(values.size for values in read)

    def shapes(ranks: Ranks) -> list[Shape]:
        (rank,) = ranks
        others = [(*values.shape[:-1], rank) for values in read]
        return [(recurrent.shape[0], rank), (rank, hidden), *others]

    def apply(module: nn.Module, ranks: Ranks) -> None:
        # Rows without scale: what is projected is as large as what it comes from.
        narrow, widen = product(stacked, ranks[0], state)
        lengths = np.linalg.norm(narrow, axis=1)
        basis = narrow / np.maximum(lengths, 1e-30)[:, None]
        left = iter(np.split(widen * lengths, splits))
        layer = module.get_submodule(name)
        set_weight(layer, "recurrent_weight", next(left)[None])
        set_weight(layer, "projection_weight", basis[None])
        for reader in readers:
            owner = module.get_submodule(reader.rpartition(".")[0])
            shape = module.get_parameter(reader).shape[:-1]
            set_weight(owner, reader.rpartition(".")[2], next(left).reshape(*shape, ranks[0]))
            if isinstance(owner, nn.Linear):
                owner.in_features = ranks[0]

    return Candidate(
        name, "projection of the hidden state", Spectra((energies(stacked, state),)), Costs(macs, stacked.size), shapes,
        (frames, frames, *[positions[1]] * len(read)), apply, energy_of(root),
    )  # fmt: skip


def _factors(name: str, layer: Recurrent, frames: int, root: Array | None) -> Candidate:
    """Return the candidate of rule 2: one rank for all directions, which have factors of their own."""
    weight = array_of(layer.recurrent_weight)
    directions, rows, hidden = weight.shape
    parts = [None] * directions if root is None else list(root)
    values = np.sum([energies(matrix, part) for matrix, part in zip(weight, parts, strict=True)], axis=0)

    def apply(module: nn.Module, ranks: Ranks) -> None:
        pairs = [product(matrix, ranks[0], part) for matrix, part in zip(weight, parts, strict=True)]
        layer = module.get_submodule(name)
        set_weight(layer, "recurrent_factor_weight", np.stack([narrow for narrow, _ in pairs]))
        set_weight(layer, "recurrent_weight", np.stack([widen for _, widen in pairs]))

    return Candidate(
        f"{name}.recurrent_weight", "product of two", Spectra((values,)), Costs(frames * weight.size, weight.size),
        lambda r: ((directions, r[0], hidden), (directions, rows, r[0])), (frames, frames), apply, energy_of(root),
    )  # fmt: skip


def _input(name: str, layer: Recurrent, frames: int, root: Array | None) -> Candidate:
    """Return the candidate of rule 3; both directions share the projection."""
    weight = array_of(layer.weight)
    directions, rows, n_in = weight.shape
    matrix = weight.reshape(-1, n_in)

    def apply(module: nn.Module, ranks: Ranks) -> None:
        narrow, widen = product(matrix, ranks[0], root)
        layer = module.get_submodule(name)
        set_weight(layer, "input_projection_weight", narrow)
        set_weight(layer, "weight", widen.reshape(directions, rows, ranks[0]))

    return Candidate(
        f"{name}.weight", "projection of the frames", Spectra((energies(matrix, root),)),
        Costs(frames * weight.size, weight.size),
        lambda r: ((r[0], n_in), (directions, rows, r[0])), (frames, frames), apply, energy_of(root),
    )  # fmt: skip
