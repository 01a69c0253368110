"""Finds the layers that compute in integers: QDQ patterns become layers from int8 to int8.

A float value has an int8 twin when it is that int8 tensor dequantized, or when nothing but its quantized form is ever
read. A layer whose inputs have twins and whose output gets one runs in integers. What can't stays float and is listed.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field, replace
from math import prod

import numpy as np

from armlet.artifacts import Fallback
from armlet.compile.frontend.graph import (
    Add,
    AddConstant,
    Concat,
    Conv2d,
    Convert,
    CountedMean,
    Dense,
    Dequantize,
    Enlarge,
    Flags,
    Generic,
    Graph,
    Hide,
    Integer,
    Layer,
    LayerNorm,
    Limit,
    Lookup,
    MatMul,
    Multiply,
    Op,
    Part,
    Pool,
    PRelu,
    Quantize,
    Recenter,
    Recurrent,
    Reshape,
    RowMean,
    Softmax,
    Spread,
    Table,
    Transpose,
)
from armlet.compile.frontend.simplify import without_dead_layers
from armlet.compile.frontend.values import THEMSELVES, Clamp, Constant, QuantizedTensor, Tensor, largest_sums
from armlet.compile.quantized import reference
from armlet.compile.quantized.arithmetic import (
    ACCUMULATOR_LIMIT,
    INT32_LIMIT,
    LARGEST_WEIGHT,
    addition,
    requantization,
    slopes,
)
from armlet.compile.quantized.attention import check_attention
from armlet.compile.quantized.dynamic import expand
from armlet.compile.quantized.lengths import FLAG, Lengths
from armlet.compile.quantized.recurrent import constants_of
from armlet.compile.quantized.tables import Formula, formula_of, table_of


class _StaysFloatError(Exception):
    """A layer can't compute in integers; the message is the reason that the user sees."""


@dataclass(slots=True)
class _Rewriter:
    graph: Graph
    uses: dict[str, int]
    readers: dict[str, list[Layer]]
    tensors: dict[str, Tensor]
    lengths: Lengths
    layers: list[Layer] = field(default_factory=list)
    twins: dict[str, tuple[str, QuantizedTensor]] = field(default_factory=dict)
    floats: dict[str, Fallback] = field(default_factory=dict)
    formulas: dict[str, Formula] = field(default_factory=dict)

    def int8(self, name: str) -> str:
        """Return the name of a new int8 value that stands for the float value `name`."""
        twin = f"{name}:int8"
        self.tensors[twin] = Tensor(self.tensors[name].shape, "int8")
        return twin


def to_integer(graph: Graph) -> tuple[Graph, tuple[Fallback, ...]]:
    """Return the graph with integer layers where quantization allows, and what stays float in a quantized network."""
    readers: dict[str, list[Layer]] = {}
    for layer in graph.layers:
        for name in layer.inputs:
            readers.setdefault(name, []).append(layer)
    found = [layer.op.to for layer in graph.layers if isinstance(layer.op, Quantize)]
    is_quantized = any(to != THEMSELVES for to in found)
    makers = {layer.output: layer for layer in graph.layers} if is_quantized else {}
    tensors = dict(graph.tensors)
    shapes = [tensors[name].shape for name in graph.inputs]
    longest = max((shape[1] for shape in shapes if len(shape) in (2, 3)), default=0)
    state = _Rewriter(graph, graph.uses(), readers, tensors, Lengths(makers, tensors, longest))
    for layer in graph.layers:
        _rewrite(layer, state)
    result = without_dead_layers(
        dataclasses.replace(graph, layers=tuple(state.layers), tensors=state.tensors)
    )
    if not is_quantized:
        return result, _float_beside_dynamic(result)
    kept = {layer.output for layer in result.layers}
    return result, tuple(f for value, f in state.floats.items() if value in kept)


def _float_beside_dynamic(graph: Graph) -> tuple[Fallback, ...]:
    """Return the layers of products in float, in a network of which others quantise their input while they run."""
    products = [layer for layer in graph.layers if isinstance(layer.op, Conv2d | Dense | MatMul | Recurrent)]
    apart = [layer for layer in products if not (isinstance(layer.op, Conv2d | Dense) and layer.op.dynamic)]
    if len(apart) == len(products):
        return ()
    reason = "stays float: its input is not quantised while the program runs"
    return tuple(Fallback(layer.name, layer.kind, reason) for layer in apart)


def _rewrite(layer: Layer, state: _Rewriter) -> None:
    op, output = layer.op, layer.output
    if (formula := formula_of(layer, state.formulas, state.twins)) is not None:
        state.formulas[output] = formula
    if isinstance(op, Dequantize):
        state.twins[output] = (layer.inputs[0], op.origin)
        state.layers.append(layer)
    elif isinstance(op, Quantize):
        _rewrite_quantize(layer, op, state)
    elif isinstance(op, Pool) and op.kind == "max_pool2d" and layer.inputs[0] in state.twins:
        _pass_through(layer, state)
    elif isinstance(op, Conv2d | Dense) and op.dynamic:
        state.layers.extend(expand(layer, state.tensors))
    elif isinstance(op, Convert | Recenter):
        state.layers.append(layer)
    elif isinstance(op, Lookup):
        _look_rows_up(layer, op, state)
    elif isinstance(op, Reshape | Transpose | Spread | Enlarge | Part):
        if layer.inputs[0] in state.twins:
            _pass_through(layer, state)
        else:
            state.layers.append(layer)
    elif not _rewrite_flags(layer, state):
        try:
            _rewrite_compute(layer, state)
        except (_StaysFloatError, OverflowError) as reason:
            state.layers.append(layer)
            state.floats[output] = Fallback(layer.name, layer.kind, f"stays float: {reason}")


def _rewrite_flags(layer: Layer, state: _Rewriter) -> bool:
    """Run a layer on integers that gives flags from a length, or a product with them; return whether it is one."""
    if (found := state.lengths.starts(layer)) is not None:
        length, starts = found
        state.lengths.flags.add(layer.output)
        _emit(replace(layer, op=Flags(starts), inputs=(length,)), (), FLAG, state)
        return True
    hidden = state.lengths.hidden(layer)
    if hidden is None or hidden[0] not in state.twins:
        return False
    (twin, origin), (flag, _) = (state.twins[name] for name in hidden)
    _emit(replace(layer, op=Hide(), inputs=(twin, flag)), (origin,), origin, state)
    return True


def _rewrite_quantize(layer: Layer, op: Quantize, state: _Rewriter) -> None:
    value = layer.inputs[0]
    if value not in state.twins:
        formula = state.formulas.get(value)
        state.layers.append(layer if formula is None else _look_up(layer, op, formula, state))
        return
    twin, origin = state.twins[value]
    same = replace(layer, inputs=(twin,))
    if origin == op.to:
        state.layers.append(replace(same, op=Reshape()))  # another name for the same bytes
        return
    try:
        addition(np.array([origin.scale / op.to.scale]))
        state.layers.append(replace(same, op=Limit(Clamp()), integer=Integer((origin,), op.to)))
    except OverflowError:
        state.layers.append(layer)


def _look_up(layer: Layer, op: Quantize, formula: Formula, state: _Rewriter) -> Layer:
    """Return the table that gives what a quantization of a formula's value gives."""
    twin, origin = state.twins[formula.source]
    last, table = formula.layers[-1], Table(table_of(formula, origin, op.to))
    joined = tuple(name for one in formula.layers for name in one.nodes if name != last.name)
    return Layer(last.name, last.kind, table, (twin,), layer.output, Integer((origin,), op.to), joined)


def _look_rows_up(layer: Layer, op: Lookup, state: _Rewriter) -> None:
    """Quantize the table instead of its rows, where nothing else is ever done with them."""
    try:
        output = _output_quantization(layer.output, state)
    except _StaysFloatError:
        state.layers.append(layer)
        return
    table = Constant(reference.quantize(op.table.real().astype(np.float32), output))
    _emit(replace(layer, op=Lookup(table)), (), output, state)


def _pass_through(layer: Layer, state: _Rewriter) -> None:
    """Run a layer that only moves or selects elements on the int8 values themselves."""
    twins = [state.twins[name] for name in layer.inputs]
    origin = twins[0][1]
    _emit(replace(layer, inputs=tuple(t[0] for t in twins)), tuple(t[1] for t in twins), origin, state)


def _emit(
    layer: Layer, inputs: tuple[QuantizedTensor, ...], output: QuantizedTensor, state: _Rewriter
) -> None:
    """Append the integer layer, and a dequantization of its result for readers that stay float."""
    twin = state.int8(layer.output)
    state.layers.append(replace(layer, output=twin, integer=Integer(inputs, output)))
    state.layers.append(Layer(layer.name, "DequantizeLinear", Dequantize(output), (twin,), layer.output))
    state.twins[layer.output] = (twin, output)


def _output_quantization(value: str, state: _Rewriter) -> QuantizedTensor:
    """Return how a value is quantized, if that is all that is ever done with it, moved or in parts."""
    readers = state.readers.get(value, [])
    found: set[QuantizedTensor | None] = set()
    for reader in readers:
        if isinstance(reader.op, Quantize):
            found.add(reader.op.to)
        elif isinstance(reader.op, Reshape | Transpose | Part):
            found.add(_output_quantization(reader.output, state))
        else:
            found.add(None)
    is_answer = len(readers) < state.uses[value]
    if is_answer or not found or None in found:
        raise _StaysFloatError("its output is not quantized")
    if len(found) > 1:
        raise _StaysFloatError("its output is quantized in two ways")
    return found.pop()  # type: ignore[return-value]  # None is not in it


def _rewrite_compute(layer: Layer, state: _Rewriter) -> None:
    layer = _gate_last(layer, state)
    op, names, more = _operands(layer, state)
    if isinstance(op, Recurrent):
        _recurrent(layer, op, state)
        return
    if isinstance(op, Generic):
        raise _StaysFloatError(f"{layer.kind} has no integer form")
    if any(name not in state.twins for name in names):
        raise _StaysFloatError("an input is not quantized")
    twins = [state.twins[name] for name in names]
    inputs = tuple(t[1] for t in twins)
    if isinstance(op, Concat) and len(set(inputs)) == 1:
        _pass_through(layer, state)
        return
    output = _output_quantization(layer.output, state)
    if isinstance(op, Conv2d | Dense):
        op = _integer_weights(op, inputs[0], output)
    elif isinstance(op, Concat):
        _concat(layer, twins, output, state)
        return
    elif isinstance(op, Pool):
        _check_mean(op, inputs[0], output)
    elif isinstance(op, MatMul | Softmax | LayerNorm | Multiply | AddConstant | RowMean | CountedMean):
        check_attention(op, state.tensors[names[0]].shape, inputs, output)
    elif isinstance(op, Add | Limit):
        addition(np.array([i.scale / output.scale for i in inputs]))
    elif isinstance(op, PRelu):
        slopes(op, inputs[0], output)
    _emit(replace(layer, op=op, inputs=(*(t[0] for t in twins), *more)), inputs, output, state)


def _gate_last(layer: Layer, state: _Rewriter) -> Layer:
    """Return a product with the number for each channel behind what it multiplies: the order does not matter to it."""
    shapes = [state.tensors[name].shape for name in layer.inputs]
    product = isinstance(layer.op, Generic) and layer.op.node.op_type == "Mul" and len(shapes) == 2
    if product and len(shapes[1]) == 4 and shapes[0] == (*shapes[1][:2], 1, 1):
        return replace(layer, inputs=layer.inputs[::-1])
    return layer


def _operands(layer: Layer, state: _Rewriter) -> tuple[Op, tuple[str, ...], tuple[str, ...]]:
    """Return what a layer is in integers, the values that it takes as int8, and those that it takes as they are."""
    if (counted := state.lengths.count(layer)) is not None:
        value, by, most = counted
        return CountedMean(most), (value,), (state.twins[by][0] if by in state.twins else by,)
    op = _integer_form(layer, state)
    if not isinstance(op, Softmax):
        return op, layer.inputs, ()
    masks = layer.inputs[1:]
    if not masks or (found := state.lengths.mask(masks[0])) is None:
        return op, layer.inputs[:1], masks
    flag, by_flag = found
    op = replace(op, by_flag=by_flag.reshape(2, op.mask_rows, -1))
    return op, layer.inputs[:1], (state.twins[flag][0],)


def _integer_form(layer: Layer, state: _Rewriter) -> Op:
    """Return what a layer without a kernel of its own is in integers: a product, a sum with a constant, a PReLU."""
    op, shapes = layer.op, [state.tensors[name].shape for name in layer.inputs]
    if not isinstance(op, Generic):
        return op
    if op.node.op_type == "Mul" and len(shapes) == 2:
        by_channel = len(shapes[0]) == 4 and shapes[1] == (*shapes[0][:2], 1, 1)
        return Multiply() if shapes[0] == shapes[1] or by_channel else op
    if op.node.op_type == "Add" and len(shapes) == len(op.constants) == 1:
        values = next(iter(op.constants.values()))
        whole = values.shape == shapes[0][len(shapes[0]) - values.ndim :] and values.size == prod(shapes[0])
        return AddConstant(values) if whole else op
    if op.node.op_type == "PRelu" and len(shapes) == len(op.constants) == 1:
        (values,) = op.constants.values()
        extents = (1,) * (len(shapes[0]) - values.ndim) + values.shape
        axes = [axis for axis, extent in enumerate(extents) if extent > 1]
        return PRelu(values.reshape(-1), axes[0]) if len(axes) == 1 else op
    return op


def _recurrent(layer: Layer, op: Recurrent, state: _Rewriter) -> None:
    """Run a layer on integers; where its states go on in float, it gives its outputs in float, too."""
    if len(op.recurrent) > 1:
        raise _StaysFloatError("its recurrent weight has two factors")
    if layer.inputs[0] not in state.twins:
        raise _StaysFloatError("an input is not quantized")
    goes_on = bool(set(op.given) - {"length"} or "c" in op.parts)
    outputs = layer.output
    if goes_on and len(op.parts) > 1:
        if op.parts[0] != "y":
            raise _StaysFloatError("its output is not quantized")
        outputs = next(r.output for r in state.readers[layer.output] if r.op == Part(0))
    (twin, origin), output = state.twins[layer.inputs[0]], _output_quantization(outputs, state)
    constants_of(op, origin, output)
    changed = replace(layer, inputs=(twin, *layer.inputs[1:]))
    if goes_on:
        state.layers.append(replace(changed, integer=Integer((origin,), output)))
    else:
        _emit(changed, (origin,), output, state)


def _concat(
    layer: Layer, twins: list[tuple[str, QuantizedTensor]], output: QuantizedTensor, state: _Rewriter
) -> None:
    """Bring every operand to the output's quantization first."""
    operands = []
    for position, (twin, origin) in enumerate(twins):
        if origin == output:
            operands.append(twin)
            continue
        addition(np.array([origin.scale / output.scale]))
        value = f"{layer.output}:operand{position}"
        state.tensors[value] = state.tensors[twin]
        rescale = Layer(layer.name, layer.kind, Limit(Clamp()), (twin,), value, Integer((origin,), output))
        state.layers.append(rescale)
        operands.append(value)
    _emit(replace(layer, inputs=tuple(operands)), (output,) * len(operands), output, state)


def _integer_weights(op: Conv2d | Dense, origin: QuantizedTensor, output: QuantizedTensor) -> Conv2d | Dense:
    """Return the layer with integer weights and the int32 bias of scale input × weight; refuse what could overflow."""
    weight = op.weight
    if weight.scale is None or weight.zero is None or weight.values.dtype not in (np.int8, np.int16):
        raise _StaysFloatError("its weights are not quantized to 8 bits")
    if weight.has_blocks:
        raise _StaysFloatError("its weights have scales for groups of inputs")
    rows = weight.values.reshape(len(weight.values), -1).astype(np.int32)
    apart = max(np.abs(rows).max(), (rows.max(1) - rows.min(1)).max())
    if apart > LARGEST_WEIGHT or np.any(weight.zero):
        raise _StaysFloatError("its weights are not quantized to 8 bits")
    if weight.scale.size > 1 and weight.axis != 0:
        raise _StaysFloatError("its weights have scales along another dimension than the output channels")
    outputs = len(rows)
    scale = origin.scale * np.broadcast_to(weight.scale.astype(np.float64), (outputs,))
    bias = np.rint(op.bias.real() / scale)
    largest = largest_sums(weight.values) + np.abs(bias)
    if np.any(largest >= ACCUMULATOR_LIMIT):
        raise _StaysFloatError("its accumulator could overflow 32 bits")
    factors = scale / output.scale
    requantization(factors)
    if np.any(largest * factors + 256 >= INT32_LIMIT):
        raise _StaysFloatError("its output scale is too small for its accumulator")
    return replace(op, bias=Constant(bias.astype(np.int32), scale, np.zeros(outputs, np.int32)))


def _check_mean(op: Pool, origin: QuantizedTensor, output: QuantizedTensor) -> None:
    count = op.kernel[0] * op.kernel[1]
    factor = origin.scale / (output.scale * count)
    requantization(np.array([factor]))
    if 256 * count >= ACCUMULATOR_LIMIT or 256 * count * factor + 256 >= INT32_LIMIT:
        raise _StaysFloatError("its accumulator could overflow 32 bits")
