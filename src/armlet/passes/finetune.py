"""Trains a network after, or while, a pass changed its weights."""

from __future__ import annotations

from armlet.artifacts import Epoch
from armlet.models.network import Network
from armlet.passes.base import PassContext
from armlet.train import PruningSchedule, TrainOptions, train_network


def finetuned(
    network: Network,
    options: TrainOptions | None,
    context: PassContext,
    pruning: PruningSchedule | None = None,
) -> tuple[Network, tuple[Epoch, ...]]:
    """Return the network after training on the task, and how that went; without options as it is."""
    if options is None:
        return network, ()
    trained, run = train_network(
        network,
        context.splits,
        options,
        context.scorer,
        seed=context.seed,
        work=context.work,
        progress=context.progress,
        pruning=pruning,
    )
    return trained, run.history
