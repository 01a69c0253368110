"""The calls of a compiled program, one row each: what was compiled, joined with what was counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from armlet.artifacts import Compiled, Measured


@dataclass(frozen=True, slots=True)
class KernelRow:
    """One call of a kernel, or what was counted outside any kernel; sums over all rows are the program's.

    Attributes:
        symbol: C symbol; calls of one symbol share one kernel.
        layers: names of the ONNX nodes that the call does; empty outside any kernel.
        dtype, shape, layout: of the result; see `armlet.artifacts.Kernel`.
        tile, tuned: how the kernel is cut up, and whether a table says so; see `armlet.artifacts.Kernel`.
        code_bytes: of the kernel; 0 for a call whose kernel an earlier row has counted; None where not known.
        constant_bytes: of the constants that this call reads and no earlier one; None where not known.
        n_calls: calls that share the kernel.
        instructions, cycles: counted and modelled; those of a kernel are shared out evenly among its calls; None where
            not known.
        share: of the program's modelled cycles.
    """

    symbol: str
    op: str
    layers: tuple[str, ...]
    schedule: str
    precision: str
    dtype: str
    shape: tuple[int, ...]
    layout: str
    macs: int
    code_bytes: int | None
    constant_bytes: int | None
    tile: str = ""
    tuned: bool = False
    n_calls: int = 1
    instructions: int | None = None
    cycles: float | None = None
    share: float | None = None


def kernel_rows(compiled: Compiled, measured: Measured) -> tuple[KernelRow, ...]:
    """Return the calls of the build that ran in their order; what was counted outside any kernel comes last."""
    kernels, counts = compiled.kernels_of(measured.variant), measured.counts
    counted = {kernel.symbol: kernel for kernel in counts.kernels} if counts else {}
    total, n_calls = counts.cycles if counts else 0.0, Counter(kernel.symbol for kernel in kernels)
    seen: set[str] = set()
    rows = []
    for kernel in kernels:
        cost, n = counted.get(kernel.symbol), n_calls[kernel.symbol]
        rows.append(
            KernelRow(
                kernel.symbol,
                kernel.op,
                (kernel.layer, *kernel.joined),
                kernel.schedule,
                kernel.precision,
                kernel.dtype,
                kernel.shape,
                kernel.layout,
                kernel.macs,
                0 if kernel.symbol in seen and kernel.code_bytes is not None else kernel.code_bytes,
                kernel.constant_bytes,
                kernel.tile,
                kernel.tuned,
                n,
                round(cost.instructions / n) if cost else None,
                cost.cycles / n if cost else None,
                cost.cycles / n / total if cost and total else None,
            )
        )
        seen.add(kernel.symbol)
    others = (cost for symbol, cost in counted.items() if symbol not in seen)
    rest = (
        KernelRow(c.symbol, "–", (), "–", "–", "", (), "", 0, None, None, instructions=c.instructions,
                  cycles=c.cycles, share=c.cycles / total if total else None)
        for c in others
    )  # fmt: skip
    return (*rows, *rest)


def shared_kernels(rows: Iterable[KernelRow]) -> str:
    """Say which kernels several calls share, or nothing."""
    found = {row.symbol: row.n_calls for row in rows if row.n_calls > 1}
    if not found:
        return ""
    names = ", ".join(f"{symbol} ({n} calls)" for symbol, n in found.items())
    return f"shared kernels, whose code is counted once and whose cycles are shared out evenly: {names}"
