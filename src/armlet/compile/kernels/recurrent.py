"""The loop over time of a recurrent layer: one kernel whose code does not grow with the number of steps.

The input's share of all gates is computed for all steps at once, by the kernel of a dense layer; what is left here is,
for each step, the recurrent product, tiled like a matrix-vector product with the weights packed in the order in which
they are read, and the cell.

    lstm  i, o, f, c: C = σ(f) C + σ(i) tanh(c); H = σ(o) tanh(C)
    gru   z, r, h:    H = (1 - σ(z)) tanh(h_x + σ(r) h_h) + σ(z) H
    rnn   H = tanh(…) or max(0, …)

Sources: Hochreiter and Schmidhuber 1997 with Gers et al. 2000; Cho et al. 2014 in the form that applies the reset gate
after the product; the order of the gates is that of the ONNX operators LSTM, GRU and RNN.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from armlet.compile.frontend.values import Array
from armlet.compile.kernels.functions import sigmoid, tanh
from armlet.compile.kernels.loops import (
    LONGEST_SUM,
    Buffer,
    Expr,
    Parameter,
    Vector,
    added_apart,
    cast,
    clamped,
    constant,
    lanes_for,
    load,
    loop,
    parts,
    prim_func,
    registers,
    splat,
    store,
    sum_type,
    tiles,
)

if TYPE_CHECKING:
    import tvm

    from armlet.compile.kernels.integer_recurrent import IntegerRecurrence

Cell = Literal["lstm", "gru", "rnn_tanh", "rnn_relu"]
Direction = Literal["forward", "reverse", "bidirectional"]
Part = Literal["y", "h", "c"]

GATES: dict[str, int] = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


@dataclass(frozen=True, slots=True)
class Recurrence:
    """A loop over time.

    Attributes:
        steps: frames of the input, the most that are computed.
        hidden: units of one direction.
        padded: the same, rounded up to whole vectors (`padded_units`): units beyond `hidden` have weights of zero and
            stay zero, so that no state is ever written twice.
        rank: width of the recurrent product's factors, None where it is not factored.
        has_length: whether a parameter says how many of the frames count.
        initial: which states are given; they start at zero where they are not.
        parts: what is written, one after the other: all steps [T, D, H], the last hidden and cell states [D, H].
        integer_weights: whether the recurrent weight is int8, with a scale for each row; it has no factors then.
    """

    cell: Cell
    direction: Direction
    steps: int
    hidden: int
    padded: int
    rank: int | None
    has_length: bool
    initial: tuple[Part, ...]
    parts: tuple[Part, ...]
    integer_weights: bool = False

    @property
    def directions(self) -> int:
        """Number of directions."""
        return 2 if self.direction == "bidirectional" else 1

    @property
    def gates(self) -> int:
        """Width of all gates of one direction, with their padding."""
        return GATES[self.cell] * self.padded

    def size(self, part: Part) -> int:
        """Return the elements of one part."""
        return (self.steps if part == "y" else 1) * self.directions * self.hidden

    @property
    def products(self) -> tuple[tuple[int, int], ...]:
        """Inputs and outputs of the recurrent product, or of its two factors."""
        if self.rank is None:
            return ((self.hidden, self.gates),)
        return ((self.hidden, self.rank), (self.rank, self.gates))

    @property
    def macs(self) -> int:
        """Multiply-accumulates of all steps, those of the padding left out."""
        gates, rank = GATES[self.cell] * self.hidden, self.rank
        each = self.hidden * gates if rank is None else (self.hidden + gates) * rank
        return self.steps * self.directions * each


def padded_units(hidden: int, vector: Vector) -> int:
    """Return the number of units, rounded up to whole vectors."""
    lanes = lanes_for(hidden, vector.lanes("float32"))
    return -(-hidden // lanes) * lanes


def pack_product(weight: Array, vector: Vector) -> Array:
    """Pack weights [D, outputs, inputs] in the order (direction, tile, input, output of the tile), flat.

    Where the tiles do not fit, the order is (direction, input, output), and the last tile ends at the edge.
    """
    directions, outputs, inputs = weight.shape
    tile = _tile(outputs, vector)
    width = tile if outputs % tile == 0 else outputs
    blocks = weight.reshape(directions, outputs // width, width, inputs)
    return np.ascontiguousarray(blocks.transpose(0, 1, 3, 2)).reshape(-1)


def build(spec: Recurrence, vector: Vector) -> tvm.tirx.PrimFunc:
    """Return the kernel (x, product, ..., [scales], [bias], [length], [h], [c], result).

    x is the input's share of the gates with its bias, [T, D, gates]; scales, of integer weights, and bias, of the
    recurrent product, which only a gru has apart, are [D, gates]; with scales it is bias / scale. Products are those of
    the vector unit's type of real numbers; gates, cells and the cell state are computed in float32.
    """
    parameters = parameters_of(spec, vector)

    def body(*buffers: Buffer) -> None:
        named = dict(zip((p.name for p in parameters), buffers, strict=True))
        _Writer(spec, vector, named).write()

    return prim_func(parameters, body)


def parameters_of(spec: Recurrence, vector: Vector) -> list[Parameter]:
    """Return the kernel's parameters, in order."""
    real = vector.real
    parameters = [Parameter("x", spec.steps * spec.directions * spec.gates, real)]
    element = "int8" if spec.integer_weights else real
    parameters += [
        Parameter(f"product{i}", spec.directions * k * n, element) for i, (k, n) in enumerate(spec.products)
    ]
    if spec.integer_weights:
        parameters.append(Parameter("scales", spec.directions * spec.gates, real))
    if spec.cell == "gru":
        parameters.append(Parameter("bias", spec.directions * spec.gates, real))
    if spec.has_length:
        parameters.append(Parameter("length", 1, "int32"))
    parameters += [Parameter(f"initial_{part}", spec.size(part), real) for part in spec.initial]
    parameters.append(Parameter("result", sum(map(spec.size, spec.parts)), real))
    return parameters


def frames(steps: int, buffers: Mapping[str, Buffer]) -> Expr:
    """Return how many frames count: all of them, or as many as a length says, within those that there are."""
    from tvm import tirx

    if "length" not in buffers:
        return steps
    return tirx.max(tirx.min(buffers["length"][0], tirx.const(steps, "int32")), tirx.const(0, "int32"))


def time_of(direction: Direction, d: Expr, step: Expr, n: Expr) -> Expr:
    """Return which of `n` frames direction number `d` of a layer computes in a step."""
    match direction:
        case "forward":
            return step
        case "reverse":
            return n - 1 - step
        case "bidirectional":  # forward where d is 0, reverse where it is 1
            return step + d * (n - 1 - step * 2)


def offset(spec: Recurrence | IntegerRecurrence, part: Part) -> int:
    """Return where in the result a part begins."""
    return sum(map(spec.size, spec.parts[: spec.parts.index(part)]))


def _tile(outputs: int, vector: Vector) -> int:
    """Return how many outputs of a matrix-vector product are computed together: up to half of the registers."""
    lanes = lanes_for(outputs, vector.lanes(vector.real))
    widths = [lanes * n for n in (1, 2, 4, 8) if lanes * n <= min(outputs, vector.n_registers // 2 * lanes)]
    return min(widths, key=lambda width: (-(-outputs // width) * width, -width))


class _Writer:
    """Writes the loops of one kernel; the state, the gates and the factored product live in working buffers."""

    def __init__(self, spec: Recurrence, vector: Vector, buffers: dict[str, Buffer]) -> None:
        from tvm.script.ir_builder import tirx as t

        self.spec, self.vector, self.buffers = spec, vector, buffers
        self.lanes = lanes_for(spec.hidden, vector.lanes("float32"))
        self.h = t.alloc_buffer((spec.padded,), vector.real)
        self.c = t.alloc_buffer((spec.padded,), "float32") if spec.cell == "lstm" else None
        self.gates = t.alloc_buffer((spec.gates,), "float32")
        self.factor = None if spec.rank is None else t.alloc_buffer((spec.rank,), vector.real)

    def write(self) -> None:
        from tvm import tirx
        from tvm.script.ir_builder import tirx as t

        spec = self.spec
        n = frames(spec.steps, self.buffers)
        with loop(spec.directions) as d:
            self._start(d)
            if isinstance(n, int):
                with loop(n) as step:
                    self._step(d, step, n)
            else:
                with t.serial(0, n) as step:
                    self._step(d, step, n)
            self._finish(d)
        if spec.has_length and "y" in spec.parts:
            row = spec.directions * spec.hidden
            with t.serial(0, (tirx.const(spec.steps, "int32") - n) * row) as at:
                store(self.buffers["result"], n * row + at, 1, constant(0.0, self.vector.real, 1))

    def _start(self, d: Expr) -> None:
        for part, state in (("h", self.h), ("c", self.c)):
            if state is None:
                continue
            with tiles(self.spec.padded, self.lanes) as (_, at):
                store(state, at, self.lanes, constant(0.0, str(state.dtype), self.lanes))
            if (given := self.buffers.get(f"initial_{part}")) is not None:
                with tiles(self.spec.hidden, self.lanes) as (_, at):
                    value = load(given, d * self.spec.hidden + at, self.lanes, str(state.dtype))
                    store(state, at, self.lanes, value)

    def _finish(self, d: Expr) -> None:
        for part, state in (("h", self.h), ("c", self.c)):
            if part in self.spec.parts:
                self._copy_out(offset(self.spec, part) + d * self.spec.hidden, state)

    def _copy_out(self, place: Expr, state: Buffer) -> None:
        """Write a state to the result; the last vector may end at the edge, and is then written in part again."""
        with tiles(self.spec.hidden, self.lanes) as (_, at):
            value = load(state, at, self.lanes, self.vector.real)
            store(self.buffers["result"], place + at, self.lanes, value)

    def _step(self, d: Expr, step: Expr, n: Expr) -> None:
        spec = self.spec
        time = time_of(spec.direction, d, step, n)
        source: Buffer = self.h
        if self.factor is not None:
            self._product(0, d, (source, self.factor), None)
            source = self.factor
        self._product(len(spec.products) - 1, d, (source, self.gates), self.buffers.get("bias"))
        row = time * spec.directions + d
        with tiles(spec.padded, self.lanes) as (_, at):
            new = self._cell(row * spec.gates + at, at, self.lanes)
            store(self.h, at, self.lanes, cast(new, self.vector.real, self.lanes))
        if "y" in spec.parts:
            self._copy_out(row * spec.hidden, self.h)

    def _product(self, number: int, d: Expr, ends: tuple[Buffer, Buffer], bias: Buffer | None) -> None:
        """Write target[outputs] = scales × (weight × source[inputs] + bias)."""
        source, target = ends
        inputs, outputs = self.spec.products[number]
        real = self.vector.real
        scales, wide = self.buffers.get("scales"), "float32" if self.spec.integer_weights else None
        weight, tile = self.buffers[f"product{number}"], _tile(outputs, self.vector)
        lanes = lanes_for(tile, self.vector.lanes(real))
        acc = registers(tile, sum_type(inputs, self.vector))
        dtype, packed = str(acc.dtype), outputs % tile == 0
        apart = dtype != real
        sums = registers(tile, real) if apart else acc
        with tiles(outputs, tile) as (_, first):
            here = d * outputs + first
            for at in range(0, tile, lanes):
                start = constant(0.0, dtype, lanes)
                store(acc, at, lanes, start if bias is None else load(bias, here + at, lanes, dtype))
            block = d * inputs * outputs + first * (inputs if packed else 1)
            with (
                parts(inputs, LONGEST_SUM if apart else inputs) as (begin, n),
                added_apart(sums, acc, lanes, apart=apart),
                loop(n) as place,
            ):
                k = begin + place
                row = block + k * (tile if packed else outputs)
                for at in range(0, tile, lanes):
                    product = load(weight, row + at, lanes, wide) * splat(source[k], lanes)
                    store(sums, at, lanes, load(sums, at, lanes) + product)
            for at in range(0, tile, lanes):
                value = load(acc, at, lanes)
                value = value if scales is None else value * load(scales, here + at, lanes)
                store(target, first + at, lanes, cast(value, str(target.dtype), lanes))

    def _cell(self, share: Expr, at: Expr, lanes: int) -> Expr:
        """Return the new hidden state of the units from `at` on; the cell state is stored here."""
        spec, x = self.spec, self.buffers["x"]

        def gate(number: int) -> Expr:
            offset = number * spec.padded
            return load(self.gates, offset + at, lanes) + load(x, share + offset, lanes, "float32")

        match spec.cell:
            case "lstm":
                return self._lstm([gate(n) for n in range(4)], at, lanes)
            case "gru":
                new = 2 * spec.padded
                proposal = load(x, share + new, lanes, "float32")
                inner = sigmoid(gate(1), lanes) * load(self.gates, new + at, lanes) + proposal
                update, proposed = sigmoid(gate(0), lanes), tanh(inner, lanes)
                return proposed + update * (load(self.h, at, lanes, "float32") - proposed)
            case "rnn_tanh":
                return tanh(gate(0), lanes)
            case "rnn_relu":
                return clamped(gate(0), 0.0, None, "float32", lanes)

    def _lstm(self, gates: list[Expr], at: Expr, lanes: int) -> Expr:
        entry, output, forget, proposed = gates
        kept = sigmoid(forget, lanes) * load(self.c, at, lanes)
        store(self.c, at, lanes, kept + sigmoid(entry, lanes) * tanh(proposed, lanes))
        return sigmoid(output, lanes) * tanh(load(self.c, at, lanes), lanes)
