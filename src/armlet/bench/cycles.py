"""From exact block counts to modelled cycles, and from those to an estimated latency.

*Input -> Output*: BlockCounts of one inference -> Counts (cycles of each kernel) -> Latency, an interval.
*Source*: cycles are counts × llvm-mca's steady state of each block; time is that × a constant of the board.
*Limits*: one thread, no cache or branch misses; no board has run armlet's own programs.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from armlet.artifacts import Counts, KernelCount, Latency
from armlet.bench.llvm import FITTED_WITH, check_core, cost_blocks, find_llvm
from armlet.devices.base import Block, BlockCounts
from armlet.errors import UsageError
from armlet.spec.target import Target

UNNAMED = "(no symbol)"
"""Kernel name of instructions outside every function of the symbol table."""

_COVERAGE = (
    0.9995  # share of the instructions that is costed block by block; the rest costs as much on average
)
_MISS_SHARE = 0.05  # above this many L1 misses an instruction the model's assumption of hits is off
_ATTRIBUTES = {"neon": "neon", "dotprod": "dotprod", "fp16": "fullfp16", "i8mm": "i8mm", "sve": "sve"}


@dataclass(frozen=True, slots=True)
class _Function:
    start: int
    end: int
    name: str


def count_cycles(blocks: BlockCounts, program: Path, target: Target) -> Counts:
    """Cost counted blocks with the target's core model.

    Args:
        blocks: of one inference of `program`.
        program: the AArch64 ELF file that was counted, with its symbol table.
        target: names the core model and the instruction set extensions.

    Returns:
        Counts whose `kernels` are the program's functions in the order of first execution; their instructions
        and cycles add up to the total.

    Raises:
        UsageError: the target has no core model, or LLVM does not know its core.
        MissingDependency: LLVM's tools are not installed.
        ArmletError: the code has instructions that the core lacks.
    """
    if target.core.cost_model is None:
        raise UsageError(f"target {target.name} has no core.cost_model: its cycles can't be modelled")
    llvm = find_llvm()
    check_core(llvm, target)
    merged = glue(blocks.blocks)
    hot = hottest(merged, _COVERAGE)
    costs = cost_blocks(llvm, [b.code for b in hot], target.core.cost_model, attributes_of(target))
    cycles = {b: cost.cycles * b.executions for b, cost in zip(hot, costs, strict=True)}
    hot_instructions = sum(b.n_instructions * b.executions for b in hot)
    mean = sum(cycles.values()) / max(hot_instructions, 1)
    for block in merged:
        cycles.setdefault(block, mean * block.n_instructions * block.executions)
    costed = sum(cost.n_costed * b.executions for b, cost in zip(hot, costs, strict=True))
    simulated = blocks.caches_simulated
    return Counts(
        instructions=blocks.instructions,
        memory_accesses=sum(b.memory_accesses for b in merged) if simulated else -1,
        l1_misses=sum(b.l1_misses for b in merged) if simulated else -1,
        l2_misses=sum(b.l2_misses for b in merged) if simulated else -1,
        cycles=sum(cycles.values()),
        kernels=_by_function(merged, cycles, _functions(program)),
        core_model=f"{target.core.cost_model} (llvm-mca {llvm.version})",
        coverage=costed / max(blocks.instructions, 1),
        emulator=blocks.emulator,
    )


def attributes_of(target: Target) -> list[str]:
    """Return LLVM's names of the instruction set extensions that a target names."""
    return [_ATTRIBUTES[f] for f in (*target.features, *target.variants) if f in _ATTRIBUTES]


def estimate_latency(counts: Counts, target: Target, threads: int = 1) -> Latency | None:
    """Turn modelled cycles into time: typical = constant × cycles / clock.

    What is counted is a call that one thread computes. What others save depends on the board's memory and on what else
    runs there: it is not modelled, and the estimate of a program for several `threads` says so.

    The interval holds every time t from which the estimate is off by at most the calibration's spread s,
    relative to t: from typical / (1 + s) to typical / (1 - s). Its upper end is at least twice the typical
    time where the L1 misses exceed 5 % of the instructions, or are not known.

    Returns:
        None when the target has no calibration or no clock: then there is nothing to estimate with.
    """
    calibration, clock_mhz = target.calibration, target.core.clock_mhz
    if calibration is None or clock_mhz is None:
        return None
    typical = calibration.constant * counts.cycles / (clock_mhz * 1e3)
    high = typical / (1 - calibration.spread)
    one = "one thread"
    if threads > 1:
        one = f"one thread of the {threads} that the program may use: what the others save is not modelled"
    notes = [one, "never compared with the board running this program"]
    version = counts.core_model.partition("llvm-mca ")[2].rstrip(")")
    if version.split(".")[0] != str(FITTED_WITH):
        notes.append(f"the constant was fitted with llvm-mca {FITTED_WITH}")
    if counts.l1_misses < 0:
        high = max(high, 2 * typical)
        notes.append("caches not simulated, so the upper bound is at least twice the estimate")
    elif counts.l1_misses > _MISS_SHARE * counts.instructions:
        high = max(high, 2 * typical)
        share = 100 * counts.l1_misses / counts.instructions
        notes.append(
            f"L1 misses are {share:.0f} % of the instructions, so the upper bound is at least twice the"
            " estimate"
        )
    how = (
        f"estimated from exact instruction counts under {counts.emulator} and the core model"
        f" {counts.core_model} at {clock_mhz:g} MHz, constant {calibration.constant:g} from:"
        f" {calibration.source.rstrip('.')}; {'; '.join(notes)}"
    )
    return Latency("estimated", typical / (1 + calibration.spread), typical, high, how)


def glue(blocks: Sequence[Block]) -> list[Block]:
    """Join blocks that the emulator split: one ends without a branch where an equally frequent one starts."""
    waiting: dict[int, list[Block]] = {}
    for block in blocks:
        waiting.setdefault(block.address, []).append(block)
    merged = []
    taken: set[int] = set()
    for block in sorted(blocks, key=lambda b: b.address):
        if id(block) in taken:
            continue
        taken.add(id(block))
        parts = [block]
        while not _ends_in_branch(parts[-1]):
            end = parts[-1].address + len(parts[-1].code)
            following = [
                b for b in waiting.get(end, ()) if b.executions == block.executions and id(b) not in taken
            ]
            if not following:
                break
            taken.add(id(following[0]))
            parts.append(following[0])
        merged.append(_join(parts))
    order = {block.address: position for position, block in reversed(list(enumerate(blocks)))}
    return sorted(merged, key=lambda b: order[b.address])


def hottest(blocks: Sequence[Block], share: float) -> list[Block]:
    """Return the fewest blocks that hold at least `share` of all executed instructions, the largest first."""
    wanted = share * sum(b.n_instructions * b.executions for b in blocks)
    found: list[Block] = []
    for block in sorted(blocks, key=lambda b: (-b.n_instructions * b.executions, b.address)):
        if wanted <= 0:
            break
        found.append(block)
        wanted -= block.n_instructions * block.executions
    return found


def _join(parts: Sequence[Block]) -> Block:
    return replace(
        parts[0],
        code=b"".join(p.code for p in parts),
        memory_accesses=sum(p.memory_accesses for p in parts),
        l1_misses=sum(p.l1_misses for p in parts),
        l2_misses=sum(p.l2_misses for p in parts),
    )


def _ends_in_branch(block: Block) -> bool:
    """Whether the last instruction may go elsewhere (Arm ARM C4.1.66, branches but not exceptions)."""
    word = int.from_bytes(block.code[-4:], "little")
    return (
        word & 0x7C000000 == 0x14000000  # B, BL
        or word & 0xFF000000 == 0x54000000  # B.cond
        or word & 0x7C000000 == 0x34000000  # CBZ, CBNZ, TBZ, TBNZ
        or word & 0xFE000000 == 0xD6000000  # BR, BLR, RET
    )


def _functions(program: Path) -> list[_Function]:
    """Return the program's functions by address; of names at one address the first in the alphabet."""
    from elftools.elf.elffile import ELFFile

    with program.open("rb") as stream:
        table = ELFFile(stream).get_section_by_name(".symtab")
        symbols = list(table.iter_symbols()) if table is not None else []
    found = {
        _Function(s["st_value"], s["st_value"] + s["st_size"], s.name)
        for s in symbols
        if s["st_info"]["type"] in ("STT_FUNC", "STT_LOOS") and s["st_size"] and s["st_shndx"] != "SHN_UNDEF"
    }
    by_start: dict[int, _Function] = {}
    for function in sorted(found, key=lambda f: f.name):
        by_start.setdefault(function.start, function)
    return sorted(by_start.values(), key=lambda f: f.start)


def _by_function(
    blocks: Sequence[Block], cycles: dict[Block, float], functions: Sequence[_Function]
) -> tuple[KernelCount, ...]:
    starts = [f.start for f in functions]
    totals: dict[str, KernelCount] = {}
    for block in blocks:
        position = bisect_right(starts, block.address) - 1
        inside = position >= 0 and block.address < functions[position].end
        name = functions[position].name if inside else UNNAMED
        sofar = totals.get(name, KernelCount(name, 0, 0.0))
        totals[name] = KernelCount(
            name, sofar.instructions + block.n_instructions * block.executions, sofar.cycles + cycles[block]
        )
    return tuple(totals.values())
