"""Makes a bundle of an ONNX file that somebody else made: compiled as it stands, run, compared, measured."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from armlet import artifact_json, digest, preflight
from armlet.bundle import SAMPLES_FOLDER, Bundle, Provenance, Sources, versions, write_bundle
from armlet.check import check_budgets
from armlet.compile.emit.entry import check_symbol
from armlet.compile.pipeline import check_precision, check_threads
from armlet.errors import ArmletError, MissingDependency, StepFailed, UsageError
from armlet.flow import StepListener, StepResult, place_bundle, require_bundle_place
from armlet.plan import REFERENCE_TARGET, STAGES, StageName, Step
from armlet.progress import Progress
from armlet.report import ReportInput
from armlet.spec.budget import Budgets
from armlet.spec.load import load_target, override_budgets
from armlet.spec.recipe import LONGEST_NAME, NAME_PATTERN, Optimize, Precision, Threads, symbol_of
from armlet.spec.target import Target
from armlet.spec.tiles import with_tiles
from armlet.store import Store, require_folder

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from armlet.compile.dump import Dump

_STAGES: tuple[StageName, ...] = ("compile", "measure", "bundle")
_READING = ("numpy", "onnx", "onnx-ir", "onnxruntime")  # packages that read the file and answer for it

Inputs = str | Path | Mapping[str, "ArrayLike"]


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked for.

    Attributes:
        file: the ONNX file.
        target: the board.
        name: of the program; names the bundle and begins every C name.
        output: the bundle's folder.
        shapes: of inputs that the file leaves open, with the batch of one.
        inputs: samples to run; None draws some.
        budgets: what must hold.
        dump: folder for what each of the compiler's stages makes, None for none.
        optimize: what float32 kernels are chosen for, as in a recipe.
        precision: what real numbers are within, as in a recipe.
        threads: that may compute one call.
    """

    file: Path
    target: Target
    name: str
    output: Path
    shapes: Mapping[str, tuple[int, ...]]
    inputs: Inputs | None
    budgets: Budgets
    dump: Path | None
    optimize: Optimize
    precision: Precision
    threads: Threads


def request(  # noqa: PLR0913 - the keywords are what can be told
    file: str | Path,
    target: str | Target,
    *,
    output: str | Path | None,
    name: str | None,
    shapes: Mapping[str, Sequence[int]] | None,
    inputs: Inputs | None,
    budgets: Mapping[str, object] | None,
    dump: str | Path | None,
    optimize: Optimize,
    precision: Precision,
    threads: Threads,
    tiles: Sequence[str | Path],
) -> Request:
    """Check what `armlet.compile_onnx` is told, as far as that goes without the file.

    The arguments are those of `armlet.compile_onnx`.

    Raises:
        UsageError: what is wrong with the target, its precision, the threads, the name or the budgets.
    """
    board = target if isinstance(target, Target) else load_target(target)
    (found,) = with_tiles((board,), [Path(file) for file in tiles])
    chosen = _name_of(Path(file)) if name is None else name
    _check_name(chosen)
    check_precision(precision, found)
    check_threads(threads, found)
    return Request(
        file=Path(file),
        target=found,
        name=chosen,
        output=Path(output or f"build/{chosen}-{found.name}.armlet"),
        shapes={key: tuple(shape) for key, shape in (shapes or {}).items()},
        inputs=inputs,
        budgets=override_budgets(Budgets(), budgets or {}),
        dump=Path(dump) if dump is not None else None,
        optimize=optimize,
        precision=precision,
        threads=threads,
    )


def _check_name(name: str) -> None:
    """Refuse a name that can't be a program's.

    Raises:
        UsageError: as it says.
    """
    if not re.match(NAME_PATTERN, name) or len(name) > LONGEST_NAME:
        raise UsageError(
            f"{name!r} can't be a program's name: use lower-case letters, digits and dashes, beginning with a letter,"
            f" at most {LONGEST_NAME}"
        )
    check_symbol(symbol_of(name))


def _name_of(file: Path) -> str:
    """Return the program's name that follows from the name of its file.

    Raises:
        UsageError: there is none.
    """
    name = re.sub(r"[^a-z0-9]+", "-", file.stem.lower()).strip("-")[:LONGEST_NAME].rstrip("-")
    try:
        _check_name(name)
    except UsageError as error:
        raise UsageError(f"{error}; choose one with --name") from error
    return name


def compile_file(
    request: Request,
    *,
    progress: Progress,
    begin: Callable[[Step], None] = lambda _: None,
    finish: StepListener = lambda _: None,
    interrupted: Callable[[], bool] = lambda: False,
) -> Bundle:
    """Compile an ONNX file for a target, run the program, and write a bundle.

    Args:
        request: what is asked for.
        progress: told what the running step does.
        begin: called with each step that is about to run.
        finish: called with each finished step.
        interrupted: whether Ctrl-C was pressed.

    Raises:
        UsageError: the file, a shape, a sample or a place is wrong.
        UnsupportedOperator: names every node that can't be compiled, with the reason.
        MissingDependency: something is missing on this machine.
        VerificationFailed: the board's program differs from the host's.
        StepFailed: something else went wrong. Where an error is not the user's, a reproducer was written.
    """
    target, run = request.target, _Run(begin, finish, interrupted)
    require_bundle_place(request.output)
    host = None if target.is_native else load_target(REFERENCE_TARGET)
    compiles = [_step("compile", one) for one in (target, host) if one is not None]
    measure, bundle = _step("measure", target), _step("bundle", target)
    preflight.require([*compiles, measure, bundle], _READING)
    _refuse_lacking(target)
    try:
        with tempfile.TemporaryDirectory(prefix="armlet-compile-") as scratch:
            return _compile(request, compiles, (measure, bundle), Path(scratch), run, progress)
    except (UsageError, MissingDependency, OSError):
        raise  # the user can act on these as they are
    except ArmletError as error:
        error.add_note(f"reproducer: {_write_reproducer(request, traceback.format_exc())}")
        raise
    except Exception as error:  # as of a step of a run: any failure gets its reproducer and exit code
        folder = _write_reproducer(request, traceback.format_exc())
        raise StepFailed("compile", f"{type(error).__name__}: {error}", folder) from error


@dataclass(frozen=True, slots=True)
class _Run:
    """Who is told of the steps."""

    begin: Callable[[Step], None]
    finish: StepListener
    interrupted: Callable[[], bool]

    @contextmanager
    def doing(self, step: Step, folder: Path) -> Iterator[None]:
        """Tell of a step before and after it; one that Ctrl-C came into does not end well, whatever a library says."""
        self.begin(step)
        started = time.monotonic()
        try:
            yield
        except Exception as error:
            if self.interrupted():
                raise KeyboardInterrupt from error
            raise
        if self.interrupted():
            raise KeyboardInterrupt
        self.finish(StepResult(step, folder, cached=False, seconds=time.monotonic() - started))


def _refuse_lacking(target: Target) -> None:
    """Refuse a program that this machine has to run and whose instructions it lacks: it would end armlet itself.

    Raises:
        UsageError: names the extensions.
    """
    from armlet.devices.host import this_machine_has

    lacking = [feature for feature in target.resolved_features if not this_machine_has((feature,))]
    if target.is_native and lacking:
        raise UsageError(
            f"target {target.name} runs on this machine, whose CPU has no {', '.join(lacking)}: choose another target"
        )


def _step(stage: StageName, target: Target) -> Step:
    where = "this machine in its place" if target.compiled_only else target.device
    what = {
        "compile": f"compile for {target.description or target.name}",
        "measure": f"run on {where}, compare with ONNX Runtime",
    }.get(stage, "write bundle and report")
    return Step(f"{stage}/{target.name}", stage, "", (), what, target)


def _compile(
    request: Request, compiles: list[Step], last: tuple[Step, Step], work: Path, run: _Run, progress: Progress
) -> Bundle:
    from armlet.compile.pipeline import compile_onnx
    from armlet.devices.samples import pack
    from armlet.stages.imported import import_onnx, measure_imported

    target, symbol = request.target, symbol_of(request.name)
    exported = work / "exported"
    exported.mkdir()
    imported, samples = import_onnx(request.file, request.shapes, request.inputs, exported)
    model = exported / imported.file
    require_folder(request.output.absolute().parent, "--output")  # nothing is left behind by a bad file
    dump = _dump(request.dump)
    folders = []
    for step in compiles:
        folder = work / step.name
        folder.mkdir(parents=True)
        folders.append(folder)
        with run.doing(step, folder):
            assert step.target is not None  # noqa: S101 - `_step` gave it one
            shown = dump if step.target is target else None
            compiled = compile_onnx(
                model,
                step.target,
                symbol,
                folder,
                small=request.optimize == "size",
                precision=request.precision if step.target is target else "float32",
                threads=request.threads if step.target is target else 1,
                dump=shown,
            )
            artifact_json.save(compiled, folder)
            if step.target is target:
                program = compiled
    with run.doing(last[0], work):
        both = folders[0], folders[1] if len(folders) > 1 else None
        measured, outputs = measure_imported(both, imported, samples, model, target, progress)
    with run.doing(last[1], work):
        model.rename(exported / "model.onnx")
        kept = exported / SAMPLES_FOLDER
        kept.mkdir()
        (kept / "inputs.bin").write_bytes(pack(samples))
        if outputs is not None:
            (kept / "outputs.bin").write_bytes(pack(outputs))
        facts = ReportInput(
            name=request.name,
            budgets=request.budgets,
            recipe=None,
            target=target,
            data=None,
            trained=None,
            passes=(),
            exported=None,
            compiled=program,
            evaluated=None,
            measured=measured,
            verdict=check_budgets(request.budgets, None, None, program, measured),
            versions=versions({*_READING, *(p for stage in _STAGES for p in STAGES[stage].packages)}),
            imported=imported,
        )
        provenance = Provenance(None, "", 0, (), facts.versions, {})
        made = write_bundle(facts, provenance, Sources(folders[0], exported), work)
        place_bundle(made.folder, request.output)
    return replace(made, folder=request.output)


def _write_reproducer(request: Request, trace: str) -> Path:
    """Keep the file, the samples and the target, with the one command that compiles them again."""
    import numpy as np
    import onnx

    folder = Store().root / "failed" / f"compile-{request.name}-{digest.of_file(request.file)[:12]}"
    new = folder.with_name(
        f".{folder.name}.new"
    )  # the file may lie in `folder`, as where its command is repeated
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    onnx.save(onnx.load(request.file), new / request.file.name)  # with the weights that lie beside it
    (new / "target.yaml").write_text(request.target.model_dump_json(indent=2), encoding="utf-8")
    words = [
        "armlet", "compile", str(folder / request.file.name), "--target", str(folder / "target.yaml"),
        "--name", request.name, "--optimize", request.optimize, "--precision", request.precision,
        "--threads", str(request.threads), "--output", str(folder / "result.armlet"),
    ]  # fmt: skip
    for name, shape in request.shapes.items():
        words += ["--shape", f"{name}={','.join(map(str, shape))}"]
    if isinstance(request.inputs, Mapping):
        arrays: dict[str, Any] = {name: np.asarray(x) for name, x in request.inputs.items()}
        np.savez(new / "inputs.npz", **arrays)
    elif request.inputs is not None:
        shutil.copyfile(request.inputs, new / "inputs.npz")
    if request.inputs is not None:
        words += ["--inputs", str(folder / "inputs.npz")]
    description = {"step": "compile", "command": shlex.join(words)}
    (new / "step.json").write_text(json.dumps(description, indent=2), encoding="utf-8")
    (new / "traceback.txt").write_text(trace, encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    new.rename(folder)
    return folder


def _dump(folder: Path | None) -> Dump | None:
    """Open the folder for the compiler's stages."""
    if folder is None:
        return None
    from armlet.compile.dump import Dump

    return Dump(folder)
