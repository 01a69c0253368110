"""Carries out a plan: each step is read from the store or done once; failures leave a reproducer."""

from __future__ import annotations

import json
import shlex
import shutil
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from armlet import artifact_json, digest, preflight
from armlet.artifacts import Verdict
from armlet.errors import ArmletError, CorruptedFile, MissingDependency, StepFailed, UsageError
from armlet.plan import Plan, Step, make_plan
from armlet.progress import Progress
from armlet.spec.load import FULL
from armlet.spec.recipe import Recipe
from armlet.spec.target import Target
from armlet.stages import STAGE_FUNCTIONS, StageContext
from armlet.store import Store, check_files, require_folder


@dataclass(frozen=True, slots=True)
class StepResult:
    """One finished step: where its artefact lies, whether it was there already, and how long it took."""

    step: Step
    folder: Path
    cached: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a run produced.

    Attributes:
        steps: every step in order.
        bundles: the bundle of each target, in the order of the targets.
        verdicts: the verdict of each target, in the same order.
    """

    plan: Plan
    steps: tuple[StepResult, ...]
    bundles: tuple[Path, ...]
    verdicts: tuple[Verdict, ...]

    @property
    def passes(self) -> bool:
        """Whether every budget holds on every target."""
        return all(verdict.passes for verdict in self.verdicts)


StepListener = Callable[[StepResult], None]


@dataclass(frozen=True, slots=True)
class _Run:
    """What the steps of one run share; see `run_plan`."""

    plan: Plan
    store: Store
    progress: Progress
    begin: Callable[[Step], None]
    interrupted: Callable[[], bool]


def run_plan(  # noqa: PLR0913 - the keywords are what a run can be told
    plan: Plan,
    *,
    store: Store,
    output: Path,
    progress: Progress,
    begin: Callable[[Step], None] = lambda _: None,
    finish: StepListener = lambda _: None,
    interrupted: Callable[[], bool] = lambda: False,
) -> RunResult:
    """Carry out every step that the store does not have, and put the bundles into `output`.

    Args:
        plan: from `make_plan`.
        store: where finished steps are kept.
        output: folder for the bundles, `<recipe>-<target>.armlet` each, with `-<profile>` for other profiles than
            the full one; a bundle of the same name is replaced.
        progress: told what the running stage does.
        begin: called with each step that is about to run.
        finish: called with each finished step, cached or not.
        interrupted: whether Ctrl-C was pressed; a step during which it was, leaves nothing, though a library may
            have swallowed the interruption.

    Raises:
        KeyboardInterrupt: the run was interrupted; what is finished is kept.
        StepFailed: a step failed; a reproducer was written.
        ArmletError: bad input, something missing, or a corrupted store entry.
    """
    names = [target.name for target in plan.targets]
    # Only the recipe as written gets the plain name: what another profile makes must not pass for it.
    suffix = "" if plan.profile == FULL else f"-{plan.profile}"
    destinations = [output / f"{plan.recipe.name}-{name}{suffix}.armlet" for name in names]
    _check_places(store, output, destinations)
    preflight.require(step for step in plan.steps if not store.has(step.key))
    done = _do_all(_Run(plan, store, progress, begin, interrupted), plan.steps, finish)
    for name, destination in zip(names, destinations, strict=True):
        with store.lock(
            digest.of_bytes(str(destination.absolute()).encode())
        ):  # of another run to the same place
            place_bundle(done[f"bundle/{name}"].folder / "bundle", destination)
    verdicts = tuple(artifact_json.load(Verdict, done[f"check/{name}"].folder) for name in names)
    return RunResult(plan, tuple(done.values()), tuple(destinations), verdicts)


def run_steps(  # noqa: PLR0913 - the keywords are what a run can be told
    plan: Plan,
    steps: Sequence[Step],
    *,
    store: Store,
    progress: Progress,
    begin: Callable[[Step], None] = lambda _: None,
    finish: StepListener = lambda _: None,
    interrupted: Callable[[], bool] = lambda: False,
) -> dict[str, StepResult]:
    """Carry out `steps` of a plan, all that they need among them, and return them by name.

    `plan.network_steps` are such steps. The other arguments and the errors are those of `run_plan`.
    """
    preflight.require(step for step in steps if not store.has(step.key))
    return _do_all(_Run(plan, store, progress, begin, interrupted), steps, finish)


def _do_all(run: _Run, steps: Sequence[Step], finish: StepListener) -> dict[str, StepResult]:
    done: dict[str, StepResult] = {}
    for step in steps:
        done[step.name] = _do(run, step, done)
        finish(done[step.name])
    return done


def _check_places(store: Store, output: Path, destinations: Sequence[Path]) -> None:
    """Refuse, before any work, a cache or an output folder that can't be written, or a place that is taken."""
    for folder, what in ((store.root, "the cache, ARMLET_CACHE"), (output, "--output")):
        require_folder(folder, what)
    for place in destinations:
        require_bundle_place(place)


def require_bundle_place(place: Path) -> None:
    """Refuse a place for a bundle where something else is.

    Raises:
        UsageError: it is taken.
    """
    if place.is_symlink() or (place.exists() and not (place / "manifest.json").is_file()):
        raise UsageError(f"{place} exists and is not a bundle: move it away or choose another --output")


def _do(run: _Run, step: Step, done: dict[str, StepResult]) -> StepResult:
    store = run.store
    found = store.find(step.key)
    if found is not None:
        return StepResult(step, found, cached=True, seconds=0.0)
    run.begin(step)
    inputs = tuple(done[need].folder for need in step.needs)
    started = time.monotonic()
    with store.lock(step.key):
        if not store.has(step.key):  # another run may have done it while this one waited
            with store.create(step.key, step.stage) as folder:
                context = StageContext(
                    run.plan, step, inputs, folder, store.work(step.key), store.root / "data", run.progress
                )
                artifact_json.save(_attempt(context, run), folder)
            store.clear_work(step.key)
    return StepResult(step, store.folder(step.key), cached=False, seconds=time.monotonic() - started)


def _attempt(context: StageContext, run: _Run) -> object:
    """Run the stage; whatever goes wrong inside it becomes a StepFailed with a reproducer."""
    try:
        artifact = STAGE_FUNCTIONS[context.step.stage](context)
    except (UsageError, MissingDependency, StepFailed):
        raise  # the user can act on these as they are: nothing about the step itself is broken
    except Exception as error:  # the one border where any failure gets its reproducer and exit code
        if run.interrupted() or _is_interruption(error):
            raise KeyboardInterrupt from error
        reason = str(error) if isinstance(error, ArmletError) else f"{type(error).__name__}: {error}"
        folder = _write_reproducer(context, run.store.root / "failed", traceback.format_exc())
        raise StepFailed(context.step.name, reason, folder) from error
    if run.interrupted():
        raise KeyboardInterrupt
    return artifact


def _is_interruption(error: BaseException | None) -> bool:
    """Say whether an error only followed from Ctrl-C, as where it cuts a library's import in half."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False


def _write_reproducer(context: StageContext, root: Path, trace: str) -> Path:
    """Keep the failed step's spec, its inputs and the one command that repeats it."""
    folder = root / f"{context.step.name.replace('/', '-').replace(' ', '-')}-{context.step.key[:12]}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for position, source in enumerate(context.inputs):
        shutil.copytree(source, folder / "inputs" / str(position))
    description = {
        "step": context.step.name,
        "profile": context.plan.profile,
        "recipe": context.plan.recipe.model_dump(mode="json"),
        "targets": [target.model_dump(mode="json") for target in context.plan.targets],
        "command": f"armlet reproduce {shlex.quote(str(folder))}",
    }
    (folder / "step.json").write_text(json.dumps(description, indent=2), encoding="utf-8")
    (folder / "traceback.txt").write_text(trace, encoding="utf-8")
    return folder


def reproduce(folder: Path, progress: Progress) -> Path:
    """Repeat the failed step whose reproducer is in `folder`, from the inputs kept there.

    Returns:
        The folder with the step's result, when it works after all.

    Raises:
        UsageError: the folder is not a reproducer, or one of `armlet compile`, whose command is named.
        Exception: whatever the step raises, with its full traceback.
    """
    try:
        description = json.loads((folder / "step.json").read_bytes())
        if description["step"] == "compile":  # of an ONNX file, which no recipe leads to
            raise UsageError(
                f"{folder} is of a file that was compiled; repeat it with: {description['command']}"
            )
        recipe = Recipe.model_validate(description["recipe"])
        targets = [Target.model_validate(target) for target in description["targets"]]
        plan = make_plan(recipe, targets, description["profile"])
        step = plan[description["step"]]
    except OSError as error:
        raise UsageError(f"{folder} is not a reproducer: step.json: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, StopIteration) as error:
        raise UsageError(f"{folder} is not a reproducer: {error}") from error
    inputs = tuple(folder / "inputs" / str(position) for position in range(len(step.needs)))
    result, work = folder / "result", folder / "work"
    shutil.rmtree(result, ignore_errors=True)
    result.mkdir()
    work.mkdir(exist_ok=True)
    context = StageContext(plan, step, inputs, result, work, Store().root / "data", progress)
    artifact_json.save(STAGE_FUNCTIONS[step.stage](context), result)
    return result


def place_bundle(source: Path, destination: Path) -> None:
    """Copy a bundle to where the user wants it, unless the very same one is there already."""
    same = destination / "manifest.json"
    if same.is_file() and same.read_bytes() == (source / "manifest.json").read_bytes():
        try:
            check_files(destination, same, hint="")
        except CorruptedFile:
            pass  # somebody changed it: the store's copy replaces it
        else:
            return
    new = destination.with_name(f".{destination.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    shutil.copytree(source, new)
    if destination.exists():
        shutil.rmtree(destination)
    new.rename(destination)
