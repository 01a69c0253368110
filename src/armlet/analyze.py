"""Which parts of a trained network matter: each group pruned alone, each layer quantised alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from armlet.artifacts import Analysis, GroupCurve, LayerError
from armlet.errors import UsageError
from armlet.flow import StepListener, StepResult, run_steps
from armlet.plan import Plan, Step
from armlet.progress import Progress
from armlet.stages import StageContext
from armlet.store import Store

if TYPE_CHECKING:
    from armlet.data.splits import Samples
    from armlet.metrics import Scorer
    from armlet.models.network import Network

N_SCORED = 2000
"""Validation samples that each candidate is scored on."""


def analyze_plan(
    plan: Plan,
    *,
    store: Store,
    progress: Progress,
    begin: Callable[[Step], None] = lambda _: None,
    finish: StepListener = lambda _: None,
    interrupted: Callable[[], bool] = lambda: False,
) -> Analysis:
    """Train a recipe's network, unless the store has it, and see what each part of it is worth.

    The arguments and the errors are those of `armlet.flow.run_plan`. Channels go in the order of their L2 norm.

    Raises:
        UsageError: the recipe holds no samples out to score on.
    """
    steps = [step for step in plan.network_steps if step.stage in ("data", "judge", "pretrain", "train")]
    done = run_steps(
        plan, steps, store=store, progress=progress, begin=begin, finish=finish, interrupted=interrupted
    )
    from armlet.models.network import load_network

    context = _context(plan, done, store, progress)
    splits = context.splits()
    scorer, samples = context.scorer(splits.task), splits.validation.take(slice(N_SCORED))
    if len(samples) == 0:
        raise UsageError("sensitivity is scored on validation samples: set data.validation above 0 %")
    network = load_network(done["train"].folder)
    metric, curves, fixed = _pruned(network, samples, scorer, progress)
    layers = _quantized(network, splits.train.take(slice(N_SCORED)))
    return Analysis(plan.recipe.name, plan.profile, metric, len(samples), curves, layers, fixed)


def _context(plan: Plan, done: dict[str, StepResult], store: Store, progress: Progress) -> StageContext:
    step, folder = plan["train"], done["train"].folder
    inputs = tuple(done[need].folder for need in step.needs)
    return StageContext(plan, step, inputs, folder, folder, store.root / "data", progress)


def _pruned(
    network: Network, samples: Samples, scorer: Scorer, progress: Progress
) -> tuple[str, tuple[GroupCurve, ...], tuple[tuple[str, str], ...]]:
    """Return the metric, the curve of each group, and the groups that can't be pruned with the reason."""
    import numpy as np

    from armlet.analysis.graph import trace
    from armlet.passes.prune.allocation import Ranked
    from armlet.passes.prune.held import prunable_groups
    from armlet.passes.prune.importance import Evidence, importance
    from armlet.passes.prune.remove import remove_channels
    from armlet.train import evaluate

    inputs = network.architecture.inputs
    found = prunable_groups(network.module, inputs, trace(network.module, inputs))
    evidence = Evidence(network, samples, scorer.task.kind, seed=0)
    scores = importance(found.prunable, "l2", evidence)
    orders = [tuple(np.argsort(score, kind="stable").tolist()) for score in scores]
    ranked = [Ranked(group, order) for group, order in zip(found.prunable, orders, strict=True)]
    whole = evaluate(network, samples, scorer, "validation")
    progress.start("prune each group alone", sum(len(r.counts()) - 1 for r in ranked))
    curves = []
    for one in ranked:
        reached = [whole.value]
        for count in one.counts()[1:]:
            smaller = replace(
                network, module=remove_channels(network.module, [(one.group, one.order[:count])])
            )
            reached.append(evaluate(smaller, samples, scorer, "validation").value)
            progress.advance(1, one.group.name)
        group = one.group
        curves.append(GroupCurve(group.name, group.unit, group.n_channels, one.counts(), tuple(reached)))
    return whole.metric, tuple(curves), tuple((group.name, group.reason) for group in found.fixed)


def _quantized(network: Network, samples: Samples) -> tuple[LayerError, ...]:
    import torch

    from armlet.analysis.graph import trace
    from armlet.passes.quantize.calibrate import calibrate
    from armlet.passes.quantize.fold_batch_norm import fold_batch_norm
    from armlet.passes.quantize.placement import place
    from armlet.passes.quantize.sensitivity import sensitivities

    traced = trace(
        fold_batch_norm(network.module, network.architecture.inputs).module, network.architecture.inputs
    )
    placement = place(traced, [])
    if not placement.n_layers:
        return ()
    inputs = tuple(map(torch.from_numpy, samples.inputs))
    found = sensitivities(traced, placement, calibrate(traced, placement, inputs), inputs)
    return tuple(LayerError(layer.layer, layer.error) for layer in found)
