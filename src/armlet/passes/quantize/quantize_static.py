"""Static INT8 after training: batch normalisation folded, ranges from calibration samples, integer weights.

Weights are per channel and symmetric, activations per tensor and asymmetric. The network keeps its folded float
weights; scales and zero points stand beside them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from armlet.analysis.graph import trace
from armlet.data.splits import Samples
from armlet.models.network import Network
from armlet.passes.base import (
    PASSES,
    CostName,
    Pass,
    PassContext,
    PassResult,
    PreconditionFailed,
    float_only,
    unmatched,
)
from armlet.passes.quantize.calibrate import calibrate
from armlet.passes.quantize.fold_batch_norm import fold_batch_norm
from armlet.passes.quantize.placement import place
from armlet.spec.passes import QuantizeStatic

# Each purpose of a seed draws from a stream of its own.
_STREAM = 3


@dataclass(frozen=True, slots=True)
class StaticQuantization:
    """Quantisation after training, with ranges fixed in advance.

    Attributes:
        n_samples: calibration samples, taken from the training split.
        percentile: share of each activation's values, in per cent, that its range holds; None for all.
        exclude: patterns of modules that stay float.
    """

    n_samples: int
    percentile: float | None
    exclude: tuple[str, ...]

    @property
    def never_raises(self) -> tuple[CostName, ...]:
        """Folding removes parameters, integers are smaller than floats."""
        return ("macs", "parameters", "weight_bytes")

    def requires(self, network: Network, context: PassContext) -> tuple[str, ...]:
        """The network is float, there are samples, and every pattern fits something."""
        problems = (*float_only(network, "quantize_static"), *unmatched(self.exclude, network.module))
        if len(context.splits.train) == 0:
            problems = (*problems, "there are no training samples to calibrate on")
        return problems

    def run(self, network: Network, context: PassContext) -> PassResult:
        """Fold, place, calibrate."""
        inputs = network.architecture.inputs
        folded = fold_batch_norm(network.module, inputs)
        traced = trace(folded.module, inputs)
        placement = place(traced, self.exclude)
        if not placement.shared:
            raise PreconditionFailed(
                "quantize_static: nothing can be quantised; " + ("; ".join(placement.notes) or "no layers")
            )
        samples = calibration_samples(context.splits.train, self.n_samples, context.seed)
        shared = {c.parameter for c in network.constraints if c.keeps == "values"}
        quantization = calibrate(traced, placement, samples, self.percentile, shared)
        notes = (
            f"{len(folded.layers)} batch normalisations folded; {len(placement.layers)} layers compute on integers; "
            f"calibrated on {len(samples[0])} training samples",
            *folded.notes,
            *placement.notes,
        )
        return PassResult(replace(network, module=folded.module, quantization=quantization), notes)

    def ensures(self, before: Network, after: Network) -> tuple[str, ...]:
        """Scales are positive numbers, zero points fit, and every integer weight has its layer's scales."""
        if after.quantization is None:
            return ("the result is not quantised",)
        bad = [a.node for a in after.quantization.activations if not 0 < a.scale < np.inf]
        bad += [
            p.parameter for p in after.quantization.parameters if not all(0 < s < np.inf for s in p.scales)
        ]
        return (f"scales that are not positive numbers: {', '.join(bad)}",) if bad else ()


def calibration_samples(train: Samples, n: int, seed: int) -> tuple[torch.Tensor, ...]:
    """Return at most `n` random training samples, [n, *shape] for each input; the same seed draws the same."""
    chosen = np.random.default_rng((seed, _STREAM)).permutation(len(train))[:n]
    return tuple(map(torch.from_numpy, train.take(np.sort(chosen)).inputs))


@PASSES.register("quantize_static")
def build(options: QuantizeStatic) -> Pass:
    """Build the pass from its section of a recipe."""
    return StaticQuantization(
        n_samples=options.calibration_samples,
        percentile=options.percentile if options.observer == "percentile" else None,
        exclude=options.exclude,
    )
