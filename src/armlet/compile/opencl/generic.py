"""Schedules what TVM's ONNX import gives for operators without a kernel of their own: an element for each work item."""

from __future__ import annotations

from typing import TYPE_CHECKING

from armlet.compile.kernels import functions
from armlet.compile.kernels.loops import Vector
from armlet.compile.opencl.items import WORK_GROUP
from armlet.errors import UnsupportedOperator

if TYPE_CHECKING:
    import tvm


def schedule(function: tvm.tirx.PrimFunc, vector: Vector) -> tvm.tirx.PrimFunc:
    """Give each work item one element of the result, and with it the loop of a reduction where there is one.

    Raises:
        UnsupportedOperator: it has several results, or reductions one after the other.
    """
    del vector
    import tvm
    from tvm import s_tir
    from tvm.tirx import IterVar

    plan = s_tir.Schedule(tvm.IRModule({"main": function}))
    root = plan.get_sblock("root")

    def spatial(block: s_tir.schedule.SBlockRV) -> bool:
        return all(v.iter_type == IterVar.DataPar for v in plan.get(block).iter_vars)

    outputs = {plan.get(b).name_hint for b in plan.get_output_blocks(root)}
    for block in plan.get_child_blocks(root):
        if spatial(block) and plan.get(block).name_hint not in outputs:
            plan.compute_inline(block)
    blocks = plan.get_child_blocks(root)
    reductions = [block for block in blocks if not spatial(block)]
    if len(outputs) != 1 or len(reductions) > 1 or len(blocks) > 2:
        raise UnsupportedOperator(
            f"{function.attrs['global_symbol']} has no schedule for GPUs: it is no single loop"
        )
    last = blocks[-1]
    if reductions and len(blocks) == 1:  # its result is the kernel's
        last = plan.cache_write(reductions[0], 0, "local")
    elif reductions:
        plan.set_scope(reductions[0], 0, "local")
    loops = plan.get_loops(last)
    if not loops:  # a scalar
        loops = [plan.add_unit_loop(last)]
    _, item = _bound(plan, plan.fuse(*loops) if len(loops) > 1 else loops[0])
    if reductions:
        plan.compute_at(reductions[0], item)
    return _with_erf(plan.mod["main"])


def _bound(plan: tvm.s_tir.Schedule, loop: tvm.s_tir.schedule.LoopRV) -> tuple[object, object]:
    group, item = plan.split(loop, [None, WORK_GROUP])
    plan.bind(group, "blockIdx.x")
    plan.bind(item, "threadIdx.x")
    return group, item


def _with_erf(function: tvm.tirx.PrimFunc) -> tvm.tirx.PrimFunc:
    """Write erf in arithmetic: TVM's OpenCL has no name for it."""
    import tvm
    import tvm_ffi

    def written(call: tvm.ir.Call) -> tvm.ir.Expr:
        return functions.erf(call.args[0], 1) if getattr(call.op, "name", "") == "tirx.erf" else call

    return function.with_body(tvm_ffi.structural_map(function.body, (tvm.ir.Call, written)))
