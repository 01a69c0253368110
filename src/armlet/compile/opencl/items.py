"""The few words that kernels for GPUs are written in, beside those of `kernels.loops`: work items and their places.

A kernel is one function that runs once for each work item; nearly all give one element of the result to each. Values
lie in row-major order, so that neighbouring items read and write neighbouring elements. Real numbers are added up and
computed on in float32, whatever they are in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from armlet.compile.kernels.loops import Buffer, Expr, Parameter, cast, ceil_div, constant, prim_func, store

if TYPE_CHECKING:
    import tvm

WORK_GROUP = 64
"""Items of a work group: a wavefront of Adreno's, four of Mali's; every GPU takes as many."""
LOCAL_BYTES = 32 * 1024
"""Local memory of a work group that every device of OpenCL's full profile has."""


@contextmanager
def grouped(n_groups: int) -> Iterator[tuple[Expr, Expr]]:
    """Give the numbers of the work group and of the item in it."""
    from tvm.script.ir_builder import tirx as t

    with (
        t.thread_binding(n_groups, thread="blockIdx.x") as group,
        t.thread_binding(WORK_GROUP, thread="threadIdx.x") as item,
    ):
        yield group, item


@contextmanager
def where(condition: Expr) -> Iterator[None]:
    """Do what follows only where the condition holds."""
    from tvm.script.ir_builder import tirx as t

    with t.If(condition), t.Then():
        yield


def per_item(parameters: Sequence[Parameter], n: int, body: Callable[..., None]) -> tvm.tirx.PrimFunc:
    """Return the kernel that runs `body` for each of `n` items, given the item's number and the buffers."""

    def whole(*buffers: Buffer) -> None:
        with grouped(ceil_div(n, WORK_GROUP)) as (group, number):
            at = group * WORK_GROUP + number
            if n % WORK_GROUP == 0:
                body(at, *buffers)
            else:
                with where(at < n):
                    body(at, *buffers)

    return prim_func(parameters, whole)


def places(at: Expr, extents: Sequence[int]) -> list[Expr]:
    """Return the index along each dimension of element number `at` of a row-major tensor."""
    found: list[Expr] = []
    for extent in reversed(extents[1:]):
        found.append(at % extent if extent > 1 else 0)
        at = at // extent if extent > 1 else at
    return [at if extents[0] > 1 else 0, *reversed(found)]


def real(value: Expr) -> Expr:
    """Return a number in float32."""
    return value if str(value.ty.dtype) == "float32" else cast(value, "float32", 1)


def put(buffer: Buffer, at: Expr, value: Expr) -> None:
    """Store a float32 number in the buffer's type."""
    store(buffer, at, 1, value if str(buffer.dtype) == "float32" else cast(value, str(buffer.dtype), 1))


def number(value: float) -> Expr:
    """Return a constant in float32."""
    return constant(value, "float32", 1)


def choose(condition: Expr, value: Expr, other: Expr) -> Expr:
    """Return `value` where the condition holds, which is read only there, else `other`."""
    from tvm import tirx

    return tirx.if_then_else(condition, value, other)


def sigmoid(x: Expr) -> Expr:
    """Return 1 / (1 + e^-x)."""
    from tvm import tirx

    return number(1.0) / (number(1.0) + tirx.exp(number(0.0) - x))


def barrier() -> None:
    """Let the items of a work group wait for each other."""
    from tvm import tirx
    from tvm.script.ir_builder import tirx as t

    t.evaluate(tirx.call_intrin("int32", "tirx.tvm_storage_sync", "shared"))


def shared(size: int) -> Buffer:
    """Return float32 memory of a work group."""
    from tvm.script.ir_builder import tirx as t

    return t.alloc_buffer((size,), "float32", scope="shared")
