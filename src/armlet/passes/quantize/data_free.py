"""Ranges of activations without data, from what batch normalisation knows of them.

Source: Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.2.1 and
appendix B: behind a batch normalisation a channel is taken for normal, with its shift as mean and its scale as standard
deviation, and its range for some standard deviations around the mean. What follows is computed from that:

1. operators on single values: the moments over the normal distribution, by quadrature;
2. layers without a normalisation: the mean and the variance of a sum of independent values;
3. sums of two values: the sums of means and of variances;
4. pooling by average keeps the mean and, as an upper bound, the deviation; by maximum, the distribution;
5. flattening and concatenation: the channels side by side.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

from armlet.analysis.graph import Traced, arguments, aten, layer_name, module_name, shape_of, value_name
from armlet.passes.base import PreconditionFailed
from armlet.passes.quantize.equalize import parameter_of
from armlet.passes.quantize.fold_batch_norm import Moments
from armlet.passes.quantize.joints import LAYERS, groups_of
from armlet.passes.quantize.operators import CLAMPS, TABLES
from armlet.passes.quantize.ranges import Range

_BY_VALUE = (*CLAMPS, *TABLES)
_KEEPING = (
    aten.max_pool2d.default,
    aten.avg_pool2d.default,
    aten.adaptive_avg_pool2d.default,
    aten.contiguous.default,
    aten.clone.default,
)
_N_POINTS = 401


@dataclass(frozen=True, slots=True)
class Distribution:
    """What is known of a value's channels, float64 [C] each.

    Attributes:
        mean: expected value.
        std: standard deviation, or an upper bound of it.
        low: no value is taken to be below.
        high: nor above.
    """

    mean: Tensor
    std: Tensor
    low: Tensor
    high: Tensor

    @property
    def range(self) -> Range:
        """The range of all channels."""
        return float(self.low.min()), float(self.high.max())


def distributions(
    traced: Traced, moments: Mapping[str, Moments], input_range: Range, n_deviations: float
) -> dict[str, Distribution]:
    """Return the distribution of every value that follows from batch normalisations, by the name of its node.

    Args:
        traced: a network of one input, its batch normalisations folded.
        moments: of the outputs of the layers that took one in, by their names.
        input_range: least and greatest value of the network's input.
        n_deviations: standard deviations from the mean to either end of a range.

    Raises:
        PreconditionFailed: there are no batch normalisations, several inputs, or an operator that none of the rules
            are for; names it.
    """
    if not moments:
        raise PreconditionFailed(
            "the network has no batch normalisation whose statistics tell of its activations: calibrate on data"
        )
    if len(traced.inputs) != 1:
        raise PreconditionFailed("only networks with one input are calibrated without data")
    (source,) = traced.inputs
    low, high = (torch.full((int(shape_of(source)[1]),), end, dtype=torch.float64) for end in input_range)
    even = Distribution((low + high) / 2, (high - low) / math.sqrt(12), low, high)
    found = {value_name(source): even}
    for node in traced.nodes:
        if hasattr(node.meta.get("val"), "shape"):
            found[node.name] = _follow(traced, node, found, moments, n_deviations)
    return found


def _follow(
    traced: Traced,
    node: Node,
    found: Mapping[str, Distribution],
    moments: Mapping[str, Moments],
    n_deviations: float,
) -> Distribution:
    taken = [found[value_name(n)] for n in node.all_input_nodes if traced.tensor_name(n) is None]
    if node.target in LAYERS:
        known = moments.get(module_name(node))
        mean, std = (known.mean, known.std) if known else _sum(traced, node, taken[0])
        return _normal(mean, std, n_deviations)
    if node.target in _BY_VALUE:
        return _by_value(node, taken[0], n_deviations)
    if node.target in _KEEPING or (node.target is aten.mean.dim and len(shape_of(arguments(node)[0])) == 4):
        return taken[0]
    if node.target is aten.flatten.using_ints:
        copies = math.prod(int(n) for n in shape_of(arguments(node)[0])[2:])
        return _repeated(taken[0], copies)
    if node.target in (aten.add.Tensor, aten.add_.Tensor) and len(taken) == 2:
        return _added(taken[0], taken[1], n_deviations)
    if node.target is aten.cat.default and arguments(node)[1:] == (1,):
        return Distribution(
            *(torch.cat([getattr(t, name) for t in taken]) for name in ("mean", "std", "low", "high"))
        )
    raise PreconditionFailed(
        f"the values of {layer_name(node)} don't follow from batch normalisations: calibrate on data"
    )


def _normal(mean: Tensor, std: Tensor, n_deviations: float) -> Distribution:
    return Distribution(mean, std, mean - n_deviations * std, mean + n_deviations * std)


def _sum(traced: Traced, node: Node, taken: Distribution) -> tuple[Tensor, Tensor]:
    """Return mean and deviation of what a layer sums up (rule 2); the padding is left out."""
    weight, bias = parameter_of(traced, node, 1), parameter_of(traced, node, 2)
    if weight is None:
        raise PreconditionFailed(f"the weight of {layer_name(node)} is computed: calibrate on data")
    rows = weight.detach().double().flatten(2) if weight.dim() > 2 else weight.detach().double()[:, :, None]
    groups = groups_of(node)
    mean, variance = (
        (w.reshape(groups, -1, w.shape[1]) @ x.reshape(groups, -1, 1)).flatten()
        for w, x in ((rows.sum(dim=2), taken.mean), ((rows**2).sum(dim=2), taken.std**2))
    )
    return mean if bias is None else mean + bias.detach().double(), variance.sqrt()


def _by_value(node: Node, taken: Distribution, n_deviations: float) -> Distribution:
    points = torch.linspace(-n_deviations, n_deviations, _N_POINTS, dtype=torch.float64)
    shares = torch.exp(-(points**2) / 2)
    shares = shares / shares.sum()
    values = taken.mean[:, None] + taken.std[:, None] * points
    values = torch.minimum(torch.maximum(values, taken.low[:, None]), taken.high[:, None])
    results: Tensor = node.target(values, *arguments(node)[1:], **node.kwargs)  # type: ignore[operator]
    mean = (results * shares).sum(dim=1)
    variance = ((results - mean[:, None]) ** 2 * shares).sum(dim=1)
    return Distribution(mean, variance.sqrt(), results.amin(dim=1), results.amax(dim=1))


def _added(a: Distribution, b: Distribution, n_deviations: float) -> Distribution:
    mean, std = a.mean + b.mean, torch.sqrt(a.std**2 + b.std**2)
    wide = _normal(mean, std, n_deviations)
    return Distribution(
        mean, std, torch.maximum(wide.low, a.low + b.low), torch.minimum(wide.high, a.high + b.high)
    )


def _repeated(taken: Distribution, n: int) -> Distribution:
    return Distribution(
        *(getattr(taken, name).repeat_interleave(n) for name in ("mean", "std", "low", "high"))
    )
