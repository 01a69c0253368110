"""Factorises linear layers, convolutions and recurrent layers of a trained network, and trains the factors.

Limits: depthwise and grouped convolutions and embeddings stay whole; so does a layer whose factors would cost more, and
the notes name it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from armlet.analysis.cost import cost_of
from armlet.analysis.graph import trace
from armlet.artifacts import Cost
from armlet.models.network import Network
from armlet.passes.base import (
    PASSES,
    CostName,
    Pass,
    PassContext,
    PassResult,
    float_only,
    is_named,
    unmatched,
)
from armlet.passes.factorize.candidate import Candidate, Convolutions, Costs, Roots
from armlet.passes.factorize.candidates import candidates
from armlet.passes.factorize.ranks import Choice, by_budget, by_energy, by_ratio, most_saved
from armlet.passes.factorize.roots import roots_of
from armlet.passes.finetune import Finetuning, finetune, finetuning_of, teaching_problems
from armlet.spec.passes import Factorize


@dataclass(frozen=True, slots=True)
class Factorization:
    """Low-rank factorisation; exactly one of energy, ratio, and the two budgets together says how low.

    Attributes:
        energy: share of the squared norm of each layer's weights that ranks so low can keep.
        ratio: share of each layer's ranks that goes.
        macs, parameters: share of the network's cost that may be left.
        nearest: whether weights or, on samples, results shall stay near.
        n_samples: training samples that results are looked at on.
        convolutions: how convolutions larger than 1×1 are factorised.
        exclude: patterns of layers that stay whole.
        finetune: how the factors are trained, None for not at all.
    """

    energy: float | None
    ratio: float | None
    macs: float | None
    parameters: float | None
    nearest: Literal["weights", "results"]
    n_samples: int
    convolutions: Convolutions
    exclude: tuple[str, ...]
    finetune: Finetuning | None

    @property
    def never_raises(self) -> tuple[CostName, ...]:
        """Factors that cost more are not used."""
        return ("macs", "parameters", "weight_bytes")

    def requires(self, network: Network, context: PassContext) -> tuple[str, ...]:
        """The network is float, every pattern fits something, and a budget can be reached at all."""
        problems = (*float_only(network, "factorize"), *unmatched(self.exclude, network.module))
        if problems:
            return problems
        cost = cost_of(network)
        wanted, most = self._wanted(cost), most_saved(self._candidates(network, {})[0])
        problems = tuple(
            f"{name} can't fall to {share:.3g} of now: the least that can be reached, with ranks of 1 everywhere, is"
            f" {math.ceil(1000 * (full - found) / full) / 1000:.3g}, {full - found} of {full}"
            for name, share, full, wish, found in (
                ("macs", self.macs, cost.macs, wanted.macs, most.macs),
                ("parameters", self.parameters, cost.parameters, wanted.parameters, most.parameters),
            )
            if share is not None and found < wish
        )
        return (*problems, *teaching_problems(self.finetune, network, context))

    def run(self, network: Network, context: PassContext) -> PassResult:
        """Choose ranks, put factors in the layers' places, train."""
        roots: Roots = {}
        if self.nearest == "results":
            samples = context.splits.train.take(slice(self.n_samples))
            roots = roots_of(trace(network.module, network.architecture.inputs), samples)
        layers, why_whole = self._candidates(network, roots)
        by_weights = [
            layer if layer.energy_of == "weights" else same
            for layer, same in zip(layers, self._candidates(network, {})[0], strict=True)
        ]
        chosen = self._choose(layers, by_weights, self._wanted(cost_of(network)))
        notes = [*why_whole, *(_note(layer, ranks) for layer, ranks in zip(layers, chosen, strict=True))]
        if not any(chosen):
            return PassResult(network, (*notes, "no layer was factorised, so nothing was trained"))
        for layer, ranks in zip(layers, chosen, strict=True):
            if ranks is not None:
                layer.apply(network.module, ranks)
        if self.finetune is None:
            return PassResult(network, tuple(notes))
        trained, history = finetune(network, self.finetune, context)
        return PassResult(trained, tuple(notes), history)

    def ensures(self, before: Network, after: Network) -> tuple[str, ...]:
        """A budget holds."""
        was, now = cost_of(before), cost_of(after)
        return tuple(
            f"{name} are {left} of {full}, more than {share:.0%}"
            for name, share, full, left in (
                ("macs", self.macs, was.macs, now.macs),
                ("parameters", self.parameters, was.parameters, now.parameters),
            )
            if share is not None and left > math.ceil(share * full)
        )

    def _candidates(self, network: Network, roots: Roots) -> tuple[list[Candidate], list[str]]:
        traced = trace(network.module, network.architecture.inputs)
        found, notes = candidates(network.module, traced, self.convolutions, roots)
        excluded = [c.name for c in found if is_named(c.name, self.exclude)]
        return [c for c in found if c.name not in excluded], [
            *notes,
            *(f"{name} stays whole: excluded" for name in excluded),
        ]

    def _wanted(self, cost: Cost) -> Costs:
        """Return what a budget asks to save; nothing without one."""
        return Costs(
            0 if self.macs is None else cost.macs - math.floor(self.macs * cost.macs),
            0 if self.parameters is None else cost.parameters - math.floor(self.parameters * cost.parameters),
        )

    def _choose(
        self, layers: Sequence[Candidate], by_weights: Sequence[Candidate], wanted: Costs
    ) -> list[Choice]:
        """Return the ranks; an energy is always of the weights, a budget spares what counts in the results."""
        if self.energy is not None:
            return by_energy(by_weights, self.energy)
        if self.ratio is not None:
            return by_ratio(layers, self.ratio)
        return by_budget(layers, wanted)


def _note(layer: Candidate, ranks: Choice) -> str:
    unusable = [f"rank {' and '.join(map(str, r))}: {why}" for r, why in layer.losses.unusable().items()]
    if ranks is None:
        why_not = ["its factors would cost as much or more, or are not needed", *unusable]
        return f"{layer.name} stays whole: {', or '.join(why_not)}"
    numbers, after = " and ".join(map(str, ranks)), layer.after(ranks)
    kept = f"energy of {layer.energy_of} kept {layer.losses.kept(ranks):.1%} or more"
    return (
        f"{layer.name}: {layer.method}, rank {numbers} of {' and '.join(map(str, layer.full))};"
        f" {layer.before.parameters} -> {after.parameters} weights, {'; not '.join([kept, *unusable])}"
    )


@PASSES.register("factorize")
def build(options: Factorize) -> Pass:
    """Build the pass from its section of a recipe."""
    return Factorization(
        energy=options.energy,
        ratio=options.ratio,
        macs=options.macs,
        parameters=options.parameters,
        nearest=options.nearest,
        n_samples=options.calibration_samples,
        convolutions=options.convolutions,
        exclude=options.exclude,
        finetune=finetuning_of(options.finetune),
    )
