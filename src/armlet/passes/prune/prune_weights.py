"""Sets single weights to zero, all at once or while the network is trained, and lets no later training revive them.

The network has the same shapes afterwards: zeros make it smaller where it is stored compressed, and no faster, because
no kernel of a compiled program skips them.

Sources: Han et al. 2015 (magnitude); Zhu and Gupta 2017 (schedule); Mishra et al. 2021 (N:M); Frantar and Alistarh 2023
(SparseGPT, layer by layer, each on the inputs that the layers pruned before it give).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from armlet.analysis.sparsity import (
    Pattern,
    Scope,
    WeightTensor,
    fits,
    magnitude_masks,
    n_zeros_of,
    pattern_mask,
    weight_tensors,
)
from armlet.models.constraints import constrained
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
from armlet.passes.finetune import Finetuning, finetune, finetuning_of, teaching_problems
from armlet.passes.prune.observe import Matrices, layers_in_order, observe, set_matrices
from armlet.passes.prune.sparsegpt import sparsegpt
from armlet.passes.quantize.common import calibration_samples
from armlet.spec.passes import PruneWeights
from armlet.train import PruningSchedule
from armlet.units import format_percent

NOT_FASTER = "stored smaller, not faster: no kernel of the compiled program skips zeros"


@dataclass(frozen=True, slots=True)
class Gradual:
    """When the cubic schedule makes its zeros: shares of the fine-tuning, and steps between two choices."""

    begin: float
    end: float
    every: int


@dataclass(frozen=True, slots=True)
class WeightPruning:
    """Unstructured pruning, or N of each M.

    Attributes:
        sparsity: share of each weight, or of all, that becomes zero; that of the pattern where there is one.
        pattern: N of each M along the inputs stay, None for any.
        method: how the zeros are chosen.
        scope: whether magnitudes are compared within each layer or over all.
        gradual: None prunes at once, before the fine-tuning.
        n_samples: calibration samples of sparsegpt.
        exclude: patterns of modules that are left as they are.
        finetune: how the other weights are trained, None for not at all.
    """

    sparsity: float
    pattern: Pattern | None
    method: Literal["magnitude", "sparsegpt"]
    scope: Scope
    gradual: Gradual | None
    n_samples: int
    exclude: tuple[str, ...]
    finetune: Finetuning | None

    @property
    def never_raises(self) -> tuple[CostName, ...]:
        """Zeros are weights like others."""
        return ("macs", "parameters", "weight_bytes")

    def requires(self, network: Network, context: PassContext) -> tuple[str, ...]:
        """The network is float, every pattern fits something, and there is something to prune."""
        problems = (*float_only(network, "prune_weights"), *unmatched(self.exclude, network.module))
        if not self._chosen(network.module)[0]:
            problems = (
                *problems,
                f"there is no weight to prune; {'; '.join(self._chosen(network.module)[1])}",
            )
        return problems or teaching_problems(self.finetune, network, context)

    def run(self, network: Network, context: PassContext) -> PassResult:
        """Choose, set to zero, train."""
        weights, notes = self._chosen(network.module)
        if self.sparsity == 0:
            return PassResult(network, (*notes, "no weight was set to zero, so nothing was trained"))
        names = [w.parameter for w in weights]
        network = replace(network, constraints=constrained(network.constraints, names, "zeros"))
        pruning = None
        if self.gradual is not None:
            pruning = self._schedule(weights, self.gradual)
        elif self.method == "sparsegpt":
            notes += self._prune_on_samples(network, weights, context)
        else:
            self._prune_by_magnitude(network.module, weights)
        network, history = finetune(network, self.finetune, context, pruning)
        return PassResult(network, (*_counts(network.module, weights, self.scope), *notes), history)

    def ensures(self, before: Network, after: Network) -> tuple[str, ...]:
        """As many weights are zero as were asked for, in the pattern, and all of them are kept."""
        weights, _ = self._chosen(after.module)
        values = {w.parameter: after.module.get_parameter(w.parameter) for w in weights}
        kept = {constraint.parameter for constraint in after.constraints}
        missing = [name for name in values if name not in kept and self.sparsity > 0]
        problems = [f"the zeros of {name} are not kept" for name in missing]
        counts = {name: int((value == 0).sum()) for name, value in values.items()}
        if self.pattern is not None:
            problems += [
                f"{w.parameter} has more than {self.pattern.n} of {self.pattern.m} weights"
                for w in weights
                if not _in_pattern(values[w.parameter], self.pattern, w.input_axis)
            ]
        elif self.scope == "global":
            n = sum(value.numel() for value in values.values())
            if sum(counts.values()) < min(n_zeros_of(n, self.sparsity), n - len(values)):
                problems.append(f"{sum(counts.values())} of {n} weights are zero, fewer than asked for")
        else:
            problems += [
                f"{counts[name]} weights of {name} are zero, fewer than asked for"
                for name, value in values.items()
                if counts[name] < n_zeros_of(value.numel(), self.sparsity)
            ]
        return tuple(problems)

    def _chosen(self, module: nn.Module) -> tuple[tuple[WeightTensor, ...], tuple[str, ...]]:
        """Return which weights are pruned, and why others are not."""
        chosen, notes = [], []
        for weight in weight_tensors(module):
            value = module.get_parameter(weight.parameter)
            if is_named(weight.layer, self.exclude):
                notes.append(f"{weight.parameter} keeps its weights: excluded")
            elif self.pattern is not None and not fits(value, self.pattern, weight.input_axis):
                n = value.shape[weight.input_axis]
                notes.append(
                    f"{weight.parameter} keeps its weights: {n} inputs are no groups of {self.pattern.m}"
                )
            else:
                chosen.append(weight)
        return tuple(chosen), tuple(notes)

    def _schedule(self, weights: tuple[WeightTensor, ...], gradual: Gradual) -> PruningSchedule:
        return PruningSchedule(
            weights,
            self.sparsity,
            self.scope,
            self.pattern,
            begin=gradual.begin,
            end=gradual.end,
            every=gradual.every,
        )

    def _prune_by_magnitude(self, module: nn.Module, weights: tuple[WeightTensor, ...]) -> None:
        values = {w.parameter: module.get_parameter(w.parameter) for w in weights}
        if self.pattern is None:
            masks = magnitude_masks(values, self.sparsity, self.scope)
        else:
            masks = {
                w.parameter: pattern_mask(values[w.parameter], self.pattern, w.input_axis) for w in weights
            }
        with torch.no_grad():
            for name, mask in masks.items():
                values[name].masked_fill_(~mask, 0.0)

    def _prune_on_samples(
        self, network: Network, weights: tuple[WeightTensor, ...], context: PassContext
    ) -> tuple[str, ...]:
        """Prune layer by layer in the order in which they run; return what was done by magnitude instead."""
        module = network.module
        samples = calibration_samples(context.splits.train, self.n_samples, context.seed)
        left = {w.parameter: w for w in weights}
        for name in layers_in_order(module, samples):
            if not any(w.layer == name for w in left.values()):
                continue
            for weight, found in observe(module, name, samples).items():
                if left.pop(f"{name}.{weight}" if name else weight, None) is None:
                    continue
                set_matrices(module.get_submodule(name), weight, self._corrected(found))
        self._prune_by_magnitude(module, tuple(left.values()))
        return (
            f"corrected on {len(samples[0])} training samples",
            *(f"{name} was pruned by magnitude: its inputs can't be observed" for name in left),
        )

    def _corrected(self, found: Matrices) -> Tensor:
        """Return the matrices of a weight with zeros; of several groups together as many as were asked for."""
        pruned, n_zeros, n_seen = [], 0, 0
        for values, hessian in zip(found.values, found.hessians, strict=True):
            n_seen += values.numel()
            n_due = n_zeros_of(n_seen, self.sparsity) - n_zeros
            pruned.append(sparsegpt(values, hessian, self.pattern or n_due))
            n_zeros += n_due
        return torch.stack(pruned)


def _in_pattern(value: Tensor, pattern: Pattern, axis: int) -> bool:
    groups = torch.unflatten(value.movedim(axis, -1), -1, (-1, pattern.m))
    return bool(((groups != 0).sum(dim=-1) <= pattern.n).all())


def _counts(module: nn.Module, weights: tuple[WeightTensor, ...], scope: Scope) -> tuple[str, ...]:
    values = {w.parameter: module.get_parameter(w.parameter) for w in weights}
    zeros = {name: int((value == 0).sum()) for name, value in values.items()}
    n, n_zeros = sum(value.numel() for value in values.values()), sum(zeros.values())
    notes = [f"{n_zeros} of {n} weights of {len(weights)} layers are zero; {NOT_FASTER}"]
    if scope == "global":
        notes += [
            f"{name}: {format_percent(zeros[name] / value.numel())} are zero"
            for name, value in values.items()
        ]
    return tuple(notes)


@PASSES.register("prune_weights")
def build(options: PruneWeights) -> Pass:
    """Build the pass from its section of a recipe."""
    pattern = None
    if options.pattern is not None:
        n, m = map(int, options.pattern.split(":"))
        pattern = Pattern(n, m)
    cubic = options.schedule == "cubic"
    return WeightPruning(
        sparsity=(options.sparsity or 0.0) if pattern is None else pattern.sparsity,
        pattern=pattern,
        method=options.method,
        scope=options.scope,
        gradual=Gradual(options.begin, options.end, options.every) if cubic else None,
        n_samples=options.calibration_samples,
        exclude=options.exclude,
        finetune=finetuning_of(options.finetune),
    )
