"""Looks, before any work, whether this machine has what the steps of a run call; one error names all that lacks."""

from __future__ import annotations

import platform
from collections.abc import Iterable

from armlet.bench.llvm import check_core, find_llvm, knows_core
from armlet.compile.link import install_command, missing_tools
from armlet.devices.emulator import Emulator
from armlet.doctor import Finding, packages, programs
from armlet.errors import MissingDependency, Problem, UsageError
from armlet.plan import STAGES, StageName, Step
from armlet.spec.target import Target

_COMPILING = ("compile", "compile_stream", "program_cost")
_MEASURING = ("measure", "measure_stream", "program_cost")
_COUNTING = ("QEMU plugin", "llvm-mca")


def require(steps: Iterable[Step], further: Iterable[str] = ()) -> None:
    """Check that every package and program that the steps call is there, and that every target can run here.

    Args:
        steps: those that will really run, not the cached ones.
        further: packages that are needed besides.

    Raises:
        UsageError: a target has no emulator and is another machine than this one, a core that it names is unknown, or
            a pass goes by the latency on a target of which none is known.
        MissingDependency: names everything that is missing, with the commands that install it.
    """
    steps = tuple(steps)
    _refuse_foreign(steps)
    _refuse_untimed(steps)
    used = {*further, *(package for step in steps for package in STAGES[step.stage].packages)}
    if any(step.costs_on is not None for step in steps):
        used |= set(STAGES["program_cost"].packages)
    missing = [finding for finding in packages() if finding.name in used and finding.is_missing]
    for target in _targets(steps, _COMPILING):
        missing += _toolchain(target)
    called = {name for target in _targets(steps, _MEASURING) for name in _emulation(target)}
    if called:
        missing += [finding for finding in programs() if finding.name in called and finding.found is None]
    if not missing:
        _refuse_unknown_cores(steps)
        return
    unique = list(dict.fromkeys(missing))
    raise MissingDependency(
        ", ".join(
            f"{finding.name} ({finding.found})" if finding.found else finding.name for finding in unique
        ),
        ", ".join(dict.fromkeys(finding.needed_for for finding in unique)),
        " && ".join(_joined([finding.install for finding in unique])),
    )


def require_target(target: Target) -> None:
    """Check that programs for a target can be compiled and run here: as `require`, for any network."""
    stages: tuple[StageName, ...] = ("compile", "measure")
    require(Step(f"{stage}/{target.name}", stage, "", (), "", target) for stage in stages)


def _targets(steps: tuple[Step, ...], stages: tuple[str, ...]) -> tuple[Target, ...]:
    """Return the targets that these stages work for, and passes that cost programs as they do, each once."""
    found: list[Target] = []
    for step in steps:
        for target in (step.target if step.stage in stages else None, step.costs_on):
            if target is not None and target not in found:
                found.append(target)
    return tuple(found)


def _refuse_foreign(steps: tuple[Step, ...]) -> None:
    """Refuse targets whose programs should run on this machine, but are for another kind of it."""
    targets = _targets(steps, tuple({step.stage for step in steps}))
    problems = [
        Problem(
            f"target {target.name} is for {target.resolved_triple} and this machine is {platform.machine()}",
            key="emulator",
            hint="say how its programs run here, emulator: {cpu: ...}, or that they do not, compiled_only: true",
        )
        for target in targets
        if target.is_native and target.resolved_triple.split("-")[0] != platform.machine()
    ]
    if problems:
        raise UsageError(problems)


def _refuse_untimed(steps: tuple[Step, ...]) -> None:
    """Refuse passes that go by the latency on a target where it is neither measured nor estimated."""
    problems = [
        Problem(
            f"what a network takes on {step.costs_on.name} can't be said: {lacking}",
            key=f"passes.{step.position}.latency",
            hint="choose another target, or a goal that is no time",
        )
        for step in steps
        if step.costs_on is not None and (lacking := _why_untimed(step.costs_on))
    ]
    if problems:
        raise UsageError(problems)


def _why_untimed(target: Target) -> str:
    """Return why no latency is known on a target; nothing where it is."""
    if target.compiled_only:
        return "it is compiled for only"
    if target.gpu is not None:
        return "no time of a GPU's program is said without the GPU"
    needs = {
        "core.cost_model": target.core.cost_model,
        "core.clock_mhz": target.core.clock_mhz,
        "calibration": target.calibration,
    }
    lacking = [] if target.is_native else [name for name, value in needs.items() if value is None]
    return f"the target has no {', '.join(lacking)}" if lacking else ""


def _refuse_unknown_cores(steps: tuple[Step, ...]) -> None:
    """Refuse names of cores that the compiler, the emulator or the cost model would only stumble over later."""
    for target in _targets(steps, _COMPILING):
        _check_compiled_core(target)
    for target in _targets(steps, _MEASURING):
        if target.emulator is not None:
            Emulator(target)
            if target.core.cost_model is not None:
                check_core(find_llvm(), target)


def _check_compiled_core(target: Target) -> None:
    # TVM takes seconds to load, so LLVM's own tool is asked first, where it is there; TVM, whose LLVM is another
    # version, has the last word.
    try:
        known = knows_core(find_llvm(), target.resolved_triple, target.resolved_cpu)
    except MissingDependency:
        known = True  # compiling itself refuses it
    if not known:
        from armlet.compile.emit.kernels import check_core as check_compiled_core

        check_compiled_core(target)


def _joined(commands: list[str]) -> list[str]:
    """Return the commands with those of one package manager made one: `apt-get install gcc qemu-user`."""
    arguments: dict[str, dict[str, None]] = {}
    for command in commands:
        for manager in ("apt-get install ", "pip install "):
            if command.startswith(manager):
                arguments.setdefault(manager, {}).update(dict.fromkeys(command.removeprefix(manager).split()))
                break
        else:
            arguments.setdefault(command, {})
    return [command + " ".join(packages) for command, packages in arguments.items()]


def _toolchain(target: Target) -> list[Finding]:
    return [
        Finding(tool, f"programs for {target.name}", None, install_command(tool))
        for tool in missing_tools(target)
    ]


def _emulation(target: Target) -> tuple[str, ...]:
    """Return what runs a target's programs and counts what they execute, by the names of `doctor.programs`."""
    if target.emulator is None:
        return ()
    return (target.emulator.program, *(_COUNTING if target.core.cost_model is not None else ()))
