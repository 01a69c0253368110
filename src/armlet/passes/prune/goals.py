"""Budgets that pruning is told: a share of the multiply-accumulates or parameters, bytes, or time on a target."""

from __future__ import annotations

from functools import partial

from armlet.analysis.cost import cost_of
from armlet.models.network import Network
from armlet.passes.base import PassContext, PreconditionFailed
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
        return Goal(
            f"latency on {target}", partial(_latency, context=context, target=target or ""), value, format_ms
        )
    cost = cost_of(network)
    if name == "macs":
        return Goal("MACs", lambda n: cost_of(n).macs, _most(value, cost.macs), format_count)
    if name == "parameters":
        most = _most(value, cost.parameters)
        return Goal("parameters", lambda n: cost_of(n).parameters, most, format_count)
    return Goal("bytes", lambda n: cost_of(n).weight_bytes, value, format_bytes)


def _most(value: float, own: int) -> float:
    return value * own if value <= 1 else value


def _latency(network: Network, context: PassContext, target: str) -> float:
    """Return the upper bound of the estimate, which is what budgets are held against."""
    if context.program_cost is None:
        raise PreconditionFailed("prune_channels: latency needs a context that can compile programs")
    latency = context.program_cost(network, target).latency
    if latency is None:
        raise PreconditionFailed(
            f"prune_channels: what a network takes on {target} can't be said: the target has no core.cost_model, "
            "core.clock_mhz or calibration"
        )
    return latency.high_ms
