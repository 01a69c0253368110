"""The verbs of the library: what the command line calls, with plain arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from armlet.ablate import ablate_plan
from armlet.analyze import analyze_plan
from armlet.artifacts import Ablation, Analysis, BenchmarkRun, Protocol, TileTable, Verdict
from armlet.benchmark import bench_bundles
from armlet.bundle import Bundle
from armlet.flow import RunResult, run_plan, run_steps
from armlet.handout import (
    Handout,
    chosen_formats,
    default_folder,
    hand_out,
    handed_out_steps,
    require_place,
)
from armlet.onnx_file import Inputs, compile_file, request
from armlet.plan import Plan, make_plan
from armlet.progress import Progress, Silent
from armlet.regression import beside_baseline
from armlet.spec.budget import Budgets
from armlet.spec.load import load_recipe, load_target, override_budgets, with_processes
from armlet.spec.recipe import Optimize, Precision, Recipe, Threads
from armlet.spec.target import Target
from armlet.spec.tiles import with_tiles
from armlet.store import Store
from armlet.tune import default_file as default_table
from armlet.tune import source_of, tune_kernels


def plan(
    recipe: str | Path | Recipe,
    targets: str | Target | Sequence[str | Target] = ("host",),
    *,
    profile: str = "full",
    budgets: Mapping[str, object] | None = None,
    processes: int | None = None,
    tiles: Sequence[str | Path] = (),
) -> Plan:
    """Say what a run would do, without importing torch or tvm.

    Args:
        recipe: a recipe, or the path of its YAML file.
        targets: targets, their names, or paths of their YAML files; one, or several.
        profile: profile of the recipe file; ignored for a `Recipe`.
        budgets: budgets that replace the recipe's, by key, as they are written in a recipe ("5 ms").
        processes: training processes, instead of the recipe's own numbers.
        tiles: tables that `tune` made, for the targets whose core they are for.

    Raises:
        UsageError: everything that is wrong with the recipe, the targets or the tables.
    """
    checked = recipe if isinstance(recipe, Recipe) else load_recipe(Path(recipe), profile, budgets)
    if processes is not None:
        checked = with_processes(checked, processes)
    asked = (targets,) if isinstance(targets, str | Target) else targets
    found = [target if isinstance(target, Target) else load_target(target) for target in asked]
    return make_plan(checked, with_tiles(found, [Path(file) for file in tiles]), profile)


def run(  # noqa: PLR0913 - the keywords are what a run can be told
    recipe: str | Path | Recipe,
    targets: str | Target | Sequence[str | Target] = ("host",),
    *,
    profile: str = "full",
    budgets: Mapping[str, object] | None = None,
    processes: int | None = None,
    tiles: Sequence[str | Path] = (),
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
        processes: as for `plan`.
        tiles: as for `plan`.
        output: folder for the bundles.
        store: where finished steps are kept; the user's cache by default.
        progress: told what is happening; silent by default.

    Raises:
        UsageError: bad input, before any work.
        MissingDependency: something is missing on this machine.
        StepFailed: a step failed; a reproducer was written.
    """
    steps = plan(recipe, targets, profile=profile, budgets=budgets, processes=processes, tiles=tiles)
    return run_plan(steps, store=store or Store(), output=Path(output), progress=progress or Silent())


def compile_onnx(  # noqa: PLR0913 - the keywords are what can be told
    file: str | Path,
    target: str | Target = "host",
    *,
    output: str | Path | None = None,
    name: str | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    inputs: Inputs | None = None,
    budgets: Mapping[str, object] | None = None,
    dump: str | Path | None = None,
    optimize: Optimize = "latency",
    precision: Precision = "float32",
    threads: Threads = 1,
    tiles: Sequence[str | Path] = (),
    progress: Progress | None = None,
) -> Bundle:
    """Compile an ONNX file as it stands, run the program, compare it with ONNX Runtime, and write a bundle.

    Args:
        file: float32, or quantised in a form of ONNX Runtime's: QDQ, QOperator, or while it runs.
        target: as one of the targets for `plan`.
        output: the bundle's folder; `build/<name>-<target>.armlet` by default. A bundle that is there is replaced.
        name: of the program: lower case, digits, dashes; by default that of the file.
        shapes: of inputs that the file leaves open, with the batch of one.
        inputs: samples to run by the name of the input, [N, *shape[1:]] each, or an `.npz` file of them; 16 are drawn
            by default.
        budgets: what must hold, by key, as they are written in a recipe ("5 ms"): latency, size, memory.
        dump: folder for what each of the compiler's stages makes.
        optimize: what float32 kernels are chosen for: for latency, weights of 3×3 convolutions may be stored up to four
            times as large.
        precision: what real numbers are within; inputs and outputs are float32 in any case. float16 needs a target with
            the feature fp16, and a file that is not quantised.
        threads: that may compute one call of the program; an app starts and stops them.
        tiles: as for `plan`.
        progress: as for `run`.

    Returns:
        The bundle; `manifest.verdict` says whether the budgets hold and the answers are ONNX Runtime's.

    Raises:
        UsageError: the file, a shape, a sample or a place is wrong.
        UnsupportedOperator: names every node that can't be compiled, with the reason.
        MissingDependency: something is missing on this machine.
        VerificationFailed: the board's program differs from this machine's.
        StepFailed: something else went wrong; as with the two before it, a reproducer was written.
    """
    asked = request(
        file,
        target,
        output=output,
        name=name,
        shapes=shapes,
        inputs=inputs,
        budgets=budgets,
        dump=dump,
        optimize=optimize,
        precision=precision,
        threads=threads,
        tiles=tiles,
    )
    return compile_file(asked, progress=progress or Silent())


def export(  # noqa: PLR0913 - the keywords are what can be told
    recipe: str | Path | Recipe,
    *,
    profile: str = "full",
    output: str | Path | None = None,
    formats: Sequence[str] = (),
    compressed: bool = True,
    store: Store | None = None,
    progress: Progress | None = None,
) -> Handout:
    """Write a recipe's network as files that others can use, with a model card; make it first where it isn't made.

    Args:
        recipe: as for `plan`.
        profile: as for `plan`.
        output: folder; `build/<recipe>[-<profile>]-model` by default.
        formats: of "safetensors", "pt2" and "onnx"; all by default.
        compressed: the network after every pass; else the trained one before any.
        store: as for `run`.
        progress: as for `run`.

    Raises:
        UsageError: bad input, an unknown format, or a folder that holds something else.
        MissingDependency: something is missing on this machine.
        StepFailed: a step failed; a reproducer was written.
    """
    chosen, made = chosen_formats(formats), plan(recipe, profile=profile)
    folder = Path(output or default_folder(made))
    require_place(folder)
    steps = handed_out_steps(made, compressed=compressed)
    done = run_steps(made, steps, store=store or Store(), progress=progress or Silent())
    return hand_out(made, done, folder, chosen, compressed=compressed)


def ablate(
    recipe: str | Path | Recipe,
    target: str | Target = "host",
    *,
    profile: str = "full",
    store: Store | None = None,
    progress: Progress | None = None,
) -> Ablation:
    """Run a recipe without passes, with each alone, with all but each, and with all; say what each contributes.

    Args:
        recipe: as for `plan`.
        target: as one of the targets for `plan`.
        profile: as for `plan`.
        store: as for `run`.
        progress: as for `run`.

    Raises:
        UsageError: bad input, or a recipe without passes.
        MissingDependency: something is missing on this machine.
        StepFailed: a step failed; a reproducer was written.
    """
    made = plan(recipe, (target,), profile=profile)
    return ablate_plan(made, store=store or Store(), progress=progress or Silent())


def analyze(
    recipe: str | Path | Recipe,
    *,
    profile: str = "full",
    store: Store | None = None,
    progress: Progress | None = None,
) -> Analysis:
    """Train a recipe's network, unless the store has it; prune each group and quantise each layer of it alone.

    Args:
        recipe: as for `plan`.
        profile: as for `plan`.
        store: as for `run`.
        progress: as for `run`.

    Raises:
        UsageError: bad input, or a recipe that holds no samples out.
        MissingDependency: something is missing on this machine.
        StepFailed: a step failed; a reproducer was written.
    """
    made = plan(recipe, profile=profile)
    return analyze_plan(made, store=store or Store(), progress=progress or Silent())


def tune(  # noqa: PLR0913 - the keywords are what can be told
    source: str | Path,
    target: str | Target = "host",
    *,
    output: str | Path | None = None,
    profile: str = "full",
    shapes: Mapping[str, Sequence[int]] | None = None,
    precision: Precision = "float32",
    store: Store | None = None,
    progress: Progress | None = None,
) -> TileTable:
    """Try the tiles of each kernel of a network, and write a table of the best: `tiles` of `run` and `compile_onnx`.

    Args:
        source: an ONNX file, a recipe's YAML file, or a bundle's folder.
        target: as one of the targets for `plan`; costs are timed on this machine, or cycles modelled under emulation.
        output: the table; `build/tiles-<core>.json` by default. Kernels of one that is there are kept.
        profile: as for `plan`, of a recipe.
        shapes: as for `compile_onnx`, of an ONNX file.
        precision: as for `compile_onnx`; recipes and bundles say it themselves.
        store: as for `run`, for a recipe.
        progress: as for `run`.

    Returns:
        The network's part of the table.

    Raises:
        UsageError: bad input, a table of another core, or a target whose kernels can be neither timed nor modelled.
        MissingDependency: something is missing on this machine.
    """
    board = target if isinstance(target, Target) else load_target(target)
    fixed = {name: tuple(shape) for name, shape in (shapes or {}).items()}
    shown = progress or Silent()
    with source_of(
        Path(source), board, shown, profile=profile, shapes=fixed, precision=precision, store=store
    ) as network:
        return tune_kernels(network, board, Path(output or default_table(board)), shown)


def check(
    bundle: str | Path,
    budgets: Budgets | None = None,
    *,
    baseline: str | Path | None = None,
    tolerance: str | float = 0.0,
) -> Verdict:
    """Repeat the verdict of a bundle from the bundle alone; hold it against an older one.

    Args:
        bundle: its folder.
        budgets: instead of its own.
        baseline: folder of an older bundle for the same target, which this one must not be worse than.
        tolerance: share by which latency, size, memory and scores may be worse than the baseline's, "2 %" or 0.02;
            accuracies are compared sample by sample, and may differ by chance.


    Raises:
        UsageError: not a bundle, a file of it is corrupted, or the baseline can't be compared with it.
    """
    opened = Bundle.open(bundle)
    verdict = opened.check(budgets)
    return verdict if baseline is None else beside_baseline(verdict, opened, baseline, tolerance)


def bench(  # noqa: PLR0913 - the keywords are what can be told
    bundles: str | Path | Sequence[str | Path],
    device: str = "host",
    *,
    samples: int = 1024,
    seconds: float = 60.0,
    processes: int = 10,
    cpus: Sequence[int] = (),
    latency: str | float | None = None,
    timeout: float = 600.0,
    progress: Progress | None = None,
) -> BenchmarkRun:
    """Time bundles' programs on a device, in turns where they are several; count them on an emulated board.

    Args:
        bundles: one folder, or several; each but the first is compared with the first.
        device: "host", "emulator", or "ssh://[user@]host[:port][?folder=DIR&config=FILE]".
        samples: readings of the clock, unless `seconds` are over before.
        seconds: about how long the readings take together, at most.
        processes: fresh ones that share the readings, an even number.
        cpus: to pin to; the last of the device's fastest ones by default, as many as a program has threads.
        latency: budget instead of the bundles' own, as it is written in a recipe ("5 ms").
        timeout: longest wait for one command on the device, in seconds.
        progress: told what is happening; silent by default.

    Raises:
        UsageError: no such device, bad numbers, or something that is no bundle.
        MissingDependency: what leads to the device is not installed here.
        DeviceFailed: it can't be reached, can't run the program, or went away.
        ProgramFailed: a program crashed.
        VerificationFailed: the device answers differently from the same program here.
    """
    return bench_bundles(
        [bundles] if isinstance(bundles, str | Path) else bundles,
        device,
        Protocol(samples, seconds, processes, tuple(cpus)),
        latency_ms=None if latency is None else override_budgets(Budgets(), {"latency": latency}).latency,
        timeout_s=timeout,
        progress=progress or Silent(),
    )
