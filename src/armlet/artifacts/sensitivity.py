"""How much a trained network suffers when a part of it is pruned or quantised alone."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GroupCurve:
    """What the score becomes when one group alone loses its least important channels.

    Attributes:
        name: the first layer that computes the group's channels.
        unit: what they are: "channels", "units", "hidden units" or "heads".
        n_channels: how many there are.
        removed: how many go at each point, from none on.
        scores: at each point.
    """

    name: str
    unit: str
    n_channels: int
    removed: tuple[int, ...]
    scores: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class LayerError:
    """What INT8 in one layer alone does: mean squared change of the answers, as a share of their variance."""

    layer: str
    error: float


@dataclass(frozen=True, slots=True)
class Analysis:
    """Sensitivity of a recipe's trained network, before any pass.

    Attributes:
        recipe, profile: names.
        metric: that the scores are of.
        n_samples: validation samples that were scored.
        groups: in graph order.
        layers: the most sensitive first; empty where no layer has an integer form.
        fixed: groups that can't be pruned, by name, with the reason.
    """

    recipe: str
    profile: str
    metric: str
    n_samples: int
    groups: tuple[GroupCurve, ...]
    layers: tuple[LayerError, ...]
    fixed: tuple[tuple[str, str], ...]
