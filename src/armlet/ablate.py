"""What each pass of a recipe contributes: the recipe without passes, with each alone, with all but each, with all."""

from __future__ import annotations

from collections.abc import Callable

from armlet import artifact_json
from armlet.artifacts import Ablation, Compiled, Compressed, Evaluated, Measured, Trained, Variant
from armlet.errors import UsageError
from armlet.flow import StepListener, StepResult, run_steps
from armlet.plan import Plan, Step, make_plan
from armlet.progress import Progress
from armlet.store import Store


def ablate_plan(
    plan: Plan,
    *,
    store: Store,
    progress: Progress,
    begin: Callable[[Step], None] = lambda _: None,
    finish: StepListener = lambda _: None,
    interrupted: Callable[[], bool] = lambda: False,
) -> Ablation:
    """Measure a recipe with some of its passes at a time; steps that variants share are done once.

    The plan is for one target. The other arguments and the errors are those of `armlet.flow.run_plan`.

    Raises:
        UsageError: the recipe has no passes.
    """
    recipe, (target,) = plan.recipe, plan.targets
    if not recipe.passes:
        raise UsageError(f"{recipe.name} has no passes, so there is nothing to leave out")
    subsets, variants = subsets_of(len(recipe.passes)), []
    for number, chosen in enumerate(subsets, 1):
        passes = tuple(recipe.passes[position] for position in chosen)
        words = " → ".join(options.kind for options in passes) or "no pass"
        progress.say(f"variant {number} of {len(subsets)}: {words}")
        part = recipe.model_copy(update={"passes": passes})
        made = make_plan(part, plan.targets, plan.profile)
        done = run_steps(
            made,
            made.measuring_steps,
            store=store,
            progress=progress,
            begin=begin,
            finish=finish,
            interrupted=interrupted,
        )
        variants.append(_variant(chosen, made, done))
    kinds = tuple(options.kind for options in recipe.passes)
    return Ablation(recipe.name, plan.profile, target.name, kinds, tuple(variants))


def subsets_of(n: int) -> tuple[tuple[int, ...], ...]:
    """Return the positions of `n` passes that are run together: none, each alone, all but each, all."""
    everything = tuple(range(n))
    without = [tuple(p for p in everything if p != left_out) for left_out in everything]
    return tuple(dict.fromkeys([(), *((p,) for p in everything), *without, everything]))


def _variant(passes: tuple[int, ...], plan: Plan, done: dict[str, StepResult]) -> Variant:
    name, steps = plan.targets[0].name, plan.pass_steps
    if steps:
        cost = artifact_json.load(Compressed, done[steps[-1].name].folder).record.after
    else:
        cost = artifact_json.load(Trained, done["train"].folder).cost
    compiled = artifact_json.load(Compiled, done[f"compile/{name}"].folder)
    return Variant(
        passes,
        artifact_json.load(Evaluated, done["evaluate"].folder).score,
        cost,
        compiled.size_bytes,
        compiled.arena_bytes,
        artifact_json.load(Measured, done[f"measure/{name}"].folder).latency,
    )
