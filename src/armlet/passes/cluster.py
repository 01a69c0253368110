"""Lets the weights of each layer share a few values, and trains those values.

1. Batch normalisations are folded first, because they scale each output channel by a factor of its own.
2. k-means in one dimension, from values spread evenly over the weight's range (Han et al. 2016, section 3.1), which
   hits the rare large weights better than random ones do.
3. Zeros of an earlier pruning are a value of their own, and stay.
4. In training the gradient of a value is the sum over its weights; weights that share a value go on sharing it.

Source: Han, Mao and Dally 2016, "Deep Compression"; k-means, Lloyd 1982.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from armlet.analysis.sparsity import WeightTensor, weight_tensors
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
from armlet.passes.quantize.fold_batch_norm import fold_batch_norm
from armlet.spec.passes import ClusterWeights

_MOST_ROUNDS = 300

Values = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class WeightClustering:
    """Weights that share values.

    Attributes:
        n_values: different values of each weight, zero among them where it was pruned.
        exclude: patterns of modules that are left as they are.
        finetune: how the values are trained, None for not at all.
    """

    n_values: int
    exclude: tuple[str, ...]
    finetune: Finetuning | None

    @property
    def never_raises(self) -> tuple[CostName, ...]:
        """Folding removes parameters, and values are weights like others."""
        return ("macs", "parameters", "weight_bytes")

    def requires(self, network: Network, context: PassContext) -> tuple[str, ...]:
        """The network is float, every pattern fits something, and there is something to share."""
        problems = (*float_only(network, "cluster_weights"), *unmatched(self.exclude, network.module))
        if not self._crowded(network):
            problems = (*problems, f"no weight has more than {self.n_values} different values")
        return problems or teaching_problems(self.finetune, network, context)

    def run(self, network: Network, context: PassContext) -> PassResult:
        """Fold, find the values, train them."""
        folded = fold_batch_norm(network.module, network.architecture.inputs)
        network = replace(network, module=folded.module)
        names = [w.parameter for w in self._weights(network)]
        for name in self._crowded(network):
            _share_values(network.module.get_parameter(name), self.n_values)
        network = replace(network, constraints=constrained(network.constraints, names, "values"))
        network, history = finetune(network, self.finetune, context)
        notes = (
            f"{len(names)} weights have at most {self.n_values} values each;"
            f" {len(folded.layers)} batch normalisations folded",
            "stored smaller, not faster: a compiled program computes on the values, not on their numbers",
            *folded.notes,
        )
        return PassResult(network, notes, history)

    def ensures(self, before: Network, after: Network) -> tuple[str, ...]:
        """No weight has more values than asked for, and all go on sharing them."""
        kept = {c.parameter for c in after.constraints if c.keeps == "values"}
        return (
            *(f"{name} has more than {self.n_values} values" for name in self._crowded(after)),
            *(
                f"the values of {w.parameter} are not kept"
                for w in self._weights(after)
                if w.parameter not in kept
            ),
        )

    def _weights(self, network: Network) -> tuple[WeightTensor, ...]:
        return tuple(w for w in weight_tensors(network.module) if not is_named(w.layer, self.exclude))

    def _crowded(self, network: Network) -> tuple[str, ...]:
        """Return the names of the weights with more values than are wanted."""
        values = {w.parameter: network.module.get_parameter(w.parameter) for w in self._weights(network)}
        return tuple(name for name, value in values.items() if len(torch.unique(value)) > self.n_values)


def _share_values(weight: torch.nn.Parameter, n_values: int) -> None:
    """Replace each value of a weight by the nearest of `n_values`; zeros stay, and count as one of them."""
    values = weight.detach().numpy()
    found, used = values != 0, values[values != 0].astype(np.float64)
    palette = shared_values(used, n_values - (not found.all()))
    shared = np.zeros_like(values)
    shared[found] = palette[_nearest(palette, used)]
    with torch.no_grad():
        weight.copy_(torch.from_numpy(shared))


def shared_values(values: Values, n: int) -> Values:
    """Return at most `n` values, sorted, around which the given ones lie: k-means of one dimension.

    Args:
        values: [count], at least one.
        n: at least 1.
    """
    ordered, different = np.sort(values), np.unique(values)
    if len(different) <= n:
        return different
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    centres = np.linspace(ordered[0], ordered[-1], n)
    for _ in range(_MOST_ROUNDS):
        which = _nearest(centres, ordered)
        counts = np.bincount(which, minlength=len(centres))
        ends = np.cumsum(counts)
        taken = counts > 0
        moved = (sums[ends] - sums[ends - counts])[taken] / counts[taken]
        if n_empty := int((~taken).sum()):  # goes to where the error is greatest
            errors = np.abs(ordered - centres[which])
            moved = np.sort(np.concatenate([moved, ordered[np.argsort(errors, kind="stable")[-n_empty:]]]))
        if np.array_equal(moved, centres):
            break
        centres = moved
    return np.unique(centres)


def _nearest(palette: Values, values: Values) -> npt.NDArray[np.int64]:
    return np.searchsorted((palette[1:] + palette[:-1]) / 2, values)


@PASSES.register("cluster_weights")
def build(options: ClusterWeights) -> Pass:
    """Build the pass from its section of a recipe."""
    return WeightClustering(
        n_values=options.values,
        exclude=options.exclude,
        finetune=finetuning_of(options.finetune),
    )
