"""Chooses tiles by what kernels cost with each: cycles modelled under emulation, or nanoseconds timed on this machine.

*Input -> Output*: a network and a target -> a table of the tiles that are best for its kernels on that core.
*How*: each kernel that can be cut up in several ways becomes a program of its own with each of them.
*Limits*: modelled cycles know of no cache or branch misses (`armlet.bench.cycles`); what a timed kernel reads is
in the cache already.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from armlet import artifact_json
from armlet.artifacts.tiles import TileTable, TunedKernel
from armlet.bench.llvm import find_llvm
from armlet.bench.protocol import compare_host, cpu_name
from armlet.bundle import MANIFEST_FILE, Bundle
from armlet.errors import Problem, UsageError
from armlet.flow import run_steps
from armlet.plan import make_plan
from armlet.progress import Progress
from armlet.spec.load import FULL, load_recipe
from armlet.spec.recipe import Precision
from armlet.spec.target import Target
from armlet.spec.tiles import read_table
from armlet.store import Store, require_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

    import tvm

    from armlet.compile.kernels.choices import Tunable

LEAST_GAIN = {"cycles": 0.02, "ns": 0.05}
"""The share that a tile must save to replace the formula's, by the unit of the cost: timing is never quite the same."""


@dataclass(frozen=True, slots=True)
class Source:
    """A network whose kernels are tuned.

    Attributes:
        model: its ONNX file, with static shapes.
        small, precision: what its kernels are chosen by; see `armlet.compile.pipeline.lower`.
    """

    model: Path
    small: bool
    precision: Precision


@contextmanager
def source_of(  # noqa: PLR0913 - what can be told of each kind of source
    path: Path,
    target: Target,
    progress: Progress,
    *,
    profile: str = FULL,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    precision: Precision = "float32",
    store: Store | None = None,
) -> Iterator[Source]:
    """Find the network of a bundle, a recipe or an ONNX file; that of a recipe is trained first where it isn't.

    Args:
        path: a bundle's folder, a recipe's YAML file, or an ONNX file.
        target: that it is tuned for.
        progress: told what is happening.
        profile: of a recipe.
        shapes: of inputs that an ONNX file leaves open.
        precision: what real numbers of an ONNX file are within; recipes and bundles say it themselves.
        store: where finished steps are kept; the user's cache by default.

    Raises:
        UsageError: the file is none of these, or it is wrong; or as `check_tunable`.
    """
    check_tunable(target)
    if (path / MANIFEST_FILE).is_file():
        bundle = Bundle.open(path)
        recipe = bundle.manifest.provenance.recipe
        chosen = (False, precision) if recipe is None else recipe.kernels_on(target)[:2]
        yield Source(path / "model.onnx", *chosen)
    elif path.suffix in (".yaml", ".yml"):
        recipe = load_recipe(path, profile)
        plan = make_plan(recipe, (target,), profile)
        done = run_steps(plan, plan.network_steps, store=store or Store(), progress=progress)
        yield Source(done["export"].folder / "model.onnx", *recipe.kernels_on(target)[:2])
    else:
        from armlet.compile.frontend.shapes import fix_shapes

        with tempfile.TemporaryDirectory(prefix="armlet-tune-") as scratch:
            model = Path(scratch) / path.name
            fix_shapes(path, shapes or {}, model)
            yield Source(model, False, precision)


def check_tunable(target: Target) -> None:
    """Refuse a target that there are no tiles for.

    Raises:
        UsageError: its kernels run on a GPU, or can be neither timed nor modelled.
    """
    if target.gpu is not None:
        message = f"target {target.name}: kernels for GPUs have no tiles to choose"
        raise UsageError(Problem(message, key="gpu", hint="choose a target without a GPU"))
    if not target.is_native and target.core.cost_model is None:
        message = (
            f"target {target.name} has no core.cost_model: its kernels can be neither timed nor modelled"
        )
        raise UsageError(Problem(message, hint="a Raspberry Pi's target has one"))


def default_file(target: Target) -> Path:
    """Return where a table for a target is written if nothing else is said."""
    return Path("build") / f"tiles-{target.resolved_cpu}.json"


def tune_kernels(source: Source, target: Target, file: Path, progress: Progress) -> TileTable:
    """Find the best tile of each kernel of a network, and write them into a table; kernels that it has are kept.

    The table is written after each kernel, so that what is interrupted goes on where it stopped.

    Args:
        source: the network.
        target: the board; an emulated one needs `core.cost_model`.
        file: the table, added to where it is there.
        progress: told of each kernel.

    Raises:
        UsageError: the file is of another core, or its costs came about otherwise; or as `check_tunable`.
        MissingDependency: a tool chain, the emulator or llvm-mca is not installed.
    """
    unit, how, costs_of = _way_to_measure(target)
    require_folder(file.absolute().parent, "--output")
    table = TileTable(target.resolved_cpu, unit, how, ())
    if file.exists():
        table = _same(file, table)
    todo = _tunables(source, target)
    known = {kernel.kernel: kernel for kernel in table.kernels}
    progress.start(f"tune {len(todo)} kernels", len(todo))
    for key, (tunable, build) in todo.items():
        if key not in known:
            with tempfile.TemporaryDirectory(prefix="armlet-tune-") as scratch:
                functions = [tunable.build(choice) for choice in tunable.candidates]
                costs = dict(zip(tunable.candidates, costs_of(functions, build, Path(scratch)), strict=True))
            known[key] = _best(tunable, costs, unit)
            table = TileTable(table.core, unit, how, tuple(known[name] for name in sorted(known)))
            _write(table, file)
        progress.advance(note=_told(known[key]))
    return TileTable(table.core, unit, how, tuple(known[key] for key in sorted(todo)))


def _tunables(source: Source, target: Target) -> dict[str, tuple[Tunable, Target]]:
    """Return the kernels of all of a target's builds that can be cut up in several ways, each with its build."""
    from armlet.compile.pipeline import lower_builds

    builds = [build.model_copy(update={"tiles": ()}) for build in target.builds]
    programs = lower_builds(source.model, builds, small=source.small, precision=source.precision)
    return {
        tunable.key: (tunable, build)
        for build, program in reversed(list(zip(builds, programs, strict=True)))
        for tunable in program.tunables
        if len(tunable.candidates) > 1
    }


def _best(tunable: Tunable, costs: Mapping[tuple[int, int], float], unit: str) -> TunedKernel:
    """Return the tile that costs least, the formula's where that is about as good."""
    formula = tunable.formula
    best = min(costs, key=lambda choice: (costs[choice], choice))
    if costs[best] > (1 - LEAST_GAIN[unit]) * costs[formula]:
        best = formula
    return TunedKernel(tunable.key, best, round(costs[best]), formula, round(costs[formula]))


def _told(kernel: TunedKernel) -> str:
    saved = 1 - kernel.cost / kernel.formula_cost if kernel.formula_cost else 0.0
    rows, columns = kernel.tile
    return f"{rows} × {columns}: {saved:.0%} less" if saved else f"{rows} × {columns} as it is"


def _same(file: Path, fresh: TileTable) -> TileTable:
    """Read the table that is added to.

    Raises:
        UsageError: its costs can't stand beside new ones.
    """
    found = read_table(file)
    for what, there, asked in (
        ("is for another core", found.core, fresh.core),
        ("has costs that came about otherwise", found.how, fresh.how),
    ):
        if there != asked:
            hint = "choose another --output, or delete it"
            raise UsageError(Problem(f"{what}: {there!r}, not {asked!r}", file=file, hint=hint))
    return found


def _write(table: TileTable, file: Path) -> None:
    fresh = file.with_name(f".{file.name}.new")
    fresh.write_text(artifact_json.to_json(table), encoding="utf-8")
    fresh.replace(file)


Measure = Callable[[Sequence["tvm.tirx.PrimFunc"], Target, Path], Iterable[float]]


def _way_to_measure(target: Target) -> tuple[str, str, Measure]:
    """Return unit, words and function of the costs on a target."""
    check_tunable(target)
    if target.is_native:
        return "ns", f"measured on {cpu_name()}", _timed
    how = f"modelled by {target.core.cost_model} (llvm-mca {find_llvm().version}), counts under emulation"
    return "cycles", how, _modelled


def _modelled(functions: Sequence[tvm.tirx.PrimFunc], target: Target, folder: Path) -> Iterable[float]:
    """Return the modelled cycles of kernels, of one call each, all in one program."""
    import numpy as np

    from armlet.bench.cycles import count_cycles
    from armlet.compile.alone import INPUT, name_of, program_of
    from armlet.compile.emit import emit_program
    from armlet.devices.emulator import Emulator

    emit_program([program_of(functions)], target, "tune", folder)
    runner = folder / "bin" / "run"
    sample = np.zeros(INPUT.shape, INPUT.dtype)
    counts = count_cycles(Emulator(target).count(runner, sample, simulate_caches=False), runner, target)
    cycles = {kernel.symbol: kernel.cycles for kernel in counts.kernels}
    return [cycles[f"tune_{name_of(number)}"] for number in range(len(functions))]


def _timed(functions: Sequence[tvm.tirx.PrimFunc], target: Target, folder: Path) -> Iterable[float]:
    """Return the nanoseconds of kernels on this machine, each in a program of its own; they take turns."""
    from armlet.compile.alone import program_of
    from armlet.compile.emit import emit_program

    places = [folder / str(number) for number in range(len(functions))]
    for function, place in zip(functions, places, strict=True):
        emit_program([program_of([function])], target, "tune", place)
    return compare_host([place / "bin" / "run" for place in places])
