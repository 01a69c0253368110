"""Parts the work of large kernels, so that several threads compute one call.

Input: a lowered program whose kernels say of their outer loops which are parallel (`kernels.loops.loop`). Output: the
same program, where such a kernel is worth it with those loops made one, of which it computes the turns from `begin` to
`end` - 1, two further parameters. Every turn computes what it did, so that the answers' bits are those of one thread.

A kernel is worth it from `LEAST_MACS` multiply-accumulates on, or `LEAST_BYTES` read and written: some 20 µs of one
core, where handing parts out and waiting for the last one takes a few.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING

from armlet.compile.kernels.loops import INDEPENDENT, n_bytes
from armlet.compile.lowered import LoweredProgram

if TYPE_CHECKING:
    import tvm
    from tvm import tirx

LEAST_MACS = LEAST_BYTES = 1 << 17
PARTS_PER_THREAD = 4
"""Into which the work is cut, where it has as many turns: threads that are late or slow then hold up little."""
TURNS = "armlet.turns"
"""Attribute of a PrimFunc whose work is parted: how many turns there are."""


def part_work(program: LoweredProgram, threads: int) -> LoweredProgram:
    """Return the program with the work of its large kernels parted for so many threads."""
    import tvm

    worth = _worth_it(program) if threads > 1 else set()
    functions = dict(program.module.functions.items())
    for variable, function in functions.items():
        if variable.name_hint in worth:
            functions[variable] = _parted(function, threads)
    return replace(program, module=tvm.IRModule(functions)) if worth else program


def serial(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """Return a kernel whose loops are all of one thread."""
    import tvm_ffi
    from tvm import tirx

    def written(loop: tirx.For) -> tirx.For:
        if not _is_parallel(loop):
            return loop
        return tirx.For(loop.loop_var, loop.min, loop.extent, tirx.ForKind.SERIAL, loop.body)

    return function.with_body(tvm_ffi.structural_map(function.body, (tirx.For, written)))


def _worth_it(program: LoweredProgram) -> set[str]:
    """Return the names of the kernels that compute or move enough."""
    from tvm import relax

    module, found = program.module, set[str]()
    values = [binding.value for block in module["main"].body.blocks for binding in block.bindings]
    calls = [v.args[0] for v in values if isinstance(v, relax.Call) and v.op.name == "relax.call_tir"]
    for variable, info in zip(calls, program.calls, strict=True):
        moved = sum(
            prod(int(extent) for extent in p.shape) * n_bytes(str(p.dtype)) for p in module[variable].params
        )
        if info.macs >= LEAST_MACS or moved >= LEAST_BYTES:
            found.add(variable.name_hint)
    return found


def _parted(function: tirx.PrimFunc, threads: int) -> tirx.PrimFunc:
    """Return the kernel with its outer parallel loops as one; as it is where it has none."""
    from tvm import tirx

    statements = list(function.body) if isinstance(function.body, tirx.SeqStmt) else [function.body]
    allocations = [s for s in statements if isinstance(s, tirx.AllocBuffer)]
    nests = [s for s in statements if _is_parallel(s)]
    others = [s for s in statements if s not in allocations and s not in nests]
    if len(nests) != 1 or (others and INDEPENDENT not in function.attrs):
        return function
    nest, loops = nests[0], list[tirx.For]()
    while _is_parallel(nest) and _turns(loops) < PARTS_PER_THREAD * threads:
        loops.append(nest)
        nest = nest.body
    begin, end, turn = (tirx.Var(name, "int32") for name in ("begin", "end", "turn"))
    numbers: list[tirx.Stmt] = []
    rest: tvm.ir.Expr = turn
    for loop in reversed(loops[1:]):
        numbers.append(tirx.Bind(loop.loop_var, tirx.truncmod(rest, loop.extent)))
        rest = tirx.truncdiv(rest, loop.extent)
    numbers.append(tirx.Bind(loops[0].loop_var, rest))
    whole = tirx.For(turn, begin, end - begin, tirx.ForKind.SERIAL, tirx.SeqStmt([*numbers, nest]))
    # Whoever has the first turn does the rest.
    first = [tirx.IfThenElse(begin < 1, other, None) for other in others]
    around = [*allocations, *first]
    body = tirx.SeqStmt([*around, whole]) if around else whole
    parted = tirx.PrimFunc([*function.params, begin, end], body, attrs=function.attrs)
    return parted.with_attr(TURNS, _turns(loops))


def _is_parallel(statement: tirx.Stmt) -> bool:
    from tvm import tirx

    return isinstance(statement, tirx.For) and statement.kind == tirx.ForKind.PARALLEL


def _turns(loops: Sequence[tirx.For]) -> int:
    return prod(int(loop.extent) for loop in loops)
