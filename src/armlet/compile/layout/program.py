"""Builds the Relax function `main`: a list of kernel calls on flat values, whose elements' order is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from armlet.artifacts import Fallback, TensorInfo
from armlet.compile.frontend.graph import Graph, Layer, Reshape
from armlet.compile.frontend.values import Array, Tensor
from armlet.compile.kernels import move
from armlet.compile.kernels.border import Border
from armlet.compile.kernels.choices import Choice, Tiles, Tunable
from armlet.compile.kernels.loops import Vector
from armlet.compile.layout.order import Order, channels_last
from armlet.compile.lowered import CallInfo, LoweredProgram
from armlet.errors import UnsupportedOperator

if TYPE_CHECKING:
    import tvm
    from tvm import relax


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel to call.

    Attributes:
        op: what it computes; kernels are named after it.
        schedule: how, in a word, for the report.
        spec: everything that its code depends on, a frozen dataclass of its own for each op.
        build: makes the PrimFunc of the spec.
        macs: multiply-accumulates that the layer asks for.
        precision: what it multiplies; None for that of its result.
    """

    op: str
    schedule: str
    spec: Any
    build: Callable[[Any, Vector], tvm.tirx.PrimFunc]
    macs: int = 0
    precision: Literal["int8"] | None = None


@dataclass(frozen=True, slots=True)
class Value:
    """A value of the program.

    Attributes:
        var: flat Relax variable.
        tensor: shape as ONNX has it, and element type.
        order: of the elements in `var`.
        border: that lies around it in `var`; None where there is none.
    """

    var: relax.Var
    tensor: Tensor
    order: Order
    border: Border | None = None


class ProgramBuilder:
    """Collects kernel calls. Equal kernels are built once and shared.

    Args:
        graph: whose inputs become the parameters of `main`.
        vector: unit that kernels are written for.
        small: whether constants must not grow for the sake of speed.
    """

    def __init__(self, graph: Graph, vector: Vector, *, small: bool = False) -> None:
        from tvm import relax

        self.graph, self.vector, self.small = graph, vector, small
        self.fallbacks: list[Fallback] = []
        self._calls: list[tuple[CallInfo, relax.Var]] = []
        self._joined = {layer.output: layer.joined for layer in graph.layers}
        self._roots: dict[relax.Var, relax.Var] = {}
        self._defined: dict[relax.Var, tuple[Value, tuple[str, ...]]] = {}
        self._values: dict[str, Value] = {}
        self._moved: dict[tuple[str, Order], Value] = {}
        self._kernels: dict[object, tuple[tvm.ir.GlobalVar, tuple[tuple[Tunable, Choice], ...]]] = {}
        self._functions: dict[str, list[tuple[tvm.tirx.PrimFunc, tvm.ir.GlobalVar]]] = {}
        self._block = relax.BlockBuilder()
        self._parameters = []
        for number, name in enumerate(graph.inputs):
            tensor = graph.tensors[name]
            self._parameters.append(relax.Var(f"input{number}", relax.TensorType(tensor.shape, tensor.dtype)))

    def build(self, emit_layers: Callable[[], None]) -> LoweredProgram:
        """Run `emit_layers`, which calls this builder for every layer, and return the program."""
        from tvm import relax

        outputs = []
        with self._block.function("main", self._parameters):
            for name, parameter in zip(self.graph.inputs, self._parameters, strict=True):
                self.define(name, self.alias(parameter, (self.graph.tensors[name].size,)), None)
            emit_layers()
            for name in self.graph.outputs:
                value = self.row_major(name)
                outputs.append(self.alias(value.var, value.tensor.shape))
            self._block.emit_func_output(outputs[0] if len(outputs) == 1 else relax.Tuple(outputs))
        tensors = self.graph.tensors
        return LoweredProgram(
            module=self._block.get(),
            calls=tuple(self._with_result(info, var) for info, var in self._calls),
            fallbacks=tuple(self.fallbacks),
            inputs=tuple(TensorInfo(n, tensors[n].shape, tensors[n].dtype) for n in self.graph.inputs),
            outputs=tuple(TensorInfo(n, tensors[n].shape, tensors[n].dtype) for n in self.graph.outputs),
            tunables=tuple({t.key: t for _, choices in self._kernels.values() for t, _ in choices}.values()),
        )

    def alias(self, var: relax.Var, shape: tuple[int, ...]) -> relax.Var:
        """Return the same memory under another shape."""
        from tvm import relax

        if tuple(int(d) for d in var.ty.shape.values) == shape:
            return var
        other = self._block.emit(relax.op.reshape(var, shape))
        self._roots[other] = self._roots.get(var, var)
        return other

    def define(self, name: str, var: relax.Var, order: Order, border: Border | None = None) -> None:
        """Enter a value of the graph, given flat."""
        value = self._values[name] = Value(var, self.graph.tensors[name], order, border)
        self._defined.setdefault(self._roots.get(var, var), (value, self._joined.get(name, ())))

    def readers(self, name: str) -> tuple[Layer, ...] | None:
        """Return the layers that read a value, under this name or others; None where the program's caller does."""
        if name in self.graph.outputs:
            return None
        found: list[Layer] = []
        for reader in [layer for layer in self.graph.layers for read in layer.inputs if read == name]:
            shapes = {self.graph.tensors[n].shape for n in (name, reader.output)}
            renames = isinstance(reader.op, Reshape) and len(shapes) == 1
            more = self.readers(reader.output) if renames else (reader,)
            if more is None:
                return None
            found.extend(more)
        return tuple(found)

    def value(self, name: str) -> Value:
        """Return a value in the order that it has."""
        return self._values[name]

    def row_major(self, name: str) -> Value:
        """Return a value with its elements in row-major order, moved if needed."""
        order = self._values[name].order
        if order is None:
            return self._values[name]
        return self._move(name, (order.height, order.width, order.channels), (2, 0, 1), None)

    def channels_last(self, name: str) -> Value:
        """Return a value [1, C, H, W] with its elements in channels-last order, moved if needed."""
        value = self._values[name]
        wanted = channels_last(value.tensor.shape)
        if value.order == wanted:
            return value
        if value.order is not None:  # flattened from another shape
            raise AssertionError(f"{name} lies in the order {value.order}, not {wanted}")
        return self._move(name, value.tensor.shape[1:], (1, 2, 0), wanted)

    def _move(self, name: str, shape: tuple[int, ...], axes: tuple[int, ...], order: Order) -> Value:
        key = (name, order)
        if key not in self._moved:
            value = self._values[name]
            dtype = str(value.var.ty.dtype)  # int8 may be stored as uint8
            kernel = Kernel("transpose", "copy", move.Transpose(shape, axes, dtype), move.build_transpose)
            var = self.call(name, kernel, [value.var], value.tensor.size, dtype)
            self._moved[key] = Value(var, value.tensor, order)
            self._defined[var] = self._moved[key], ()
        return self._moved[key]

    def element(self, layer: Layer) -> str:
        """Return the type of what a layer computes."""
        return "int8" if layer.integer else self.vector.real

    def call(
        self, layer: str, kernel: Kernel, arguments: Sequence[relax.Var | Array], size: int, dtype: str
    ) -> relax.Var:
        """Append the call of a kernel for a layer; return its flat result of `size` elements.

        Constants that are real numbers get the vector unit's type of them.

        Raises:
            UnsupportedOperator: a constant has a number beyond that type.
        """
        if kernel.spec not in self._kernels:
            vector = replace(self.vector, tiles=Tiles(self.vector.tiles.table))
            variable = self.add_kernel(kernel.op, kernel.build(kernel.spec, vector))
            self._kernels[kernel.spec] = variable, tuple(vector.tiles.made.values())
        variable, choices = self._kernels[kernel.spec]
        precision = kernel.precision or (dtype if dtype.startswith("float") else "int8")
        tile = ", ".join(f"{rows} × {columns}" for _, (rows, columns) in choices)
        tuned = any(tunable.key in self.vector.tiles.table for tunable, _ in choices)
        info = CallInfo(layer, kernel.op, kernel.schedule, precision, kernel.macs, tile=tile, tuned=tuned)
        operands = [self._real(layer, a) if isinstance(a, np.ndarray) else a for a in arguments]
        return self.call_tir(info, variable, operands, (size,), dtype)

    def _real(self, layer: str, values: Array) -> Array:
        real = np.dtype(self.vector.real)
        if values.dtype != np.float32 or real == np.float32:
            return values
        largest = float(np.abs(values).max(initial=0.0))
        if largest > float(np.finfo(real).max):
            raise UnsupportedOperator(f"{layer}: its constant {largest:g} is beyond {real.name}")
        return values.astype(real)

    def add_kernel(self, op: str, function: tvm.tirx.PrimFunc) -> tvm.ir.GlobalVar:
        """Enter a kernel under a name that says what it does; return that of an equal one if there is one."""
        import tvm_ffi

        known = self._functions.setdefault(op, [])
        for other, variable in known:
            if tvm_ffi.structural_equal(function, other):
                return variable
        name = f"{op}_{len(known)}"
        known.append((function, self._block.add_func(function.with_attr("global_symbol", name), name)))
        return known[-1][1]

    def call_tir(
        self,
        info: CallInfo,
        kernel: tvm.ir.GlobalVar,
        arguments: Sequence[relax.Var | Array],
        shape: tuple[int, ...],
        dtype: str,
    ) -> relax.Var:
        """Append a call; NumPy arguments become constants."""
        from tvm import relax

        operands = [relax.const(a) if isinstance(a, np.ndarray) else a for a in arguments]
        var = self._block.emit(relax.call_tir(kernel, operands, relax.TensorType(shape, dtype)))
        self._calls.append((info, var))
        return var

    def _with_result(self, info: CallInfo, var: relax.Var) -> CallInfo:
        """Return the call with what its result is."""
        dtype = str(var.ty.dtype)
        if var not in self._defined:
            shape = tuple(int(extent) for extent in var.ty.shape.values)
            return replace(info, dtype=dtype, shape=shape, layout="flat")
        value, joined = self._defined[var]
        layout = "row-major" if value.order is None else "channels-last"
        return replace(info, joined=joined, dtype=dtype, shape=value.tensor.shape, layout=layout)
