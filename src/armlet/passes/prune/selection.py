"""Which channels go at a ratio: the least important of each group, or of all."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from armlet.passes.prune.importance import Scores


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
