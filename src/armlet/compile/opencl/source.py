"""Writes kernels as OpenCL C: one source text for all of a program's, and how many work items each runs for."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from armlet.compile.dump import Dump
from armlet.compile.emit.kernels import PlainKernel, lowering
from armlet.errors import ArmletError

if TYPE_CHECKING:
    import tvm
    from tvm import tirx

_DEVICE_KERNEL = 2
"""TVM's number of the calling convention of what a device runs."""


@dataclass(frozen=True, slots=True)
class GpuKernel:
    """One kernel of the source.

    Attributes:
        plain: its name and its number of parameters, all of which are buffers in global memory.
        parameter_bytes: size of each.
        groups: work groups of one call.
        group_items: work items of a group.
    """

    plain: PlainKernel
    parameter_bytes: tuple[int, ...]
    groups: int
    group_items: int


def write_source(
    module: tvm.IRModule, symbol: str, dump: Dump | None = None
) -> tuple[str, tuple[GpuKernel, ...]]:
    """Return every PrimFunc of `module` as OpenCL C, and what each is.

    Raises:
        ArmletError: a kernel has working memory beyond its group's, or no work items.
    """
    import tvm
    import tvm_ffi
    from tvm import tirx

    gpu = tvm.target.Target({"kind": "opencl"})
    functions = {v.name_hint: f for v, f in module.functions.items() if isinstance(f, tirx.PrimFunc)}
    named = {
        name: functions[name].with_attr("global_symbol", f"{symbol}_{name}") for name in sorted(functions)
    }
    lowered = lowering(gpu)(tvm.IRModule(named))
    ready, kernels = {}, []
    for name in named:
        function = lowered[name]
        groups, items = _extents(function, name)
        plain = PlainKernel(name, f"{symbol}_{name}", len(function.params), ())
        sizes = tuple(_buffer_bytes(parameter) for parameter in function.params)
        kernels.append(GpuKernel(plain, sizes, groups, items))
        ready[f"{symbol}_{name}"] = _with_pointers(function).with_attr("calling_conv", _DEVICE_KERNEL)
    finished = tirx.transform.LowerIntrin()(tvm.IRModule(ready))
    build = tvm_ffi.get_global_func("target.build.opencl")
    # One by one: of several, TVM declares all before each.
    source = "".join(build(tvm.IRModule({name: finished[name]}), gpu).inspect_source() for name in ready)
    if dump:
        dump.module("05-lowered", finished)
        dump.write("06-kernels.cl", source)
    return source, tuple(kernels)


def _extents(function: tirx.PrimFunc, name: str) -> tuple[int, int]:
    """Return a kernel's work groups, and the items of one."""
    import tvm_ffi
    from tvm import tirx

    found: dict[str, int] = {}

    def note(attribute: tirx.AttrStmt) -> None:
        if attribute.attr_key == "thread_extent":
            found[str(attribute.node.thread_tag)] = int(attribute.value)

    def refuse(allocation: tirx.AllocBuffer) -> None:
        if allocation.buffer.scope() == "global":
            raise ArmletError(
                f"kernel {name} has working memory in global scope, which no program for GPUs plans"
            )

    tvm_ffi.structural_walk(function.body, [(tirx.AttrStmt, note), (tirx.AllocBuffer, refuse)])
    if set(found) != {"blockIdx.x", "threadIdx.x"}:
        raise ArmletError(f"kernel {name} has no work items: it is bound to {sorted(found)}")
    return found["blockIdx.x"], found["threadIdx.x"]


def _with_pointers(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """Turn buffer parameters into pointers."""
    from tvm import tirx

    pointers = [tirx.Var(f"{p.name}_pointer", p.data.ty) for p in function.params]
    declared = [tirx.DeclBuffer(p, data=v) for p, v in zip(function.params, pointers, strict=True)]
    return tirx.PrimFunc(pointers, tirx.SeqStmt([*declared, function.body]), attrs=function.attrs)


def _buffer_bytes(buffer: tirx.Buffer) -> int:
    import tvm

    return int(tvm.DataType(str(buffer.dtype)).bits) // 8 * prod(int(extent) for extent in buffer.shape)
