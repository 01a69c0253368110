"""Working memory of networks, and how much of it is saved by which step of the plan.

    python benchmarks/arena.py run                     # every network, float32 and INT8; minutes
    python benchmarks/arena.py run mobilenet-v2
    python benchmarks/arena.py table                   # docs/performance.md's table, from kept results

Networks are those of `latency.py` and the remaining recipes', unpruned, with random weights, which memory does not
depend on, compiled for one board; none runs. Results are kept in benchmarks/results/arena/.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import keeping
import latency
import tables
from armlet.compile.emit.calls import read_calls
from armlet.compile.emit.kernels import PlainKernel, build_variants
from armlet.compile.memory import ArenaPlan
from armlet.compile.pipeline import lower_builds
from armlet.export.onnx import to_onnx, write_onnx
from armlet.spec.load import load_target
from armlet.units import format_bytes

RESULTS = Path(__file__).parent / "results" / "arena"
PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
BOARD = "raspberry-pi-4"
PICTURE = (1, 28, 28)
latency.NETWORKS |= {
    "autoencoder-fashion-mnist": (
        "autoencoder",
        {"channels": [12, 24, 48], "code": 0, "shortcuts": True},
        latency.pictures(*PICTURE),
        PICTURE,
    ),
    "autoencoder-shuttle": ("autoencoder", {"hidden": [32], "code": 3}, latency.pictures(9), (9,)),
    "gan-fashion-mnist": ("gan", {"channels": [96, 48]}, latency.pictures(64), PICTURE),
}


def measure(name: str, precision: str) -> dict[str, object]:
    """Plan the memory of one network in one precision, with and without kernels that work in place."""
    network, some = latency.network_of(name)
    network = latency.quantized(network, some) if precision == "int8" else network
    board = load_target(BOARD)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_onnx(to_onnx(network), folder / "model.onnx")
        programs = lower_builds(folder / "model.onnx", board.builds)
        _, kernels = build_variants([p.module for p in programs], board, "net", folder)

    def plan(build: Sequence[PlainKernel]) -> ArenaPlan:
        return read_calls(programs, [build], ()).builds[0].arena

    apart = plan([replace(kernel, in_place=()) for kernel in kernels[0]])
    planned = plan(kernels[0])
    return {
        "recipe": f"{name}-{precision}",
        "network": name,
        "precision": precision,
        "buffers": len(apart.buffers),
        "sum_bytes": sum(buffer.n_bytes for buffer in apart.buffers),
        "apart_bytes": apart.arena_bytes,
        "arena_bytes": planned.arena_bytes,
        "lower_bound": planned.lower_bound,
    }


def table(results: list[dict]) -> str:
    """Return the page's table in Markdown."""
    lines = [
        "| network | precision | every buffer by itself | shared | shared, in place | above the least possible |",
        "|---|---|---|---|---|---|",
    ]
    for result in results:
        sizes = [format_bytes(result[key]) for key in ("sum_bytes", "apart_bytes", "arena_bytes")]
        excess = result["arena_bytes"] / result["lower_bound"] - 1
        lines.append(
            f"| {result['network']} | {result['precision']} | {' | '.join(sizes)} | {excess * 100:.2g} % |"
        )
    return "\n".join(lines)


def with_table(document: str) -> str:
    """Return the page's text with its table made anew."""
    return tables.with_table(document, "arena", table(keeping.kept(RESULTS)))


def main() -> None:
    """Plan networks, or write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    runner = verbs.add_parser("run", help="plan networks and keep the results")
    runner.add_argument("networks", nargs="*", help=f"all by default: {', '.join(latency.NETWORKS)}")
    verbs.add_parser("table", help="write the table in docs/performance.md")
    given = parser.parse_args()
    if given.verb == "run":
        for name in given.networks or latency.NETWORKS:
            for precision in latency.PRECISIONS:
                keeping.keep(RESULTS, measure(name, precision))
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
