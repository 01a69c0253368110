"""Programs of kernels alone, on drawn values: what tuning measures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from armlet.artifacts import TensorInfo
from armlet.compile.lowered import CallInfo, LoweredProgram

if TYPE_CHECKING:
    import tvm

INPUT = TensorInfo("unused", (1, 1), "float32")
"""The programs' one input, which no kernel reads and which they return: what kernels write is of no use."""


def name_of(number: int) -> str:
    """Return the name of the kernel with a number."""
    return f"kernel_{number}"


def program_of(functions: Sequence[tvm.tirx.PrimFunc]) -> LoweredProgram:
    """Return a program that calls each kernel once; parameters of one size and type read the same constant.

    Args:
        functions: kernels whose last parameter is their result; at least one.
    """
    from tvm import relax

    builder = relax.BlockBuilder()
    constants: dict[tuple[int, str], tvm.relax.Expr] = {}
    generator = np.random.default_rng(0)

    def drawn(size: int, dtype: str) -> tvm.relax.Expr:
        if (size, dtype) not in constants:
            whole = "int" in dtype
            values = generator.integers(-99, 100, size) if whole else generator.standard_normal(size)
            constants[size, dtype] = relax.const(values.astype(dtype))
        return constants[size, dtype]

    parameter = relax.Var(INPUT.name, relax.TensorType(INPUT.shape, INPUT.dtype))
    with builder.function("main", [parameter]):
        for number, function in enumerate(functions):
            name = name_of(number)
            kernel = builder.add_func(function.with_attr("global_symbol", name), name)
            *inputs, result = ((int(p.shape[0]), str(p.dtype)) for p in function.params)
            arguments = relax.Tuple([drawn(*extent) for extent in inputs])
            builder.emit(relax.call_tir(kernel, arguments, relax.TensorType((result[0],), result[1])))
        builder.emit_func_output(parameter)
    calls = tuple(CallInfo("", name_of(number), "", "", 0) for number in range(len(functions)))
    return LoweredProgram(builder.get(), calls, (), (INPUT,), (INPUT,))
