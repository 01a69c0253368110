"""Which channels go: how much each matters, and how many of each group are removed.

Source: magnitude pruning of filters, Li et al. 2017, "Pruning Filters for Efficient ConvNets", summed over all slices
that a channel has (Fang et al. 2023).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch

from armlet.analysis.groups import ChannelGroup

Scores = npt.NDArray[np.float64]


def channel_scores(group: ChannelGroup, tensors: Mapping[str, torch.Tensor], norm_order: int) -> Scores:
    """Return how much each channel of a group matters, [n_channels], with a mean of 1.

    A score is the sum of the norms of the channel's slices of all weights: of the layers that compute it, of their
    normalisations, and of the layers that use it. Biases and statistics don't count.

    Args:
        group: the channels.
        tensors: the network's parameters and buffers.
        norm_order: 1 or 2.
    """
    scores = np.zeros(group.n_channels)
    for member in group.members:
        if not member.tensor.endswith("weight"):
            continue
        weight = tensors[member.tensor].detach().double().numpy()
        rows = np.moveaxis(weight, member.dim, 0).reshape(weight.shape[member.dim], -1)
        for channel, indices in enumerate(member.indices):
            scores[channel] += np.linalg.norm(rows[list(indices)].ravel(), norm_order) if indices else 0.0
    mean = scores.mean()
    return scores / mean if mean > 0 else np.ones(group.n_channels)


def select_by_layer(
    scores: Sequence[Scores], ratio: float, multiples: Sequence[int]
) -> tuple[tuple[int, ...], ...]:
    """Return the channels of each group that are removed: the lowest of each, `ratio` of them.

    Args:
        scores: of each group's channels.
        ratio: from 0 to below 1.
        multiples: what the number of channels that each group keeps is a multiple of, where it loses any.
    """
    return tuple(
        _lowest(group, _n_removed(len(group), ratio * len(group), multiple))
        for group, multiple in zip(scores, multiples, strict=True)
    )


def select_globally(
    scores: Sequence[Scores], ratio: float, multiples: Sequence[int]
) -> tuple[tuple[int, ...], ...]:
    """Return the channels of each group that are removed: the lowest of all groups, `ratio` of their sum.

    The arguments are those of `select_by_layer`.
    """
    if not scores:
        return ()
    ranked = np.sort(np.concatenate(scores))
    n_wanted = math.floor(ratio * len(ranked) + 1e-9)
    threshold = ranked[n_wanted] if n_wanted < len(ranked) else np.inf
    return tuple(
        _lowest(group, _n_removed(len(group), float((group < threshold).sum()), multiple))
        for group, multiple in zip(scores, multiples, strict=True)
    )


def _n_removed(n: int, wanted: float, multiple: int) -> int:
    """Return how many of `n` channels go, at most `wanted`: what is left is rounded up, and never nothing."""
    left = max(1, n - math.floor(wanted + 1e-9))
    return n - min(n, math.ceil(left / multiple) * multiple)


def _lowest(scores: Scores, n: int) -> tuple[int, ...]:
    # A stable sort: of equal channels the first go, on every machine.
    return tuple(sorted(np.argsort(scores, kind="stable")[:n].tolist()))
