"""What int8 matrix products (smmla) save beside dot products (sdot): instructions and modelled cycles of one inference.

    python benchmarks/products.py run                  # every network; some minutes
    python benchmarks/products.py run mobilenet-v1
    python benchmarks/products.py table                # docs/performance.md's table, from kept results

Each network of benchmarks/latency.py, in INT8, is compiled for a target twice: as it is, and for the same core without
i8mm. Both programs must give the same bits. Instructions are counted under emulation; cycles are those of LLVM's core
model, without misses. No such core has run either program.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np

import keeping
import latency
import tables
from armlet.artifacts import Counts
from armlet.bench.cycles import count_cycles
from armlet.compile.pipeline import compile_onnx
from armlet.devices.emulator import Emulator
from armlet.export.onnx import to_onnx, write_onnx
from armlet.spec.load import load_target
from armlet.units import format_count

RESULTS = latency.ROOT / "benchmarks" / "results" / "products"
TARGET = "aws-graviton3"
NETWORKS = ("cnn-fashion-mnist", "encoder-4x128", "mobilenet-v1", "mobilenet-v2", "resnet-18")


def measure(name: str) -> dict[str, object]:
    """Count one inference of a network with either instruction."""
    network, some = latency.network_of(name)
    network = latency.quantized(network, some)
    target = load_target(TARGET)
    without = target.model_copy(update={"features": tuple(f for f in target.features if f != "i8mm")})
    found: dict[str, object] = {"recipe": name, "target": TARGET}
    answers = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_onnx(to_onnx(network), folder / "model.onnx")
        for step, board in (("sdot", without), ("smmla", target)):
            compiled = compile_onnx(folder / "model.onnx", board, "network", folder / step)
            runner, emulator = folder / step / "bin" / "run", Emulator(board)
            answers.append(emulator.run_all(runner, (some[:1],), compiled.outputs)[0])
            counts = count_cycles(emulator.count(runner, some[:1], simulate_caches=False), runner, board)
            macs = sum(kernel.macs for kernel in compiled.kernels if kernel.schedule == step)
            found |= {"model": counts.core_model, step: _told(counts, macs, compiled.size_bytes)}
            found["macs"] = sum(kernel.macs for kernel in compiled.kernels)
    if not np.array_equal(*answers):
        raise SystemExit(f"{name}: the two programs answer otherwise")
    return found


def _told(counts: Counts, macs: int, size_bytes: int) -> dict[str, object]:
    return {
        "instructions": counts.instructions,
        "cycles": round(counts.cycles),
        "macs": macs,
        "size_bytes": size_bytes,
    }


def table(results: list[dict]) -> str:
    """Return the page's table in Markdown."""
    lines = [
        "| network, INT8 | MACs | by smmla | instructions: sdot | smmla | modelled cycles: sdot | smmla | ratio |",
        "|---" * 8 + "|",
    ]
    for result in results:
        before, after = result["sdot"], result["smmla"]
        counted = [
            format_count(either[what]) for what in ("instructions", "cycles") for either in (before, after)
        ]
        lines.append(
            f"| {result['recipe']} | {format_count(result['macs'])} | {after['macs'] / result['macs']:.0%} "
            f"| {' | '.join(counted)} | {after['cycles'] / before['cycles']:.2f} |"
        )
    return "\n".join(lines)


def with_table(document: str) -> str:
    """Return the page's text with its table made anew."""
    return tables.with_table(document, "products", table(keeping.kept(RESULTS)))


def main() -> None:
    """Count networks, or write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    runner = verbs.add_parser("run", help="count networks and keep the results")
    runner.add_argument("networks", nargs="*", help=f"all by default: {', '.join(NETWORKS)}")
    verbs.add_parser("table", help="write the table in docs/performance.md")
    given = parser.parse_args()
    if given.verb == "run":
        for name in given.networks or NETWORKS:
            result = measure(name)
            keeping.keep(RESULTS, result)
            print(table([result]), file=sys.stderr, flush=True)
    page = latency.PAGE
    page.write_text(with_table(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
