"""Reads a lowered program as a straight list of C calls whose arguments all have a place.

Input: the Relax function `main` of a `LoweredProgram`, once for each build of its kernels. Output: `Listing`, which
knows no TVM types. Rules:

1. A parameter of `main` lives in the caller's inputs, and is never written.
2. A variable that the program returns lives in the caller's outputs from the call that writes it.
3. A reshape shares its argument's place.
4. A result that is an input, a constant, or already another result is copied to its output at the end.
5. Every other variable, and every working buffer of a kernel, gets a place in the arena while it is alive; a kernel
   whose work is parted has such buffers for each thread.
6. There, a result takes the buffer of an input that is read for the last time, where the kernel works in place.
7. Constants of all builds go into one read-only block; equal bytes are stored once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from armlet.artifacts import TensorInfo
from armlet.compile.emit.kernels import PlainKernel
from armlet.compile.lowered import LoweredProgram
from armlet.compile.memory import ALIGNMENT, ArenaPlan, Lifetime, plan_arena
from armlet.errors import ArmletError
from armlet.spec.target import Variant

if TYPE_CHECKING:
    import tvm
    from tvm import relax

SMALL_CONSTANT = 64
"""Constants below this many bytes are aligned to a vector, not to a cache line."""
VECTOR = 16


@dataclass(frozen=True, slots=True)
class Place:
    """Where a buffer is.

    Attributes:
        at: index of the input or output, or offset in bytes into the constants or the arena.
    """

    kind: Literal["input", "output", "constant", "arena"]
    at: int


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a kernel.

    Attributes:
        inputs: what the kernel reads.
        outputs: what it writes: its result, then its working buffers, those of the first thread.
    """

    kernel: PlainKernel
    inputs: tuple[Place, ...]
    outputs: tuple[Place, ...]


@dataclass(frozen=True, slots=True)
class Copy:
    """Copies a result that no kernel writes to its output."""

    source: Place
    output: Place
    n_bytes: int


@dataclass(frozen=True, slots=True)
class ConstantTensor:
    """Where a constant lies in the block of constants.

    Attributes:
        at: offset in bytes.
        item_bytes: bytes of one value.
    """

    at: int
    n_bytes: int
    item_bytes: int


@dataclass(frozen=True, slots=True)
class CallList:
    """One build of a program: what the C entry calls where it has the extensions for it."""

    calls: tuple[Call, ...]
    copies: tuple[Copy, ...]
    arena: ArenaPlan


@dataclass(frozen=True, slots=True)
class Listing:
    """A program as the C entry runs it.

    Attributes:
        variants: extensions; build n needs the first n of them.
        builds: the one without any of them, then one for each.
        constants: the block of constants, with gaps that align them.
        tensors: the constants in it, in their order.
        threads: that may compute one call.
    """

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    variants: tuple[Variant, ...]
    builds: tuple[CallList, ...]
    constants: bytes
    tensors: tuple[ConstantTensor, ...]
    threads: int = 1

    @property
    def arena_bytes(self) -> int:
        """What the build with the largest arena needs."""
        return max(build.arena.arena_bytes for build in self.builds)

    @property
    def arena_lower_bound(self) -> int:
        """The largest of the builds'."""
        return max(build.arena.lower_bound for build in self.builds)


@dataclass(slots=True)
class _Value:
    """A buffer while the program is read.

    Attributes:
        first, last: calls that touch it; `last` is that of whatever takes its memory, too.
        place: None until the arena is planned.
        over: the value whose memory it takes, None where it has memory of its own.
    """

    n_bytes: int
    first: int
    last: int
    place: Place | None
    over: _Value | None = None


@dataclass(slots=True)
class _Constants:
    """The block of constants while it grows.

    Attributes:
        alignment: of all constants; None for what loads from memory want.
    """

    alignment: int | None = None
    block: bytearray = field(default_factory=bytearray)
    known: dict[bytes, int] = field(default_factory=dict)
    tensors: list[ConstantTensor] = field(default_factory=list)

    def place(self, data: bytes, item_bytes: int) -> Place:
        if data not in self.known:
            alignment = self.alignment or (ALIGNMENT if len(data) >= SMALL_CONSTANT else VECTOR)
            self.block += bytes(-len(self.block) % alignment)
            self.known[data] = len(self.block)
            self.block += data
            self.tensors.append(ConstantTensor(self.known[data], len(data), item_bytes))
        return Place("constant", self.known[data])


def thread_stride(n_bytes: int) -> int:
    """Return how far apart two threads' working buffers of so many bytes begin."""
    return -(-n_bytes // ALIGNMENT) * ALIGNMENT


def read_calls(
    programs: Sequence[LoweredProgram],
    kernels: Sequence[Sequence[PlainKernel]],
    variants: Sequence[Variant],
    threads: int = 1,
    alignment: int | None = None,
) -> Listing:
    """Read the calls of each build's `main`, plan its arena, and give every argument its place.

    Args:
        programs: of one network, one for each build.
        kernels: of each of them.
        variants: extensions that the builds behind the first need.
        threads: that kernels' work is parted among.
        alignment: of every constant and every buffer of the arena; None for what loads from memory want.

    Raises:
        ArmletError: a `main` is not in the form that `LoweredProgram` promises.
    """
    constants = _Constants(alignment)
    builds = [_Reader(*build, constants, threads).read() for build in zip(programs, kernels, strict=True)]
    first = programs[0]
    return Listing(
        first.inputs,
        first.outputs,
        tuple(variants),
        tuple(builds),
        bytes(constants.block),
        tuple(constants.tensors),
        threads,
    )


class _Reader:
    """Walks the bindings of `main` once; see the rules at the top."""

    def __init__(
        self,
        program: LoweredProgram,
        kernels: Sequence[PlainKernel],
        constants: _Constants,
        threads: int,
    ) -> None:
        self._program, self._threads = program, threads
        self._kernels = {kernel.name: kernel for kernel in kernels}
        self._values: dict[tvm.ir.Expr, _Value] = {}
        self._tuples: dict[tvm.ir.Expr, relax.Tuple] = {}
        self._calls: list[tuple[PlainKernel, list[_Value], list[_Value]]] = []
        self._constants = constants

    def read(self) -> CallList:
        main, described = self._program.module["main"], len(self._program.calls)
        _check_tensors("input", self._program.inputs, [p.ty for p in main.params])
        for index, parameter in enumerate(main.params):
            self._values[parameter] = _Value(_n_bytes(parameter.ty), 0, 0, Place("input", index))
        for block in main.body.blocks:
            for binding in block.bindings:
                self._bind(binding)
        if len(self._calls) != described:
            raise ArmletError(f"{described} calls are described, but the program has {len(self._calls)}")
        copies = self._place_outputs(main.body.body)
        arena = self._plan()
        calls = tuple(
            Call(kernel, tuple(map(_placed, inputs)), tuple(map(_placed, outputs)))
            for kernel, inputs, outputs in self._calls
        )
        return CallList(calls, copies, arena)

    def _bind(self, binding: relax.Binding) -> None:
        import tvm
        from tvm import relax

        variable, value = binding.var, binding.value
        operator = value.op.name if isinstance(value, relax.Call) and isinstance(value.op, tvm.ir.Op) else ""
        if operator == "relax.call_tir":
            self._values[variable] = self._call(value.args[0].name_hint, value.args[1].fields, variable.ty)
        elif operator == "relax.reshape":
            self._values[variable] = self._value(value.args[0])
        elif isinstance(value, relax.Var):
            self._values[variable] = self._value(value)
        elif isinstance(value, relax.Tuple):
            self._tuples[variable] = value
        else:
            raise ArmletError(
                f"the lowered program binds {variable.name} to {value}, which is no kernel call"
            )

    def _call(self, name: str, arguments: Sequence[tvm.ir.Expr], type_: relax.TensorType) -> _Value:
        at, kernel = len(self._calls), self._kernels[name]
        if len(arguments) + 1 != kernel.n_parameters:
            raise ArmletError(
                f"kernel {name} is called with {len(arguments) + 1} buffers, but has {kernel.n_parameters}"
            )
        inputs = [self._value(argument) for argument in arguments]
        for value in inputs:
            value.last = at
        working = kernel.scratch_bytes
        if kernel.turns:
            working = tuple(self._threads * thread_stride(n) for n in working)
        result, *scratch = (_Value(n, at, at, None) for n in (_n_bytes(type_), *working))
        self._calls.append((kernel, inputs, [result, *scratch]))
        return result

    def _value(self, expression: tvm.ir.Expr) -> _Value:
        import tvm

        if isinstance(expression, tvm.ir.GenericConst):
            values = expression.value.numpy()
            place = self._constants.place(values.tobytes(), values.itemsize)
            return _Value(values.nbytes, 0, 0, place)
        if expression not in self._values:
            raise ArmletError(
                f"the lowered program uses {expression}, which is neither an input nor a result"
            )
        return self._values[expression]

    def _place_outputs(self, result: tvm.ir.Expr) -> tuple[Copy, ...]:
        from tvm import relax

        result = self._tuples.get(result, result)
        fields = list(result.fields) if isinstance(result, relax.Tuple) else [result]
        _check_tensors("output", self._program.outputs, [f.ty for f in fields])
        copies: list[Copy] = []
        for index, expression in enumerate(fields):
            value, output = self._value(expression), Place("output", index)
            if value.place is None:
                value.place = output
            else:
                copies.append(Copy(value.place, output, value.n_bytes))
        return tuple(copies)

    def _plan(self) -> ArenaPlan:
        for at, (kernel, inputs, (result, *_)) in enumerate(self._calls):
            if (input_ := _overwritten(kernel, inputs, result, at)) is not None:
                result.over = input_.over or input_
                result.over.last = result.last
        written = [v for _, _, outs in self._calls for v in outs if v.place is None and v.over is None]
        alive = [Lifetime(v.n_bytes, v.first, v.last) for v in written]
        plan = plan_arena(alive, self._constants.alignment or ALIGNMENT)
        for value, offset in zip(written, plan.offsets, strict=True):
            value.place = Place("arena", offset)
        return plan


def _overwritten(kernel: PlainKernel, inputs: Sequence[_Value], result: _Value, at: int) -> _Value | None:
    """Return the first input whose memory the result may take, None where there is none; see rule 6."""
    for number in kernel.in_place:
        value = inputs[number]
        alike = value.n_bytes == result.n_bytes and value.place is result.place is None
        only_so = all(other is not value or n in kernel.in_place for n, other in enumerate(inputs))
        if alike and only_so and value.last == at:
            return value
    return None


def _placed(value: _Value) -> Place:
    place = (value.over or value).place
    if place is None:
        raise ArmletError("a buffer of the program has no place")
    return place


def _n_bytes(type_: relax.TensorType) -> int:
    return TensorInfo("", *_shape_and_dtype(type_)).n_bytes


def _shape_and_dtype(type_: relax.TensorType) -> tuple[tuple[int, ...], str]:
    return tuple(int(extent) for extent in type_.shape.values), str(type_.dtype)


def _check_tensors(what: str, promised: Sequence[TensorInfo], types: Sequence[relax.TensorType]) -> None:
    found = [_shape_and_dtype(t) for t in types]
    expected = [(t.shape, t.dtype) for t in promised]
    if found != expected:
        raise ArmletError(f"the lowered program promises the {what}s {expected}, but has {found}")
