"""Which channels go at a ratio: the least important of each group, or of all."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from armlet.passes.prune.importance import Scores


def select_by_layer(
    scores: Sequence[Scores],
    ratio: float,
    multiples: Sequence[int],
    sizes: Sequence[int] | None = None,
    least: Sequence[int] | None = None,
) -> tuple[tuple[int, ...], ...]:
    """Return the channels of each group that are removed: the lowest of each, until `ratio` of it are gone.

    Args:
        scores: of each group's channels.
        ratio: from 0 to below 1.
        multiples: what the number of channels that each group keeps is a multiple of, where it loses any.
        sizes: channels of each group before any round of pruning; by default those that it has now.
        least: channels that stay in each group; by default one.
    """
    return tuple(
        _lowest(group, _n_removed(len(group), ratio * size - (size - len(group)), multiple, few))
        for group, multiple, size, few in zip(
            scores, multiples, sizes or list(map(len, scores)), least or [1] * len(scores), strict=True
        )
    )


def select_globally(
    scores: Sequence[Scores],
    ratio: float,
    multiples: Sequence[int],
    sizes: Sequence[int] | None = None,
    least: Sequence[int] | None = None,
) -> tuple[tuple[int, ...], ...]:
    """Return the channels of each group that are removed: the lowest of all, until `ratio` of their sum are gone.

    The arguments are those of `select_by_layer`.
    """
    if not scores:
        return ()
    ranked = np.sort(np.concatenate(scores))
    whole = len(ranked) if sizes is None else sum(sizes)
    n_wanted = max(0, math.floor(ratio * whole + 1e-9) - (whole - len(ranked)))
    threshold = ranked[n_wanted] if n_wanted < len(ranked) else np.inf
    return tuple(
        _lowest(group, _n_removed(len(group), float((group < threshold).sum()), multiple, few))
        for group, multiple, few in zip(scores, multiples, least or [1] * len(scores), strict=True)
    )


def _n_removed(n: int, wanted: float, multiple: int, least: int) -> int:
    """Return how many of `n` channels go, at most `wanted`: what is left is rounded up, and never below `least`."""
    left = max(least, n - math.floor(wanted + 1e-9))
    return n - min(n, math.ceil(left / multiple) * multiple)


def _lowest(scores: Scores, n: int) -> tuple[int, ...]:
    # A stable sort: of equal channels the first go, on every machine.
    return tuple(sorted(np.argsort(scores, kind="stable")[:n].tolist()))
