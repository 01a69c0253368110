"""How low each rank becomes: by the energy that is kept, by a share of the ranks, or by a budget."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from armlet.passes.factorize.candidate import Candidate, Costs
from armlet.passes.factorize.losses import Ranks

Choice = Ranks | None
"""The ranks of a layer's factors, None where it stays whole."""


def by_energy(layers: Sequence[Candidate], energy: float) -> list[Choice]:
    """Return the least ranks that keep this share of each layer's squared norm, where they cost less than the layer."""
    return [_if_saving(layer, layer.losses.ranks_for(energy)) for layer in layers]


def by_ratio(layers: Sequence[Candidate], ratio: float) -> list[Choice]:
    """Return ranks of which this share of the full ones is gone, where they cost less than the layer."""
    return [
        _if_saving(layer, tuple(max(1, math.ceil((1 - ratio) * full - 1e-9)) for full in layer.full))
        for layer in layers
    ]


def by_budget(layers: Sequence[Candidate], wanted: Costs) -> list[Choice]:
    """Return ranks that save at least what is wanted, and lose little energy for it.

    Of each layer only the choices on the lower convex hull of energy lost over cost saved matter at first; steps along
    the hulls are taken in the order of energy lost for each share of what is wanted (Shoham and Gersho 1988), until
    enough is saved. What was saved beyond that is then given back, the last step's layer first.

    Args:
        layers: that can be factorised.
        wanted: multiply-accumulates or parameters to save; 0 for the other one.
    """
    choices = [_choices(layer, wanted) for layer in layers]
    ladders = [_hull(found) for found in choices]
    steps = [
        (_slope(before, after), number, position)
        for number, ladder in enumerate(ladders)
        for position, (before, after) in enumerate(itertools.pairwise(ladder), 1)
    ]
    taken, order = [ladder[0] for ladder in ladders], []
    for _, number, position in sorted(steps):
        if sum(rung.saved for rung in taken) >= 1:
            break
        taken[number] = ladders[number][position]
        order.append(number)
    for number in dict.fromkeys(reversed(order)):
        others = sum(rung.saved for i, rung in enumerate(taken) if i != number)
        enough = [rung for rung in choices[number] if others + rung.saved >= 1]
        taken[number] = min(enough, key=lambda rung: rung.lost, default=taken[number])
    return [rung.ranks for rung in taken]


def most_saved(layers: Sequence[Candidate]) -> Costs:
    """Return what ranks of 1 save, the most that there is."""
    saved = [
        Costs(layer.before.macs - after.macs, layer.before.parameters - after.parameters)
        for layer in layers
        for after in [layer.after((1,) * len(layer.full))]
        if layer.saves((1,) * len(layer.full))
    ]
    return Costs(sum(s.macs for s in saved), sum(s.parameters for s in saved))


@dataclass(frozen=True, slots=True)
class _Rung:
    """One choice for a layer: the share of the wish that it saves, and the share of its energy that it loses."""

    ranks: Choice
    saved: float
    lost: float


def _choices(layer: Candidate, wanted: Costs) -> list[_Rung]:
    """Return the choices for a layer, the whole one first, by what they save."""
    rungs = [
        _Rung(ranks, _saved(layer, ranks, wanted), 1 - layer.losses.kept(ranks))
        for ranks in layer.losses.ladder()
        if layer.saves(ranks)
    ]
    return [_Rung(None, 0.0, 0.0), *sorted(rungs, key=lambda rung: (rung.saved, rung.lost))]


def _hull(choices: list[_Rung]) -> list[_Rung]:
    """Return the choices on the lower convex hull, from the whole layer to the most that can be saved."""
    hull = choices[:1]
    for rung in choices[1:]:
        if rung.saved <= hull[-1].saved:
            continue  # as much is saved for less
        while len(hull) > 1 and _slope(hull[-2], rung) <= _slope(hull[-2], hull[-1]):
            hull.pop()
        hull.append(rung)
    return hull


def _slope(before: _Rung, after: _Rung) -> float:
    return (after.lost - before.lost) / (after.saved - before.saved)


def _saved(layer: Candidate, ranks: Ranks, wanted: Costs) -> float:
    """Return the share of the wish that these ranks save."""
    after, before = layer.after(ranks), layer.before
    saved = before.macs - after.macs if wanted.macs else before.parameters - after.parameters
    return saved / max(wanted.macs, wanted.parameters, 1)


def _if_saving(layer: Candidate, ranks: Ranks) -> Choice:
    """Return ranks whose factors cost less than the layer and may be used, else None."""
    return ranks if layer.saves(ranks) and layer.losses.usable(ranks) else None
