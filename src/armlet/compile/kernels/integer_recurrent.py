"""The loop over time of a recurrent layer in integers: int8 products, gates and states of 16 bits, one table.

The input's share of all gates is computed for all steps at once, by the kernel of a dense layer with an int16 result.
`quantized.recurrent.run` defines every number; the recurrent product is that of an int8 convolution of one pixel, its
groups the directions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from armlet.compile.kernels import conv2d
from armlet.compile.kernels import epilogue as ep
from armlet.compile.kernels.loops import (
    Buffer,
    Expr,
    Parameter,
    Vector,
    cast,
    clamped,
    constant,
    lanes_for,
    load,
    loop,
    prim_func,
    registers,
    store,
    tiles,
)
from armlet.compile.kernels.recurrent import GATES, Cell, Direction, Part, frames, offset, time_of
from armlet.compile.quantized.recurrent import CELL_BITS, STATE_BITS, TABLE_STEP, state_bits

if TYPE_CHECKING:
    import tvm

_LEAST, _MOST = -(2**15), 2**15 - 1
TABLE_SIZE = 513


@dataclass(frozen=True, slots=True)
class IntegerRecurrence:
    """A loop over time in integers.

    Attributes:
        steps: frames of the input, the most that are computed.
        hidden: units of one direction.
        has_length: whether a parameter says how many of the frames count.
        initial: which states are given, in float32; they start at zero where they are not.
        parts: what is written, one after the other: "y" all steps [T, D, H], "h" and "c" the last states [D, H].
        scale: of the outputs where all parts are written in float32, as states that go on must be; None for int8.
        product: from recurrent accumulators to gates.
        result: from hidden states to int8.
        multiplier: of `result`.
        weights_reach_minus_128: whether two products may overflow int16.
    """

    cell: Cell
    direction: Direction
    steps: int
    hidden: int
    has_length: bool
    initial: tuple[Part, ...]
    parts: tuple[Part, ...]
    scale: float | None
    product: ep.Requantize
    result: ep.Requantize
    multiplier: int
    weights_reach_minus_128: bool

    @property
    def directions(self) -> int:
        """Number of directions."""
        return 2 if self.direction == "bidirectional" else 1

    @property
    def rows(self) -> int:
        """Gates of one direction, all units of each."""
        return GATES[self.cell] * self.hidden

    @property
    def convolution(self) -> conv2d.Conv2d:
        """The recurrent product of all directions."""
        d = self.directions
        sizes = (1, 1, d * self.hidden, d * self.rows, (1, 1), (1, 1), d)
        return conv2d.Conv2d(*sizes, self.product, self.weights_reach_minus_128)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of all steps."""
        return self.steps * self.directions * self.rows * self.hidden

    def bits(self, part: str) -> int:
        """Return the fraction bits of a state."""
        return CELL_BITS if part == "c" else state_bits(self.cell)

    def size(self, part: str) -> int:
        """Return the elements of one part."""
        return (self.steps if part == "y" else 1) * self.directions * self.hidden


def build(spec: IntegerRecurrence, vector: Vector) -> tvm.tirx.PrimFunc:
    """Return the kernel (share, weight, bias, multipliers, table, [length], [h], [c], result).

    `share` is int16 [T, D, rows]; weight is packed as that of `spec.convolution`.
    """
    rows, tile = spec.directions * spec.rows, conv2d.tile_of(spec.convolution, vector)
    weights = rows * tile.steps(spec.convolution) * tile.unit
    parameters = [Parameter("share", spec.steps * rows, "int16"), Parameter("weight", weights, "int8")]
    parameters += [Parameter(name, rows, "int32") for name in ("bias", "multipliers")]
    parameters.append(Parameter("table", TABLE_SIZE, "int16"))
    if spec.has_length:
        parameters.append(Parameter("length", 1, "int32"))
    parameters += [Parameter(f"initial_{part}", spec.size(part), "float32") for part in spec.initial]
    kind = "int8" if spec.scale is None else "float32"
    parameters.append(Parameter("result", sum(map(spec.size, spec.parts)), kind))

    def body(*buffers: Buffer) -> None:
        _Writer(spec, vector, dict(zip((p.name for p in parameters), buffers, strict=True))).write()

    return prim_func(parameters, body)


class _Writer:
    """Writes the loops of one kernel; states and gates live in working buffers."""

    def __init__(self, spec: IntegerRecurrence, vector: Vector, buffers: dict[str, Buffer]) -> None:
        from tvm.script.ir_builder import tirx as t

        self.spec, self.vector, self.buffers = spec, vector, buffers
        self.h = t.alloc_buffer((spec.directions * spec.hidden,), "int8")
        self.gates = t.alloc_buffer((spec.rows,), "int16")
        self.state = t.alloc_buffer((spec.hidden,), "int16")
        self.memory = t.alloc_buffer((spec.hidden,), "int16") if spec.cell == "lstm" else None

    def write(self) -> None:
        from tvm import tirx
        from tvm.script.ir_builder import tirx as t

        spec = self.spec
        n = frames(spec.steps, self.buffers)
        with loop(spec.directions) as d:
            self._start(d)
            with t.serial(0, n) as step:
                self._step(d, step, n)
            for part in spec.parts:  # in this order: the same layer gives the same code
                if part != "y":
                    self._copy_out(part, offset(spec, part) + d * spec.hidden, d)
        if spec.has_length and "y" in spec.parts:
            row = spec.directions * spec.hidden
            nothing = (
                constant(spec.result.zero, "int8", 1) if spec.scale is None else constant(0.0, "float32", 1)
            )
            with t.serial(0, (tirx.const(spec.steps, "int32") - n) * row) as at:
                store(self.buffers["result"], n * row + at, 1, nothing)

    def _start(self, d: Expr) -> None:
        """Write the states before the first frame."""
        from tvm import tirx

        spec, lanes = self.spec, lanes_for(self.spec.hidden, self.vector.lanes("float32"))
        for part, state in (("h", self.state), ("c", self.memory)):
            if state is None:
                continue
            given = self.buffers.get(f"initial_{part}")
            with tiles(spec.hidden, lanes) as (_, at):
                value = constant(0, "int16", lanes)
                if given is not None:
                    unit = constant(2.0 ** spec.bits(part), "float32", lanes)
                    scaled = tirx.nearbyint(load(given, d * spec.hidden + at, lanes) * unit)
                    value = cast(clamped(scaled, _LEAST, _MOST, "float32", lanes), "int16", lanes)
                store(state, at, lanes, value)
        self._requantize(d)

    def _requantize(self, d: Expr) -> None:
        """Write the int8 form of the hidden state."""
        spec, lanes = self.spec, lanes_for(self.spec.hidden, self.vector.lanes("int16"))
        wide = registers(lanes, "int32")
        with tiles(spec.hidden, lanes) as (_, at):
            store(wide, 0, lanes, load(self.state, at, lanes, "int32"))
            multipliers = lambda _, k: constant(spec.multiplier, "int32", k)  # noqa: E731
            value = ep.finished(spec.result, (wide, 0), lanes, multipliers, self.vector)
            store(self.h, d * spec.hidden + at, lanes, value)

    def _copy_out(self, part: str, place: Expr, d: Expr) -> None:
        """Write a state, or the outputs of a step, to the result."""
        spec, zero = self.spec, self.spec.result.zero
        lanes = lanes_for(spec.hidden, self.vector.lanes("int8" if spec.scale is None else "float32"))
        with tiles(spec.hidden, lanes) as (_, at):
            if spec.scale is None:
                value = load(self.h, d * spec.hidden + at, lanes)
            elif part == "y":
                shifted = load(self.h, d * spec.hidden + at, lanes, "int32") - constant(zero, "int32", lanes)
                value = cast(shifted, "float32", lanes) * constant(spec.scale, "float32", lanes)
            else:
                state = load(self.memory if part == "c" else self.state, at, lanes, "float32")
                value = state * constant(2.0 ** -spec.bits(part), "float32", lanes)
            store(self.buffers["result"], place + at, lanes, value)

    def _step(self, d: Expr, step: Expr, n: Expr) -> None:
        spec = self.spec
        time = time_of(spec.direction, d, step, n)
        row = time * spec.directions + d
        self._product(d)
        self._add_shares(row * spec.rows)
        with loop(spec.hidden) as unit:
            store(self.state, unit, 1, cast(self._cell(row * spec.rows, unit), "int16", 1))
        self._requantize(d)
        if "y" in spec.parts:
            self._copy_out("y", row * spec.hidden, d)

    def _product(self, d: Expr) -> None:
        """Write the recurrent product's part of all gates."""
        spec, convolution = self.spec, self.spec.convolution
        tile = conv2d.tile_of(convolution, self.vector)
        acc = registers(tile.channels, "int32")
        with tiles(spec.rows, tile.channels) as (_, row):
            first = d * spec.rows + row
            for at in range(0, tile.channels, tile.lanes):
                store(acc, at, tile.lanes, load(self.buffers["bias"], first + at, tile.lanes))
            conv2d.reduce(convolution, tile, (self.h, self.buffers["weight"], acc), (d, row, 0, 0))
            for at in range(0, tile.channels, tile.lanes):
                multipliers = conv2d.multipliers(first + at, [self.buffers["multipliers"]])
                value = ep.finished(spec.product, (acc, at), tile.lanes, multipliers, self.vector)
                store(self.gates, row + at, tile.lanes, value)

    def _add_shares(self, row: Expr) -> None:
        """Add the input's share to the gates, but to a gru's proposed state, which the reset gate scales first."""
        width = 2 * self.spec.hidden if self.spec.cell == "gru" else self.spec.rows
        lanes = lanes_for(width, self.vector.lanes("int16"))
        if width % lanes:  # a tile that is moved back would add twice
            lanes = width & -width
        with loop(width // lanes) as number:
            at = number * lanes
            total = load(self.gates, at, lanes, "int32") + load(
                self.buffers["share"], row + at, lanes, "int32"
            )
            store(self.gates, at, lanes, cast(clamped(total, _LEAST, _MOST, "int32", lanes), "int16", lanes))

    def _gate(self, number: int, unit: Expr) -> Expr:
        return cast(self.gates[number * self.spec.hidden + unit], "int32", 1)

    def _cell(self, row: Expr, unit: Expr) -> Expr:
        """Return the new hidden state of a unit, int32; the cell state is stored here."""
        if self.memory is not None:
            memory = cast(self.memory[unit], "int32", 1)
            kept = _rounded(self._sigmoid(self._gate(2, unit)) * memory, STATE_BITS)
            added = self._sigmoid(self._gate(0, unit)) * self._tanh(self._gate(3, unit) * 2)
            total = kept + _rounded(added, 2 * STATE_BITS - CELL_BITS)
            store(self.memory, unit, 1, cast(clamped(total, _LEAST, _MOST, "int32", 1), "int16", 1))
            out = self._sigmoid(self._gate(1, unit)) * self._tanh(cast(self.memory[unit], "int32", 1))
            return _rounded(out, STATE_BITS)
        if self.spec.cell == "gru":
            reset = self._sigmoid(self._gate(1, unit))
            share = cast(self.buffers["share"][row + 2 * self.spec.hidden + unit], "int32", 1)
            inner = clamped(
                share + _rounded(reset * self._gate(2, unit), STATE_BITS), _LEAST, _MOST, "int32", 1
            )
            proposed = registers(1, "int32")
            store(proposed, 0, 1, self._tanh(inner * 2))
            difference = cast(self.state[unit], "int32", 1) - proposed[0]
            return proposed[0] + _rounded(self._sigmoid(self._gate(0, unit)) * difference, STATE_BITS)
        total = self._gate(0, unit)
        return self._tanh(total * 2) if self.spec.cell == "rnn_tanh" else clamped(total, 0, None, "int32", 1)

    def _tanh(self, x: Expr) -> Expr:
        """Return the hyperbolic tangent of 11 fraction bits in 2^-15, int32."""
        table = self.buffers["table"]
        place = registers(1, "int32")
        store(place, 0, 1, clamped(x, -(2**14), 2**14 - 1, "int32", 1) + 2**14)
        entry, rest = place[0] >> TABLE_STEP, place[0] & ((1 << TABLE_STEP) - 1)
        low, high = cast(table[entry], "int32", 1), cast(table[entry + 1], "int32", 1)
        found = registers(1, "int32")
        store(found, 0, 1, low + _rounded((high - low) * rest, TABLE_STEP))
        return found[0]

    def _sigmoid(self, x: Expr) -> Expr:
        return (self._tanh(x) + 2**15) >> 1


def _rounded(x: Expr, shift: int) -> Expr:
    return (x + (1 << (shift - 1))) >> shift
