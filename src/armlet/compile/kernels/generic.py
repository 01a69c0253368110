"""Operators without a kernel of their own: TVM's ONNX import and legalization, then one simple schedule for everything.

Elementwise operators that follow each other become one kernel. Others get the same schedule and are reported as such.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from armlet.compile.frontend.generic import COMPARISONS
from armlet.compile.frontend.graph import Generic, Layer
from armlet.compile.frontend.values import Array
from armlet.compile.kernels import functions
from armlet.compile.kernels.loops import IN_PLACE, Vector, lanes_for
from armlet.errors import UnsupportedOperator
from armlet.spec.recipe import Precision

if TYPE_CHECKING:
    import onnx
    import tvm


@dataclass(frozen=True, slots=True, eq=False)
class GenericCall:
    """One call of a generic kernel.

    Attributes:
        function: scheduled.
        name: of the function, as TVM's fusion names it.
        arguments: names of values, or constants.
        output: name of the value that it gives.
        shape, dtype: of the output.
    """

    function: tvm.tirx.PrimFunc
    name: str
    arguments: tuple[str | Array, ...]
    output: str
    shape: tuple[int, ...]
    dtype: str


Schedule: TypeAlias = "Callable[[tvm.tirx.PrimFunc, Vector], tvm.tirx.PrimFunc]"


def lower_generic(
    layers: Sequence[Layer],
    shapes: Mapping[str, tuple[int, ...]],
    outputs: Sequence[str],
    channels_last: bool,
    vector: Vector,
    scheduled_by: Schedule,
) -> tuple[GenericCall, ...]:
    """Return the kernel calls of some generic layers, which compute in float32 whatever values are of.

    Args:
        layers: in order; their operators are all `Generic`.
        shapes: of every value that they read or give, as they lie in memory.
        outputs: values that are read elsewhere.
        channels_last: whether values lie as [1, H, W, C], so that constants must too.
        vector: unit that the schedule is for.
        scheduled_by: what schedules each kernel.
    """
    from tvm import relax
    from tvm.ir.transform import Sequential
    from tvm.relax.frontend.onnx import from_onnx

    inner = {layer.output for layer in layers}
    inputs = list(dict.fromkeys(n for layer in layers for n in layer.inputs if n not in inner))
    module = from_onnx(
        _model(layers, shapes, (inputs, outputs), channels_last, vector.real), keep_params_in_input=False
    )
    module = Sequential(
        [
            relax.transform.LegalizeOps(),
            relax.transform.FoldConstant(),
            relax.transform.AnnotateTIROpPattern(),
            relax.transform.FuseOps(),
            relax.transform.FuseTIR(),
            relax.transform.DeadCodeElimination(),
        ]
    )(module)
    return _calls(module, inputs, outputs, lambda function: scheduled_by(function, vector))


def _model(
    layers: Sequence[Layer],
    shapes: Mapping[str, tuple[int, ...]],
    ends: tuple[Sequence[str], Sequence[str]],
    channels_last: bool,
    real: Precision,
) -> onnx.ModelProto:
    """Return the layers as an ONNX model of their own, on values of a type of real numbers."""
    import onnx

    ops = [layer.op for layer in layers if isinstance(layer.op, Generic)]
    constants = {name: value for op in ops for name, value in op.constants.items()}
    if channels_last:
        constants = {name: _channels_last(value) for name, value in constants.items()}
    plain = {
        name: f"v{i}" for i, name in enumerate([*shapes, *constants])
    }  # TVM warns of names that have dots
    dtype = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(real))
    outer = {n: f"{plain[n]}_end" if real != "float32" else plain[n] for end in ends for n in end}
    infos = {n: onnx.helper.make_tensor_value_info(outer[n], dtype, shapes[n]) for n in outer}
    turned = real != "float32"
    nodes = [_cast(outer[n], plain[n], onnx.TensorProto.FLOAT) for n in ends[0] if turned]
    for op in ops:
        node = onnx.NodeProto()
        node.CopyFrom(op.node)
        node.input[:] = [plain.get(n, n) for n in op.node.input]
        node.output[:] = [plain[op.node.output[0]]]
        nodes += _with_numbers(node)
    nodes += [_cast(plain[n], outer[n], dtype) for n in ends[1] if turned]
    graph = onnx.helper.make_graph(
        nodes,
        "island",
        [infos[n] for n in ends[0]],
        [infos[n] for n in ends[1]],
        [onnx.numpy_helper.from_array(value, plain[name]) for name, value in constants.items()],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", ops[0].opset)])


def _with_numbers(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Return a node, and a cast of its truth value from or to a number, as which it lies in memory."""
    from onnx import TensorProto, helper

    truth = f"{node.output[0]}_truth"
    if node.op_type in COMPARISONS:
        cast = helper.make_node("Cast", [truth], [node.output[0]], to=TensorProto.FLOAT)
        node.output[0] = truth
        return [node, cast]
    if node.op_type == "Where":
        cast = helper.make_node("Cast", [node.input[0]], [truth], to=TensorProto.BOOL)
        node.input[0] = truth
        return [cast, node]
    return [node]


def _cast(value: str, result: str, dtype: int) -> onnx.NodeProto:
    import onnx

    return onnx.helper.make_node("Cast", [value], [result], to=dtype)


def _channels_last(value: Array) -> Array:
    """Return a constant that broadcasts against values [1, H, W, C] as it did against [1, C, H, W]."""
    aligned = value.reshape((1,) * (4 - value.ndim) + value.shape)
    return np.ascontiguousarray(aligned.transpose(0, 2, 3, 1))


def _calls(
    module: tvm.IRModule,
    inputs: Sequence[str],
    outputs: Sequence[str],
    scheduled_by: Callable[[tvm.tirx.PrimFunc], tvm.tirx.PrimFunc],
) -> tuple[GenericCall, ...]:
    from tvm import relax

    main = module["main"]
    names = dict(zip(main.params, inputs, strict=True))
    bindings = [b for block in main.body.blocks for b in block.bindings]
    aliases = {b.var: b.value for b in bindings if isinstance(b.value, relax.Var | relax.Tuple)}

    def resolved(value: relax.Expr) -> list[relax.Var]:
        value = aliases.get(value, value)
        if isinstance(value, relax.Tuple):
            return [v for part in value.fields for v in resolved(part)]
        return resolved(value) if value in aliases else [value]

    results = resolved(main.body.body)
    for number, binding in enumerate(bindings):
        names.setdefault(binding.var, f"{outputs[0]}:part{number}")
    names |= dict(zip(results, outputs, strict=True))
    scheduled: dict[str, tvm.tirx.PrimFunc] = {}
    calls = []
    for binding in bindings:
        if binding.var in aliases:
            continue
        call = binding.value
        if not isinstance(call, relax.Call) or call.op.name != "relax.call_tir":
            raise UnsupportedOperator(f"{', '.join(outputs)}: TVM leaves {call} unlowered")
        kernel = call.args[0].name_hint
        if kernel not in scheduled:
            scheduled[kernel] = scheduled_by(module[kernel])
        arguments = tuple(
            names[a] if isinstance(a, relax.Var) else a.value.numpy() for a in call.args[1].fields
        )
        shape = tuple(int(d) for d in binding.var.ty.shape.values)
        dtype = str(binding.var.ty.dtype)
        calls.append(GenericCall(scheduled[kernel], kernel, arguments, names[binding.var], shape, dtype))
    return tuple(calls)


def schedule(function: tvm.tirx.PrimFunc, vector: Vector) -> tvm.tirx.PrimFunc:
    """Inline what is computed element by element and vectorize the innermost loops that have no reduction."""
    import tvm
    from tvm import s_tir
    from tvm.tirx import IterVar

    plan = s_tir.Schedule(tvm.IRModule({"main": function}))
    root = plan.get_sblock("root")
    outputs = {plan.get(b).name_hint for b in plan.get_output_blocks(root)}
    for block in plan.get_child_blocks(root):
        spatial = all(v.iter_type == IterVar.DataPar for v in plan.get(block).iter_vars)
        if spatial and plan.get(block).name_hint not in outputs:
            plan.compute_inline(block)
    for block in plan.get_child_blocks(root):
        inner = plan.get_loops(block)[-1:]
        if inner and all(v.iter_type == IterVar.DataPar for v in plan.get(block).iter_vars):
            extent = int(plan.get(inner[0]).extent)
            lanes = lanes_for(extent & -extent, vector.lanes("float32"))  # a power of two that divides it
            plan.vectorize(plan.split(inner[0], [None, lanes])[1])
    function = plan.mod["main"].with_attr(IN_PLACE, _in_place(plan))
    return _without_libm(function)


def _in_place(plan: tvm.s_tir.Schedule) -> list[int]:
    """Return which inputs are read element by element where the result is written, and nowhere else."""
    import tvm_ffi
    from tvm.tirx import IterVar

    function = plan.mod["main"]
    first, *more = (plan.get(block) for block in plan.get_child_blocks(plan.get_sblock("root")))
    if more or any(v.iter_type != IterVar.DataPar for v in first.iter_vars):
        return []
    *inputs, result = function.params
    written = first.writes[0].region

    def lies_under(buffer: tvm.tirx.Buffer) -> bool:
        alike = str(buffer.dtype) == str(result.dtype) and tvm_ffi.structural_equal(
            buffer.shape, result.shape
        )
        regions = [read.region for read in first.reads if read.source.same_as(buffer)]
        return alike and all(tvm_ffi.structural_equal(region, written) for region in regions)

    return [number for number, buffer in enumerate(inputs) if lies_under(buffer)]


def _without_libm(function: tvm.tirx.PrimFunc) -> tvm.tirx.PrimFunc:
    """Write exp, sigmoid, tanh and erf of float32 in arithmetic, which vectorizes; libm takes one number at a time."""
    import tvm
    import tvm_ffi

    own = {f"tirx.{f.__name__}": f for f in (functions.exp, functions.sigmoid, functions.tanh, functions.erf)}

    def written(call: tvm.ir.Call) -> tvm.ir.Expr:
        formula = own.get(getattr(call.op, "name", ""))
        return call if formula is None or str(call.ty) != "float32" else formula(call.args[0], 1)

    return function.with_body(tvm_ffi.structural_map(function.body, (tvm.ir.Call, written)))
