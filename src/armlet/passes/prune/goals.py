"""Budgets that pruning is told: a share of the multiply-accumulates or parameters, bytes, or time on a target."""

from __future__ import annotations

from functools import partial

from armlet.analysis.cost import cost_of
from armlet.models.network import Network
from armlet.passes.base import PassContext, estimated_ms
from armlet.passes.prune.allocation import Goal
from armlet.spec.passes.prune import GoalName
from armlet.units import format_bytes, format_count, format_ms


def goal_of(name: GoalName, value: float, target: str | None, network: Network, context: PassContext) -> Goal:
    """Return the budget that the pass's options stand for.

    Args:
        name: of the option.
        value: what it is; for macs and parameters up to 1 a share of the network's own.
        target: of a latency.
        network: before any channel goes.
        context: says what programs take.

    Raises:
        PreconditionFailed: nothing says what a network takes on the target.
    """
    if name == "latency":
        cost_on = partial(estimated_ms, target=target or "", context=context, kind="prune_channels")
        return Goal(f"latency on {target}", cost_on, value, format_ms)
    cost = cost_of(network)
    if name == "macs":
        return Goal("MACs", lambda n: cost_of(n).macs, _most(value, cost.macs), format_count)
    if name == "parameters":
        most = _most(value, cost.parameters)
        return Goal("parameters", lambda n: cost_of(n).parameters, most, format_count)
    return Goal("bytes", lambda n: cost_of(n).weight_bytes, value, format_bytes)


def _most(value: float, own: int) -> float:
    return value * own if value <= 1 else value
