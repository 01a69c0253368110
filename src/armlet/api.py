"""The verbs of the library: what the command line calls, with plain arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from armlet.artifacts import Verdict
from armlet.bundle import Bundle
from armlet.flow import RunResult, run_plan
from armlet.plan import Plan, make_plan
from armlet.progress import Progress, Silent
from armlet.spec.budget import Budgets
from armlet.spec.load import load_recipe, load_target
from armlet.spec.recipe import Recipe
from armlet.spec.target import Target
from armlet.store import Store


def plan(
    recipe: str | Path | Recipe,
    targets: Sequence[str | Target] = ("host",),
    *,
    profile: str = "full",
    budgets: Mapping[str, object] | None = None,
) -> Plan:
    """Say what a run would do, without importing torch or tvm.

    Args:
        recipe: a recipe, or the path of its YAML file.
        targets: targets, their names, or paths of their YAML files.
        profile: profile of the recipe file; ignored for a `Recipe`.
        budgets: budgets that replace the recipe's, by key, as they are written in a recipe ("5 ms").

    Raises:
        UsageError: everything that is wrong with the recipe or the targets.
    """
    checked = recipe if isinstance(recipe, Recipe) else load_recipe(Path(recipe), profile, budgets)
    found = [target if isinstance(target, Target) else load_target(target) for target in targets]
    return make_plan(checked, found, profile)


def run(  # noqa: PLR0913 - the keywords are what a run can be told
    recipe: str | Path | Recipe,
    targets: Sequence[str | Target] = ("host",),
    *,
    profile: str = "full",
    budgets: Mapping[str, object] | None = None,
    output: str | Path = "build",
    store: Store | None = None,
    progress: Progress | None = None,
) -> RunResult:
    """Carry a recipe the whole way for each target: train, compress, compile, run, check, bundle, report.

    Args:
        recipe: as for `plan`.
        targets: as for `plan`.
        profile: as for `plan`.
        budgets: as for `plan`.
        output: folder for the bundles.
        store: where finished steps are kept; the user's cache by default.
        progress: told what is happening; silent by default.

    Raises:
        UsageError: bad input, before any work.
        MissingDependency: something is missing on this machine.
        StepFailed: a step failed; a reproducer was written.
    """
    steps = plan(recipe, targets, profile=profile, budgets=budgets)
    return run_plan(steps, store=store or Store(), output=Path(output), progress=progress or Silent())


def check(bundle: str | Path, budgets: Budgets | None = None) -> Verdict:
    """Repeat the verdict of a bundle from the bundle alone.

    Raises:
        UsageError: not a bundle, or a file of it is corrupted.
    """
    return Bundle.open(bundle).check(budgets)
