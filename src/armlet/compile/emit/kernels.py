"""Builds the kernels of a program as plain C functions in one object file.

Input: scheduled PrimFuncs. Output: `void <symbol>_<kernel>(void *...)`, one pointer for each parameter of the
PrimFunc, then one for each working buffer of the kernel; no argument boxing, no runtime library, no heap. A kernel
whose work is parted among threads (`emit.threads`) has `int32_t begin, int32_t end` behind them.

TVM's own way ends in a packed calling convention with checks and workspace calls; here its passes stop before that:
buffer parameters become pointers, and global-scope allocations become further pointers, which the caller plans into
its arena. Allocations of any other scope stay on the stack, up to `STACK_LIMIT` for each kernel.

Floating point: TVM tells LLVM that a product and a sum may be contracted to one fused operation and offers no switch
against it. Cores with FMA (every Armv8-A) thus round a float32 multiply-add once where x86-64-v2 rounds twice, so
float32 kernels agree between machines within a tolerance only. Quantize, dequantize and all integer kernels have no
product that feeds a sum in floating point, so they agree bit for bit.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from armlet.compile.dump import Dump, of_builds
from armlet.compile.emit.threads import TURNS, serial
from armlet.compile.kernels.loops import IN_PLACE
from armlet.errors import ArmletError, Problem, UsageError, nearest
from armlet.spec.target import Feature, Target

if TYPE_CHECKING:
    import tvm
    from tvm import tirx

STACK_LIMIT = 4096
"""Most bytes that one kernel may take from the stack for its register tiles."""

_ATTRIBUTES: tuple[tuple[Feature, tuple[str, ...]], ...] = (
    ("neon", ("+neon",)),
    ("dotprod", ("+dotprod",)),
    ("fp16", ("+fullfp16",)),
    ("i8mm", ("+i8mm",)),
    ("sve", ("+sve",)),
    ("sse4.2", ("+sse4.2",)),
    ("avx2", ("+avx2",)),
    ("avx512vnni", ("+avx512f", "+avx512bw", "+avx512vl", "+avx512vnni")),
)
"""LLVM's names of the features that targets have."""


@dataclass(frozen=True, slots=True)
class PlainKernel:
    """One C function of the kernels object.

    Attributes:
        name: name of the PrimFunc.
        symbol: name of the C function.
        n_parameters: pointers for the PrimFunc's own buffers.
        scratch_bytes: size of each working buffer that follows them.
        in_place: numbers of the inputs whose memory the result may take.
        turns: that threads may share, of which it computes those from `begin` to `end` - 1; 0 where it computes all.
    """

    name: str
    symbol: str
    n_parameters: int
    scratch_bytes: tuple[int, ...]
    in_place: tuple[int, ...] = ()
    turns: int = 0


def check_core(target: Target) -> None:
    """Refuse a target that TVM's LLVM does not know; it would warn and compile for a generic core.

    Raises:
        UsageError: the core is unknown, with the nearest that there is, or the triple is.
    """
    import tvm
    from tvm.target import codegen

    triple, core = target.resolved_triple, target.resolved_cpu
    if codegen.llvm_is_valid_cpu(core, triple):
        return
    if not codegen.llvm_is_valid_cpu("generic", triple):
        raise UsageError(
            Problem(f"target {target.name}: LLVM does not know {target.resolved_triple!r}", key="triple")
        )
    listing = codegen.llvm_get_cpu_archlist(tvm.target.Target({"kind": "llvm", "mtriple": triple}))
    message = f"target {target.name}: LLVM has no core {core!r}"
    raise UsageError(Problem(message, key="core.llvm_cpu", hint=nearest(core, map(str, listing))))


def llvm_target(target: Target) -> tvm.target.Target:
    """Return TVM's target for a board.

    Raises:
        UsageError: LLVM does not know its core or its triple.
    """
    import tvm

    check_core(target)
    # Level 3 unrolls what the schedules have unrolled already: a third more code for a few percent of modelled time.
    level = 2
    attributes = [a for feature, names in _ATTRIBUTES if feature in target.resolved_features for a in names]
    # TVM does not read from the triple that floats are passed in registers, as C compilers do.
    abi = {"mfloat-abi": "hard"} if target.resolved_triple.endswith("eabihf") else {}
    # TVM marks what lies in different buffers as of different types, so as not to overlap, though the buffers of a
    # kernel that works in place do. Where they don't, its parameters say so.
    options = ["-enable-tbaa:bool=false"]
    if target.is_arm32:
        # LLVM's pass that joins loads and stores may move the base of later ones, which then miss:
        # https://github.com/llvm/llvm-project/issues/223630.
        options.append("-arm-load-store-opt:bool=false")
    return tvm.target.Target(
        {
            "kind": "llvm",
            "mtriple": target.resolved_triple,
            "mcpu": target.resolved_cpu,
            "mattr": attributes,
            "opt-level": level,
            "cl-opt": options,
            **abi,
        }
    )


def build_variants(
    modules: Sequence[tvm.IRModule], target: Target, symbol: str, folder: Path, dump: Dump | None = None
) -> tuple[list[Path], list[tuple[PlainKernel, ...]]]:
    """Compile the PrimFuncs of one module for each of the target's builds; a PrimFunc that was there before is shared.

    Returns:
        The object files, in `folder`, and the kernels of each module.

    Raises:
        UsageError, ArmletError: as `build_kernels`.
    """
    import tvm
    import tvm_ffi
    from tvm import tirx

    objects, kernels = [], []
    known: list[tuple[tirx.PrimFunc, PlainKernel]] = []
    dumps = of_builds(dump, target.variants)
    for number, (build, module) in enumerate(zip(target.builds, modules, strict=True)):
        prefix = f"{symbol}_{target.variants[number - 1]}" if number else symbol
        functions = {var.name_hint: f for var, f in module.functions.items() if isinstance(f, tirx.PrimFunc)}
        shared = {
            name: replace(kernel, name=name)
            for name, function in functions.items()
            for other, kernel in known
            if tvm_ffi.structural_equal(function, other)
        }
        fresh = {name: function for name, function in functions.items() if name not in shared}
        own: tuple[PlainKernel, ...] = ()
        for stem, group in _by_memory(fresh).items():
            objects.append(folder / f"{prefix}_{stem}.o")
            own += build_kernels(tvm.IRModule(group), build, prefix, objects[-1], dumps[number])
        known += [(fresh[kernel.name], kernel) for kernel in own]
        kernels.append((*own, *shared.values()))
    return objects, kernels


def _by_memory(functions: Mapping[str, tirx.PrimFunc]) -> dict[str, dict[str, tirx.PrimFunc]]:
    """Part kernels that work in place from the others: what LLVM knows of memory, TVM says of a whole module."""
    groups: dict[str, dict[str, tirx.PrimFunc]] = {}
    for name, function in functions.items():
        stem = "in_place_kernels" if _in_place(function) else "kernels"
        groups.setdefault(stem, {})[name] = function
    return groups


def _in_place(function: tirx.PrimFunc) -> tuple[int, ...]:
    return tuple(int(number) for number in function.attrs.get(IN_PLACE, ()))


def build_kernels(
    module: tvm.IRModule, target: Target, symbol: str, output: Path, dump: Dump | None = None
) -> tuple[PlainKernel, ...]:
    """Compile every PrimFunc of `module` into the object file `output`, position independent.

    Raises:
        UsageError: LLVM does not know the target's core or triple.
        ArmletError: a kernel takes too much stack, has a parameter that is no buffer, or no C name.
    """
    import tvm
    import tvm_ffi
    from tvm import tirx

    llvm = llvm_target(target)
    functions = sorted(
        ((var.name_hint, f) for var, f in module.functions.items() if isinstance(f, tirx.PrimFunc)),
        key=lambda pair: pair[0],
    )
    for name, _ in functions:
        if not re.fullmatch(r"[A-Za-z0-9_]+", name):
            raise ArmletError(f"{name!r} can't be the name of a C function: kernels need plain identifiers")
    in_place = {name: _in_place(f) for name, f in functions}
    # Where a result may lie over an input, LLVM must not take the two for different memory.
    apart = not any(in_place.values())
    named = {
        name: serial(f).with_attr("global_symbol", f"{symbol}_{name}").with_attr("tirx.noalias", apart)
        for name, f in functions
    }
    lowered = lowering(llvm)(tvm.IRModule(named))
    plain, kernels = {}, []
    for name in named:
        function, scratch = _with_pointers(lowered[name], name)
        if target.is_arm32 and "neon" in target.resolved_features:
            function = _with_vector_loads(function)
        plain[f"{symbol}_{name}"] = function
        turns = int(lowered[name].attrs.get(TURNS, 0))
        n_parameters = len(lowered[name].params) - (2 if turns else 0)
        kernels.append(PlainKernel(name, f"{symbol}_{name}", n_parameters, scratch, in_place[name], turns))
    # LowerTVMBuiltin is left out: it would turn large stack buffers into calls of TVM's workspace allocator.
    ready = tirx.transform.LowerIntrin()(tvm.IRModule(plain))
    built = tvm_ffi.get_global_func("target.build.llvm")(ready, llvm)
    built.write_to_file(str(output), "o")
    if dump:
        dump.module("05-lowered", ready)
        dump.code(built)
    return tuple(kernels)


def lowering(target: tvm.target.Target) -> tvm.ir.transform.Pass:
    """Return TVM's default s_tir passes up to the calling convention, without those that no kernel here needs."""
    import tvm
    from tvm import s_tir, tirx

    return tvm.ir.transform.Sequential(
        [
            tirx.transform.BindTarget(target),
            s_tir.transform.CanonicalizeLoop(),
            s_tir.transform.LowerInitBlock(),
            s_tir.transform.PlanAndUpdateBufferAllocationLocation(),
            s_tir.transform.ConvertBlocksToOpaque(),
            s_tir.transform.UnifyThreadBinding(),
            s_tir.transform.CompactBufferAllocation(),
            s_tir.transform.LowerMatchBuffer(),
            s_tir.transform.StmtSimplify(),
            s_tir.transform.LowerOpaqueBlock(),
            tirx.transform.FlattenBuffer(),
            tirx.transform.NarrowDataType(32),
            s_tir.transform.LoopPartition(),
            tirx.transform.VectorizeLoop(True),
            tirx.transform.StorageRewrite(),
            s_tir.transform.HoistIfThenElse(),
            tirx.transform.UnrollLoop(),
            s_tir.transform.RenormalizeSplitPattern(),
            tirx.transform.StmtSimplify(),
            tirx.transform.RemoveNoOp(),
            s_tir.transform.RewriteUnsafeSelect(),
            tirx.transform.CommonSubexprElim(),
        ]
    )


def _with_pointers(function: tirx.PrimFunc, name: str) -> tuple[tirx.PrimFunc, tuple[int, ...]]:
    """Turn buffer parameters and global-scope allocations into pointer parameters; return the latter's sizes."""
    import tvm_ffi
    from tvm import tirx

    n_buffers = len(function.params) - (2 if TURNS in (function.attrs or {}) else 0)
    buffers, span = function.params[:n_buffers], function.params[n_buffers:]
    for parameter in buffers:
        if not hasattr(parameter, "data"):
            raise ArmletError(f"kernel {name}: parameter {parameter.name} is not a buffer")
    pointers = [tirx.Var(f"{p.name}_pointer", p.data.ty) for p in buffers]
    scratch: list[tirx.Var] = []
    scratch_bytes: list[int] = []
    stack_bytes: list[int] = []

    def hoist(allocation: tirx.AllocBuffer) -> tirx.AllocBuffer | tirx.DeclBuffer:
        buffer = allocation.buffer
        n_bytes = _buffer_bytes(buffer.shape, str(buffer.dtype), name)
        if buffer.scope() != "global":
            stack_bytes.append(n_bytes)
            return allocation
        scratch.append(tirx.Var(f"{buffer.name}_scratch", buffer.data.ty))
        scratch_bytes.append(n_bytes)
        return tirx.DeclBuffer(buffer, data=scratch[-1])

    body = tvm_ffi.structural_map(function.body, (tirx.AllocBuffer, hoist))
    if sum(stack_bytes) > STACK_LIMIT:
        raise ArmletError(
            f"kernel {name} takes {sum(stack_bytes)} bytes of stack, more than {STACK_LIMIT}: "
            "allocate the buffer in the global scope, which is planned into the arena"
        )
    declared = [tirx.DeclBuffer(p, data=pointer) for p, pointer in zip(buffers, pointers, strict=True)]
    parameters = [*pointers, *scratch, *span]
    plain = tirx.PrimFunc(parameters, tirx.SeqStmt([*declared, body]), attrs=function.attrs)
    return plain, tuple(scratch_bytes)


def _with_vector_loads(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """Let vectors whose elements are widened be loaded by one instruction.

    LLVM's 32-bit Arm back end makes one operation of load and widening, has none for a vector of unknown alignment,
    and then loads it word by word and through the stack. A fence between the two, which is no instruction, keeps them
    apart; there are fences for floats only.
    """
    import tvm
    import tvm_ffi
    from tvm import tirx

    def widened(cast: tirx.Cast) -> tirx.Cast:
        load = cast.value
        if not isinstance(load, tvm.ir.TensorLoad) or load.source.scope() != "global":
            return cast
        (index,), kind = load.indices, tvm.DataType(str(load.ty.dtype))
        if not isinstance(index, tirx.Ramp) or not tvm_ffi.structural_equal(index.stride, tirx.const(1)):
            return cast  # one element, or such as lie apart
        words, rest = divmod(int(kind.lanes) * int(kind.bits), 32)
        if words not in (2, 4) or rest or int(tvm.DataType(str(cast.ty.dtype)).bits) <= int(kind.bits):
            return cast
        address, alignment = (
            tirx.address_of(load.source[index.base]),
            tirx.const(int(kind.bits) // 8, "int32"),
        )
        floats = f"float32x{words}"
        loaded = tirx.call_llvm_intrin(floats, f"llvm.arm.neon.vld1.v{words}f32.p0", address, alignment)
        fenced = tirx.call_llvm_pure_intrin(floats, f"llvm.arithmetic.fence.v{words}f32", loaded)
        return tirx.Cast(cast.ty, tirx.reinterpret(str(kind), fenced))

    body = tvm_ffi.structural_map(function.body, (tirx.Cast, widened))
    return tirx.PrimFunc(function.params, body, attrs=function.attrs)


def _buffer_bytes(shape: Sequence[tirx.IntImm], dtype: str, name: str) -> int:
    """Return the bytes of a lowered buffer, whose type may be a vector such as `float32x4`."""
    import tvm
    from tvm import tirx

    if not all(isinstance(extent, tirx.IntImm) for extent in shape):
        raise ArmletError(f"kernel {name} has a buffer of a size that is not known when compiling")
    kind = tvm.DataType(dtype)
    bits = int(kind.bits) * int(kind.lanes) * math.prod(int(extent) for extent in shape)
    return -(-bits // 8)
