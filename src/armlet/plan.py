"""Recipe + targets -> Plan: the ordered, typed steps of a run with their cache keys. Imports neither torch nor tvm.

The key of a step is the SHA-256 of what its result depends on: the stage's name, the keys of the steps it reads, the
sections of the recipe it uses, the target, the seed, the source code of the rooms it runs, the versions of the
packages and programs it calls, and this machine's CPU for what is timed on it. Not in the key: the device that trains
(a GPU gives other bits than a CPU, the result is as good), the number of cores, paths, the recipe's name and
description.
"""

from __future__ import annotations

import functools
import importlib.metadata
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from armlet import digest
from armlet.bench.llvm import find_llvm
from armlet.bench.protocol import cpu_name
from armlet.compile.emit.entry import check_symbol
from armlet.compile.pipeline import check_gpu, check_precision
from armlet.data import digests as data_digests
from armlet.devices.base import opencl_drivers
from armlet.errors import MissingDependency, UsageError
from armlet.spec.load import load_target
from armlet.spec.passes import n_teachers
from armlet.spec.recipe import Recipe
from armlet.spec.target import Target
from armlet.spec.train import TrainSpec
from armlet.spec.widths import settled

_PACKAGE = Path(__file__).parent

StageName = Literal[
    "data", "judge", "pretrain", "train", "teacher", "pass", "export", "export_stream", "compile", "compile_stream",
    "evaluate", "measure", "measure_stream", "program_cost", "check", "bundle",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class StageInputs:
    """What a stage's result depends on, beside its spec and inputs.

    Attributes:
        sources: files and folders of the package whose code it runs.
        packages: distributions whose versions count.
    """

    sources: tuple[str, ...]
    packages: tuple[str, ...] = ()


_NETWORK_STAGES = ("data", "judge", "pretrain", "train", "teacher", "pass", "export")
_MEASURING_STAGES = ("compile", "evaluate", "measure")
_LEARN = ("data", "models", "metrics", "analysis", "train")
STAGES: dict[StageName, StageInputs] = {
    "data": StageInputs(("data",), ("numpy", "tokenizers")),
    "judge": StageInputs(_LEARN, ("numpy", "torch", "accelerate", "torchmetrics")),
    "pretrain": StageInputs(_LEARN, ("numpy", "torch", "accelerate", "torchmetrics")),
    "train": StageInputs(_LEARN, ("numpy", "torch", "accelerate", "torchmetrics")),
    "teacher": StageInputs(_LEARN, ("numpy", "torch", "accelerate", "torchmetrics")),
    "pass": StageInputs((*_LEARN, "passes"), ("numpy", "torch", "accelerate", "torchmetrics", "scipy")),
    "export": StageInputs(
        ("models", "export", "analysis/onnx_info.py", "analysis/reference.py"),
        ("torch", "onnx", "onnxscript", "onnx-ir", "onnxruntime", "ai-edge-litert"),
    ),
    "export_stream": StageInputs(
        ("models", "analysis", "data", "export"), ("torch", "onnx", "onnxscript", "onnx-ir", "onnxruntime")
    ),
    "compile": StageInputs(
        ("compile", "runtime", "analysis/storage.py"), ("apache-tvm", "apache-tvm-ffi", "onnx")
    ),
    "compile_stream": StageInputs(
        ("compile", "runtime", "analysis/storage.py"), ("apache-tvm", "apache-tvm-ffi", "onnx")
    ),
    "evaluate": StageInputs(
        ("data", "metrics", "models", "devices", "exhibits.py"), ("torch", "torchmetrics")
    ),
    "measure": StageInputs(
        ("data", "metrics", "models", "devices", "bench", "runtime", "compile/opencl/emit.py")
    ),
    "measure_stream": StageInputs(("data", "devices", "bench", "runtime")),
    "program_cost": StageInputs(
        ("models", "analysis", "data", "export", "compile", "devices", "bench", "runtime"),
        ("torch", "onnx", "onnxscript", "onnx-ir", "onnxruntime", "apache-tvm", "apache-tvm-ffi"),
    ),
    "check": StageInputs(("check.py", "units.py")),
    "bundle": StageInputs(("bundle.py", "report", "units.py", "exhibits.py"), ("jinja2", "matplotlib")),
}

_SHARED_SOURCES = (
    "artifacts",
    "artifact_json.py",
    "rounding.py",
    "scores.py",
    "stages",
)  # every stage runs some of their code

REFERENCE_TARGET = "host"
"""The target whose program is scored on the whole test split: it runs at full speed on this machine."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a run.

    Attributes:
        name: unique in the plan, such as "compile/raspberry-pi-4".
        stage: which function does it.
        key: cache key.
        needs: names of the steps whose artefacts it reads, in the order the stage expects them.
        what: what it does, in words.
        target: for the steps that have one.
        position: index of the pass in the recipe, for passes; number of a further teacher, from 1.
        costs_on: the target on which a pass costs programs, to choose by their latency; of no other step.
    """

    name: str
    stage: StageName
    key: str
    needs: tuple[str, ...]
    what: str
    target: Target | None = None
    position: int = 0
    costs_on: Target | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that one run will do, in order."""

    recipe: Recipe
    profile: str
    targets: tuple[Target, ...]
    steps: tuple[Step, ...]

    def __getitem__(self, name: str) -> Step:
        return next(step for step in self.steps if step.name == name)

    @property
    def pass_steps(self) -> tuple[Step, ...]:
        """The steps that are passes of the recipe, in order."""
        return tuple(step for step in self.steps if step.stage == "pass")

    @property
    def network_steps(self) -> tuple[Step, ...]:
        """The steps that make the network and export it, which need no target."""
        return tuple(step for step in self.steps if step.target is None and step.stage in _NETWORK_STAGES)

    @property
    def measuring_steps(self) -> tuple[Step, ...]:
        """The steps up to what is measured on the targets: no stream, no verdict, no bundle."""
        return tuple(step for step in self.steps if step.stage in (*_NETWORK_STAGES, *_MEASURING_STAGES))


def make_plan(recipe: Recipe, targets: Iterable[Target], profile: str = "full") -> Plan:
    """Lay out the steps of a run.

    Args:
        recipe: checked recipe, of the profile that is to run.
        targets: one or more targets; a target that is given twice is planned once.
        profile: name of the profile, for the bundle and for display.

    Raises:
        UsageError: the recipe's name can't be a C program's, two targets share a name, or one does not compute in the
            recipe's precision.
    """
    check_symbol(recipe.symbol)
    by_name = _by_name(targets)
    for target in by_name.values():
        check_precision(recipe.precision, target)
        check_gpu(recipe, target)
    layout = _Layout(recipe, profile)
    exported = layout.add_network()
    reference = by_name.get(REFERENCE_TARGET) or load_target(REFERENCE_TARGET)
    compiled_for = (reference, *(t for t in by_name.values() if t.name != reference.name))
    for target in compiled_for:
        layout.add(f"compile/{target.name}", "compile", f"compile for {target.description or target.name}",
                   (exported,), [recipe.symbol, recipe.package, *recipe.kernels_on(target)], target)  # fmt: skip
    layout.add_stream(compiled_for)
    layout.add("evaluate", "evaluate", "score the compiled program on the test split",
               (f"compile/{reference.name}", "data", "train", *layout.judge), layout.data_and_seed)  # fmt: skip
    for target in by_name.values():
        layout.add_program_costs(target)
        layout.add_verdict(target, f"compile/{reference.name}")
    return Plan(recipe, profile, tuple(by_name.values()), tuple(layout.steps.values()))


class _Layout:
    """The steps of a plan while they are laid out; each `add` needs only steps that are there."""

    def __init__(self, recipe: Recipe, profile: str) -> None:
        self.steps: dict[str, Step] = {}
        self._recipe, self._profile = recipe, profile
        self._data = recipe.data.model_dump(mode="json")
        self.data_and_seed = [self._data, recipe.seed]
        self.judge: tuple[str, ...] = ()
        self._network = ""

    def add(  # noqa: PLR0913 - one argument for each field of a step
        self,
        name: str,
        stage: StageName,
        what: str,
        needs: tuple[str, ...],
        spec: object,
        target: Target | None = None,
        position: int = 0,
        costs_on: Target | None = None,
    ) -> str:
        """Add a step and return its name; `spec` is what of the recipe its result depends on."""
        machine = target and [target.resolved_triple, target.resolved_cpu, target.resolved_features]
        material = {
            "stage": stage,
            "inputs": [self.steps[need].key for need in needs],
            "spec": spec,
            "target": target.model_dump(mode="json") if target else None,
            "machine": machine,
            "code": _code_digest((*_SHARED_SOURCES, *STAGES[stage].sources)),
            "versions": _versions(stage, target),
        }
        self.steps[name] = Step(
            name, stage, digest.of_json(material), needs, what, target, position, costs_on
        )
        return name

    def add_network(self) -> str:
        """Add what makes the network, which all targets share; return the name of its export."""
        recipe, data, seed = self._recipe, self._data, self._recipe.seed
        kind = recipe.data.kind
        self.add(
            "data",
            "data",
            f"fetch and verify {kind}",
            (),
            [kind, list(data_digests(kind)), recipe.data.options()],
        )
        model = recipe.model.model_dump(mode="json")
        if recipe.judge is not None:
            what = f"train the judge, a {recipe.judge.model.kind}, for up to {_epochs(recipe.judge.train)}"
            asked = recipe.data.judged.model_dump(mode="json")
            self.add("judge", "judge", what, (), [asked, recipe.judge.model_dump(mode="json"), seed])
            self.judge = ("judge",)
        before: tuple[str, ...] = ("data",)
        if recipe.pretrain is not None:
            what = f"pre-train {recipe.model.kind} without labels for up to {_epochs(recipe.pretrain.train)}"
            spec = [data, model, recipe.pretrain.model_dump(mode="json"), seed]
            before = ("data", self.add("pretrain", "pretrain", what, ("data",), spec))
        made_of = [data, model, recipe.train.model_dump(mode="json"), seed]
        last = self.add(
            "train", "train", f"train {recipe.model.kind} for up to {_epochs(recipe.train)}",
            (*before, *self.judge), made_of,
        )  # fmt: skip
        for number in range(1, max((n_teachers(options) for options in recipe.passes), default=1)):
            self.add(
                f"teacher {number + 1}", "teacher", f"train {recipe.model.kind} again, from another seed",
                (*before, *self.judge), [made_of, number], position=number,
            )  # fmt: skip
        for position in range(len(recipe.passes)):
            options = settled(recipe, position)
            what = options.kind.replace("_", " ") + (f": {options.gains}" if options.gains else "")
            others = (f"teacher {number + 1}" for number in range(1, n_teachers(options)))
            needs = (*dict.fromkeys((last, "train")), *others, *self.judge)
            named: str | None = getattr(options, "target", None)
            by_latency = getattr(options, "latency", None) is not None
            costs_on = load_target(named) if named is not None and by_latency else None
            last = self.add(
                f"pass {position + 1} {options.kind}", "pass", what, needs,
                [options.model_dump(mode="json"), data, seed, *_programs_on(costs_on, recipe)], position=position,
                costs_on=costs_on,
            )  # fmt: skip
        self._network = last
        what = "export to ONNX and LiteRT, verify against torch"
        return self.add("export", "export", what, (last,), self.data_and_seed)

    def add_stream(self, targets: Iterable[Target]) -> None:
        """Add what makes the program for streams, where the recipe has one."""
        recipe, stream = self._recipe, self._recipe.stream
        if stream is None:
            return
        what = f"export a step for frames {stream.frames} at a time, verify against whole sequences"
        exported = self.add(
            "export_stream", "export_stream", what, (self._network,), [*self.data_and_seed, stream.frames]
        )
        for target in targets:
            self.add(f"compile_stream/{target.name}", "compile_stream", f"compile the step for {target.name}",
                     (exported,), [recipe.stream_symbol, *recipe.kernels_on(target)], target)  # fmt: skip

    def _measure_stream(self, target: Target, reference: str) -> tuple[str, ...]:
        """Add the measurement of the program for streams; return what the bundle needs of it."""
        name, stream = target.name, self._recipe.stream
        if stream is None:
            return ()
        compiled = f"compile_stream/{name}"
        needs = (compiled, f"compile_stream/{REFERENCE_TARGET}", reference)
        spec = [*self.data_and_seed, stream.frames]
        measured = self.add(
            f"measure_stream/{name}", "measure_stream", f"stream on {target.device}", needs, spec, target
        )
        return (measured, "export_stream", compiled)

    def add_program_costs(self, target: Target) -> None:
        """Add what the program of the trained network, and of that after each pass but the last, costs on a board."""
        if target.is_native:  # to time every program here takes longer than what it tells is worth
            return
        recipe = self._recipe
        for name in self._networks()[:-1]:
            self.add(
                f"program_cost/{target.name}/{name}", "program_cost", f"cost of the network after {name}",
                (name, "data"),
                [recipe.symbol, *recipe.kernels_on(target), *self.data_and_seed], target,
            )  # fmt: skip

    def _networks(self) -> tuple[str, ...]:
        """Return the steps that leave the trained network and the network after each pass."""
        return ("train", *(step.name for step in self.steps.values() if step.stage == "pass"))

    def add_verdict(self, target: Target, reference: str) -> None:
        """Add what is said of a target's program: measured beside the `reference`, checked, bundled."""
        recipe, name = self._recipe, target.name
        scoring = () if target.gpu is None else ("train", *self.judge)
        measured = self.add(
            f"measure/{name}", "measure", _measuring(target), (f"compile/{name}", reference, *scoring),
            self.data_and_seed, target,
        )  # fmt: skip
        stream = self._measure_stream(target, reference)
        facts = ("train", "evaluate", f"compile/{name}", measured)
        pretrained = ("pretrain",) if recipe.pretrain is not None else ()
        budgets = recipe.budgets.model_dump(mode="json")
        verdict = self.add(f"check/{name}", "check", "check budgets", (*facts, *stream[:1]), budgets)
        costs = tuple(
            step.name
            for step in self.steps.values()
            if step.stage == "program_cost" and step.target == target
        )
        self.add(
            f"bundle/{name}", "bundle", "write bundle and report",
            ("data", *facts, verdict, "export", *self._networks()[1:], *costs, *self.judge, *pretrained, *stream),
            [recipe.model_dump(mode="json"), self._profile], target,
        )  # fmt: skip


def _measuring(target: Target) -> str:
    return "not measured: no device" if target.compiled_only else f"run on {target.device}"


def _epochs(train: TrainSpec) -> str:
    return f"{train.epochs} epoch" + "s" * (train.epochs != 1)


def _programs_on(target: Target | None, recipe: Recipe) -> list[object]:
    """Return what the programs depend on that a pass compiles to see what they take on a target."""
    if target is None:
        return []
    inputs = STAGES["program_cost"]
    return [
        target.model_dump(mode="json"), target.resolved_triple, *recipe.kernels_on(target),
        _code_digest(inputs.sources), _versions("program_cost", target),
    ]  # fmt: skip


@functools.cache
def _code_digest(sources: tuple[str, ...]) -> str:
    return digest.of_sources(_PACKAGE / source for source in sources)


def _by_name(targets: Iterable[Target]) -> dict[str, Target]:
    """Return the targets by name, which names their steps and their bundles."""
    found: dict[str, Target] = {}
    for target in targets:
        if found.setdefault(target.name, target) != target:
            raise UsageError(f"two different targets are named {target.name!r}: give one another `name`")
    reference = found.get(REFERENCE_TARGET)
    if reference is not None and not reference.is_native:
        raise UsageError(
            f"a target named {REFERENCE_TARGET!r} must run on this machine itself: give it another `name`"
        )
    return found


def _versions(stage: StageName, target: Target | None) -> dict[str, str]:
    """Return what the stage calls, and for a measurement on this machine what it runs on."""
    found = {name: package_version(name) or "none" for name in STAGES[stage].packages}
    if target is None:
        return found
    if stage in ("compile", "compile_stream", "program_cost"):
        tools = target.toolchain
        if tools.zig is not None:
            found["ziglang"] = package_version("ziglang") or "none"
        else:
            found |= {
                name: program_version(name) or "none" for name in (tools.cc, tools.ar) if name is not None
            }
    if stage not in ("measure", "measure_stream", "program_cost"):
        return found
    if target.gpu is not None:
        found["OpenCL"] = ", ".join(opencl_drivers()) or "none"
    elif target.is_native:
        found["CPU"] = cpu_name()
    if target.emulator is not None:
        program = target.emulator.program
        found |= {program: program_version(program) or "none", "llvm-mca": _llvm_version()}
    return found


@functools.cache
def _llvm_version() -> str:
    try:
        return find_llvm().version
    except MissingDependency:
        return "none"


@functools.cache
def package_version(name: str) -> str | None:
    """Return the installed version of a distribution, None if it is not installed; imports nothing."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


@functools.cache
def program_version(name: str) -> str | None:
    """Return the line of `name --version` that has the version, None if there is no such program."""
    path = shutil.which(name)
    if path is None:
        return None
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):  # a target's file may name anything
        return None
    lines = [line.strip() for line in done.stdout.splitlines() if any(c.isdigit() for c in line)]
    return lines[0] if lines else "unknown"
