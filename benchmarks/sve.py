"""What SVE does to armlet's float32 kernels: instructions and modelled cycles beside NEON, for 128 and 256 bits.

    python benchmarks/sve.py run      # half a minute
    python benchmarks/sve.py table    # docs/performance.md's table, from the kept result

Every kernel is built three ways: for NEON; for SVE2 registers of 128 bits, which phones have (Cortex-X2 to X4, Neoverse
V2); and, cut for twice the width, for SVE registers of 256 bits (Neoverse V1, Graviton3). LLVM keeps vectors of a
fixed length in SVE registers where it is told their length. Instructions are counted under emulation; cycles are those
of LLVM's core models, without misses. armlet itself has no such option.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import tvm

import latency
import tables
from armlet.bench.cycles import count_cycles
from armlet.compile.alone import INPUT, name_of, program_of
from armlet.compile.emit import emit_program, kernels
from armlet.compile.kernels import conv2d, depthwise, elementwise
from armlet.compile.kernels.epilogue import FloatClamp
from armlet.compile.kernels.loops import Vector, vector_of
from armlet.devices.emulator import Emulator
from armlet.spec.load import load_target
from armlet.spec.target import Target
from armlet.units import format_count

RESULT = latency.ROOT / "benchmarks" / "results" / "sve.json"
RELU, ONE = FloatClamp(0.0, None), (1, 1)
KERNELS = {
    "1×1 convolution, 14×14, 128 to 128": (conv2d.Conv2d(1, 196, 128, 128, ONE, ONE, 1, RELU), conv2d.build),
    "3×3 convolution, 14×14, 32 to 64": (conv2d.Conv2d(16, 16, 32, 64, (3, 3), ONE, 1, RELU), conv2d.build),
    "linear layer, 256 to 128": (conv2d.Conv2d(1, 1, 256, 128, ONE, ONE, 1, RELU), conv2d.build),
    "depthwise 3×3, 14×14, 64": (depthwise.Depthwise(16, 16, 64, (3, 3), ONE, RELU), depthwise.build),
    "sum of two values, 4096": (elementwise.FloatSum(4096, 2, RELU), elementwise.build_float_sum),
}
NEON = ("neon", "dotprod", "fp16", "i8mm")
WAYS: dict[str, tuple[str, int]] = {
    "neoverse-v2, NEON": ("neoverse-v2", 0),
    "neoverse-v2, SVE 128": ("neoverse-v2", 128),
    "neoverse-v1, NEON": ("neoverse-v1", 0),
    "neoverse-v1, SVE 256": ("neoverse-v1", 256),
}
"""Core, and the length of its SVE registers in bits; 0 for NEON."""


def measure() -> dict[str, dict[str, dict[str, int]]]:
    """Count and cost every kernel in every way: {way: {kernel: {"instructions", "cycles"}}}."""
    return {way: _counted(*asked) for way, asked in WAYS.items()}


def _counted(core: str, bits: int) -> dict[str, dict[str, int]]:
    target, vector = _target(core, bits)
    usual = kernels.llvm_target

    def of_length(target: Target) -> tvm.target.Target:
        length = [f"-aarch64-sve-vector-bits-{end}:uint={bits}" for end in ("min", "max")]
        settings = {key: usual(target).attrs[key] for key in ("mtriple", "mcpu", "mattr", "opt-level")}
        options = [*usual(target).attrs["cl-opt"], *length]
        return tvm.target.Target({"kind": "llvm", **settings, "cl-opt": options})

    kernels.llvm_target = of_length
    try:
        with tempfile.TemporaryDirectory() as scratch:
            functions = [build(spec, vector) for spec, build in KERNELS.values()]
            emit_program([program_of(functions)], target, "sve", Path(scratch))
            runner, sample = Path(scratch) / "bin" / "run", np.zeros(INPUT.shape, INPUT.dtype)
            blocks = Emulator(target).count(runner, sample, simulate_caches=False)
            counts = {kernel.symbol: kernel for kernel in count_cycles(blocks, runner, target).kernels}
    finally:
        kernels.llvm_target = usual
    found = (counts[f"sve_{name_of(number)}"] for number in range(len(KERNELS)))
    return {
        name: {"instructions": kernel.instructions, "cycles": round(kernel.cycles)}
        for name, kernel in zip(KERNELS, found, strict=True)
    }


def _target(core: str, bits: int) -> tuple[Target, Vector]:
    """Return a target, emulated with registers of that length, and the vector unit that kernels are cut for."""
    base = load_target("aws-graviton3")
    cpu = f"max,sve{bits}=on,sve{2 * bits}=off" if bits else "max"
    target = base.model_copy(
        update={
            "core": base.core.model_copy(update={"llvm_cpu": core, "cost_model": core}),
            "features": (*NEON, "sve") if bits else NEON,
            "emulator": base.emulator.model_copy(update={"cpu": cpu}) if base.emulator else None,
        }
    )
    # Multiplications by one lane pick it within 128 bits: with wider registers each input is loaded into all lanes.
    vector = vector_of(target)
    return target, vector if bits <= 128 else replace(vector, n_bytes=bits // 8, by_lane=False)


def table(result: dict[str, dict[str, dict[str, int]]]) -> str:
    """Return the page's table in Markdown."""
    lines = [f"| kernel, float32 | {' | '.join(result)} | SVE 256 over NEON: cycles |", "|---" * 6 + "|"]
    for name in KERNELS:
        counted = [result[way][name] for way in result]
        cells = [f"{format_count(c['instructions'])}, {format_count(c['cycles'])}" for c in counted]
        lines.append(f"| {name} | {' | '.join(cells)} | {counted[3]['cycles'] / counted[2]['cycles']:.2f} |")
    return "\n".join(lines)


def with_table(document: str) -> str:
    """Return the page's text with its table made anew."""
    return tables.with_table(document, "sve", table(json.loads(RESULT.read_text(encoding="utf-8"))))


def main() -> None:
    """Count the kernels, or write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("verb", choices=("run", "table"))
    if parser.parse_args().verb == "run":
        result = measure()
        RESULT.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        print(table(result), file=sys.stderr)
    latency.PAGE.write_text(with_table(latency.PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
