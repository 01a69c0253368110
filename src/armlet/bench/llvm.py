"""Finds LLVM's llvm-mc and llvm-mca, and asks them what blocks of AArch64 code cost on a core.

*Limits*: llvm-mca assumes that every load hits the first cache, that no branch is mispredicted, and that each
block repeats: a lower bound for a core, made an estimate by a board's calibration constant.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from armlet.errors import ArmletError, MissingDependency, Problem, UsageError, nearest
from armlet.spec.target import Target

FITTED_WITH = 19
"""LLVM's major version that the shipped calibration constants were fitted with; it is preferred."""

OLDEST = 14
_NEWEST = 30  # highest version suffix looked for
_ITERATIONS = 60  # enough to forget how the first one starts
_MARKER = "# LLVM-MCA-"  # with // llvm-mca would merge all regions into one without a word


@dataclass(frozen=True, slots=True)
class Llvm:
    """One LLVM's tools; `version` is its full version."""

    mc: Path
    mca: Path
    version: str

    @property
    def major(self) -> int:
        """The first number of the version."""
        return int(self.version.split(".")[0])


@dataclass(frozen=True, slots=True)
class BlockCost:
    """What one execution of a block costs.

    Attributes:
        cycles: steady state, the block repeated.
        n_costed: instructions of it that the core's model knows.
        limit: cycles that it can't go below, those of the core's busiest resource.
    """

    cycles: float
    n_costed: int
    limit: float


def find_llvm() -> Llvm:
    """Return LLVM 19's tools, else the newest that are installed.

    Raises:
        MissingDependency: there are none, or none of LLVM 14 or newer.
    """
    others = [v for v in range(_NEWEST, OLDEST - 1, -1) if v != FITTED_WITH]
    for version in (FITTED_WITH, *others):
        for mc, mca in (
            (f"llvm-mc-{version}", f"llvm-mca-{version}"),
            (f"/usr/lib/llvm-{version}/bin/llvm-mc", f"/usr/lib/llvm-{version}/bin/llvm-mca"),
        ):
            if found := _tools(mc, mca):
                return found
    if found := _tools("llvm-mc", "llvm-mca"):
        return found
    raise MissingDependency("llvm-mca", "the core cost model", f"apt-get install llvm-{FITTED_WITH}")


def _tools(mc: str, mca: str) -> Llvm | None:
    paths = shutil.which(mc), shutil.which(mca)
    if paths[0] is None or paths[1] is None:
        return None
    text = _run([paths[1], "--version"], "")
    version = re.search(r"LLVM version (\d+\.\d+\.\d+)", text)
    if version is None:
        return None
    found = Llvm(Path(paths[0]), Path(paths[1]), version.group(1))
    return found if found.major >= OLDEST else None


def knows_core(llvm: Llvm, triple: str, core: str) -> bool:
    """Say whether LLVM has a core of that name, or an alias; else it would go on with a generic one."""
    command = [str(llvm.mc), f"-triple={triple}", f"-mcpu={core}"]
    done = subprocess.run(command, input="", capture_output=True, text=True, check=False)
    return done.returncode == 0 and "is not a recognized processor" not in done.stderr


def check_core(llvm: Llvm, target: Target) -> None:
    """Refuse a target whose `core.cost_model` this LLVM does not have.

    Raises:
        UsageError: it names the nearest that there is.
    """
    core = target.core.cost_model
    if core is None or knows_core(llvm, "aarch64", core):
        return
    command = [str(llvm.mc), "-triple=aarch64", "-mcpu=help"]
    listing = subprocess.run(command, input="", capture_output=True, text=True, check=False).stderr
    known = re.findall(r"^  (\S+) +- Select the \S+ processor", listing, re.MULTILINE)
    message = f"target {target.name}: LLVM {llvm.version} has no core {core!r}"
    raise UsageError(Problem(message, key="core.cost_model", hint=nearest(core, known)))


def cost_blocks(
    llvm: Llvm, blocks: Sequence[bytes], core: str, attributes: Sequence[str] = ()
) -> tuple[BlockCost, ...]:
    """Return what each block of AArch64 code costs on a core.

    Args:
        llvm: the tools.
        blocks: little-endian instructions, none empty.
        core: LLVM's name of the core whose scheduling model is used.
        attributes: LLVM's names of instruction set extensions that the core has beside its own.

    Raises:
        ArmletError: the code can't be disassembled for that core, or there is no such core.
    """
    if not blocks:
        return ()
    options = _options(core, attributes)
    assembly = disassembled(llvm, blocks, core, attributes)
    source = "".join(
        f"{_MARKER}BEGIN b{i}\n" + "\n".join(lines) + f"\n{_MARKER}END\n" for i, lines in enumerate(assembly)
    )
    command = [str(llvm.mca), "-mtriple=aarch64", *options, f"-iterations={_ITERATIONS}", "--json"]
    if llvm.major >= FITTED_WITH:  # older ones fail where the model lacks an instruction
        command.append("-skip-unsupported-instructions=any")
    costs = {}
    for region in json.loads(_run(command, source))["CodeRegions"]:
        summary = region["SummaryView"]
        costs[region["Name"]] = BlockCost(
            summary["TotalCycles"] / _ITERATIONS,
            summary["Instructions"] // _ITERATIONS,
            summary["BlockRThroughput"],
        )
    return tuple(
        _complete(costs.get(f"b{i}", BlockCost(0.0, 0, 0.0)), len(lines)) for i, lines in enumerate(assembly)
    )


def _complete(cost: BlockCost, n_instructions: int) -> BlockCost:
    """Charge one cycle for each instruction that the model doesn't know."""
    return replace(cost, cycles=cost.cycles + n_instructions - cost.n_costed)


def _options(core: str, attributes: Sequence[str]) -> list[str]:
    return ["-mcpu=" + core, *(["-mattr=" + ",".join("+" + a for a in attributes)] if attributes else [])]


def disassembled(
    llvm: Llvm, blocks: Sequence[bytes], core: str, attributes: Sequence[str] = ()
) -> list[list[str]]:
    """Return the assembly lines of each block, one for an instruction; arguments and errors as of `cost_blocks`."""
    options = _options(core, attributes)
    words = [block[i : i + 4] for block in blocks for i in range(0, len(block), 4)]
    text = "\n".join(" ".join(f"0x{byte:02x}" for byte in word) for word in words)
    command = [str(llvm.mc), "--disassemble", "-triple=aarch64", *options]
    lines = [line for line in _run(command, text).splitlines() if line.strip() and line.strip() != ".text"]
    if len(lines) != len(words):
        raise ArmletError(
            f"llvm-mc {llvm.version} read {len(lines)} of {len(words)} instructions with {' '.join(options)}:"
            " the program uses an instruction set extension that the target's features or core lack"
        )
    rest = iter(lines)
    return [[next(rest) for _ in range(len(block) // 4)] for block in blocks]


def _run(command: Sequence[str], text: str) -> str:
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ArmletError(f"{' '.join(command)} failed:\n{done.stderr.strip()[:2000]}")
    return done.stdout
