"""The loop over time of a recurrent layer as one kernel: a work group for each direction, an item for every 64th unit.

States lie in the work group's local memory, and its items wait for each other in every step; so a layer is started
once, however many steps it has. The cells are those of `kernels.recurrent`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from armlet.compile.frontend.values import Array
from armlet.compile.kernels.loops import (
    Buffer,
    Expr,
    Vector,
    ceil_div,
    loop,
    prim_func,
    registers,
    store,
)
from armlet.compile.kernels.recurrent import Recurrence, frames, offset, parameters_of, time_of
from armlet.compile.opencl.items import (
    WORK_GROUP,
    barrier,
    grouped,
    number,
    put,
    real,
    shared,
    sigmoid,
    where,
)

if TYPE_CHECKING:
    import tvm


def local_bytes(spec: Recurrence) -> int:
    """Return the local memory that a layer takes: two hidden states, a cell state, and a factored product."""
    states = 3 if spec.cell == "lstm" else 2
    return 4 * (states * spec.hidden + (spec.rank or 0))


def pack(weight: Array) -> Array:
    """Return weights [D, outputs, inputs] as [D, inputs, outputs], flat: neighbouring items read neighbours."""
    return np.ascontiguousarray(weight.transpose(0, 2, 1)).reshape(-1)


def build(spec: Recurrence, vector: Vector) -> tvm.tirx.PrimFunc:
    """Return the kernel (x, product, ..., [bias], [length], [h], [c], result), as `kernels.recurrent.build`."""
    parameters = parameters_of(spec, vector)

    def body(*buffers: Buffer) -> None:
        named = dict(zip((p.name for p in parameters), buffers, strict=True))
        with grouped(spec.directions) as (group, item):
            _Writer(spec, named, group if spec.directions > 1 else 0, item).write()

    return prim_func(parameters, body)


class _Writer:
    """Writes the loops of one direction, for one item."""

    def __init__(self, spec: Recurrence, buffers: dict[str, Buffer], d: Expr, item: Expr) -> None:
        self.spec, self.buffers, self.d, self.item = spec, buffers, d, item
        self.h, self.next = shared(spec.hidden), shared(spec.hidden)
        self.c: Buffer = shared(spec.hidden) if spec.cell == "lstm" else None
        self.factor = None if spec.rank is None else shared(spec.rank)
        self.sums = registers(spec.gates // spec.hidden, "float32")

    def write(self) -> None:
        from tvm.script.ir_builder import tirx as t

        spec = self.spec
        n = frames(spec.steps, self.buffers)
        with self._own(spec.hidden) as unit:
            self._start(unit)
        barrier()
        with t.serial(0, n) as step:
            self._step(time_of(spec.direction, self.d, step, n))
        with self._own(spec.hidden) as unit:
            for part, state in (("h", self.h), ("c", self.c)):
                if part in spec.parts:
                    place = offset(spec, part) + self.d * spec.hidden + unit
                    put(self.buffers["result"], place, state[unit])
        if spec.has_length and "y" in spec.parts:
            with loop(spec.steps) as late, where(late >= n), self._own(spec.hidden) as unit:
                put(
                    self.buffers["result"],
                    (late * spec.directions + self.d) * spec.hidden + unit,
                    number(0.0),
                )

    @contextmanager
    def _own(self, n: int) -> Iterator[Expr]:
        """Loop over this item's share of `n` units."""
        with loop(ceil_div(n, WORK_GROUP)) as turn:
            unit = turn * WORK_GROUP + self.item
            if n % WORK_GROUP == 0:
                yield unit
            else:
                with where(unit < n):
                    yield unit

    def _start(self, unit: Expr) -> None:
        for part, state in (("h", self.h), ("c", self.c)):
            if state is not None:
                given = self.buffers.get(f"initial_{part}")
                first = number(0.0) if given is None else real(given[self.d * self.spec.hidden + unit])
                store(state, unit, 1, first)

    def _step(self, time: Expr) -> None:
        spec, source, (inputs, _) = self.spec, self.h, self.spec.products[-1]
        if self.factor is not None:
            with self._own(spec.rank or 0) as at:
                self._product(0, self.h, (at,), spec.hidden)
                store(self.factor, at, 1, self.sums[0])
            barrier()
            source = self.factor
        row = time * spec.directions + self.d
        with self._own(spec.hidden) as unit:
            gates = [gate * spec.hidden + unit for gate in range(spec.gates // spec.hidden)]
            self._product(len(spec.products) - 1, source, gates, inputs)
            store(self.next, unit, 1, self._cell(row * spec.gates + unit, unit))
        barrier()
        with self._own(spec.hidden) as unit:
            store(self.h, unit, 1, self.next[unit])
            if "y" in spec.parts:
                put(self.buffers["result"], row * spec.hidden + unit, self.next[unit])
        barrier()

    def _product(
        self, number_: int, source: Buffer, columns: tuple[Expr, ...] | list[Expr], inputs: int
    ) -> None:
        """Leave in the item's sums, for some columns, their weights times the source, with the recurrent bias."""
        spec, weight = self.spec, self.buffers[f"product{number_}"]
        width = spec.products[number_][1]
        bias = self.buffers.get("bias") if number_ == len(spec.products) - 1 else None
        for i, column in enumerate(columns):
            store(self.sums, i, 1, number(0.0) if bias is None else real(bias[self.d * width + column]))
        with loop(inputs) as k:
            for i, column in enumerate(columns):
                product = real(weight[(self.d * inputs + k) * width + column]) * source[k]
                store(self.sums, i, 1, self.sums[i] + product)

    def _cell(self, share: Expr, unit: Expr) -> Expr:
        """Return the new hidden state of a unit; the cell state is stored here."""
        from tvm import tirx

        spec, x = self.spec, self.buffers["x"]

        def gate(n: int) -> Expr:
            return self.sums[n] + real(x[share + n * spec.hidden])

        match spec.cell:
            case "lstm":
                kept = sigmoid(gate(2)) * self.c[unit]
                store(self.c, unit, 1, kept + sigmoid(gate(0)) * tirx.tanh(gate(3)))
                return sigmoid(gate(1)) * tirx.tanh(self.c[unit])
            case "gru":
                inner = sigmoid(gate(1)) * self.sums[2] + real(x[share + 2 * spec.hidden])
                proposed = tirx.tanh(inner)
                return proposed + sigmoid(gate(0)) * (self.h[unit] - proposed)
            case "rnn_tanh":
                return tirx.tanh(gate(0))
            case "rnn_relu":
                return tirx.max(gate(0), number(0.0))
