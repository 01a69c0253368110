"""Work of one inference on Arm cores, armlet's programs beside other runtimes': instructions and modelled cycles.

    python benchmarks/arm_counts.py run                       # every network and board; two hours, needs armlet[peers]
    python benchmarks/arm_counts.py run mobilenet-v1 --board raspberry-pi-5 --precision int8
    python benchmarks/arm_counts.py run --own                 # armlet alone, with what is kept of the others
    python benchmarks/arm_counts.py table                     # docs/performance.md's table, from kept results

Each network of benchmarks/latency.py runs on the emulated core, one thread, once to warm up and once counted:
armlet's program, and the aarch64 wheels of ONNX Runtime, LiteRT and ncnn in an aarch64 Python (`arm_peers`). In INT8
the same quantised network goes to every runtime that has a form for it. Instructions are exact; cycles are those of
LLVM's core model for the same blocks, without cache or branch misses. What answers otherwise than armlet is left out.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import arm_peers
import keeping
import latency
import runtimes
import tables
from armlet.analysis.cost import cost_of
from armlet.bench.cycles import count_cycles
from armlet.compile.pipeline import compile_onnx
from armlet.devices.base import BlockCounts
from armlet.devices.emulator import Emulator
from armlet.errors import ArmletError
from armlet.export.litert import write_litert
from armlet.export.onnx import to_onnx, write_onnx
from armlet.spec.load import load_target
from armlet.spec.target import Target
from armlet.units import format_count

RESULTS = latency.ROOT / "benchmarks" / "results" / "arm_counts"
BOARDS = ("raspberry-pi-4", "raspberry-pi-5")
NETWORKS = ("cnn-fashion-mnist", "mobilenet-v1", "mobilenet-v2", "resnet-18")
PEERS = ("litert", "ncnn", "onnxruntime")


def measure(name: str, board: str, precision: str, peers: tuple[str, ...] = PEERS) -> dict[str, object]:
    """Count one inference of a network in armlet and in every one of `peers` that has a form for it."""
    network, some = latency.network_of(name)
    macs, target = cost_of(network).macs, load_target(board)
    network = latency.quantized(network, some) if precision == "int8" else network
    counted: dict[str, dict[str, int]] = {}
    missing: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_onnx(to_onnx(network), folder / "model.onnx")
        compiled = compile_onnx(folder / "model.onnx", target, "network", folder / "armlet")
        runner, emulator = folder / "armlet" / "bin" / "run", Emulator(target)
        (expected,) = emulator.run_all(runner, (some[:1],), compiled.outputs)
        blocks = emulator.count(runner, some[:1], simulate_caches=False)
        counted["armlet"], model = _costed(blocks, runner, target)
        for peer in peers:
            try:
                blocks, answer = arm_peers.count(peer, _form(peer, folder, precision), some[:1], target)
                runtimes.check_answer(answer, expected)
                counted[peer], _ = _costed(blocks, arm_peers.python_program(), target)
            except (ArmletError, RuntimeError) as error:
                missing[peer] = str(error).splitlines()[0]
    return {
        "recipe": f"{name}-{board}-{precision}", "network": name, "board": board, "precision": precision,
        "macs": macs, "model": model, "emulator": blocks.emulator, "counted": counted, "missing": missing,
    }  # fmt: skip


def measure_own(name: str, board: str, precision: str) -> dict[str, object]:
    """Count one inference of a network in armlet, beside what is kept of the others."""
    result = measure(name, board, precision, ())
    kept = next((r for r in keeping.kept(RESULTS) if r["recipe"] == result["recipe"]), None)
    if kept is None:
        return {**result, "missing": dict.fromkeys(PEERS, "not counted")}
    return {**result, "counted": kept["counted"] | result["counted"], "missing": kept["missing"]}


def _costed(blocks: BlockCounts, program: Path, target: Target) -> tuple[dict[str, int], str]:
    counts = count_cycles(blocks, program, target)
    return {"instructions": counts.instructions, "cycles": round(counts.cycles)}, counts.core_model


def _form(peer: str, folder: Path, precision: str) -> Path:
    """Return `folder/model.onnx` in the form that a runtime reads."""
    onnx_file = folder / "model.onnx"
    if peer == "onnxruntime":
        return onnx_file
    if peer == "litert":
        write_litert(onnx_file, folder / "model.tflite")
        return folder / "model.tflite"
    if precision == "int8":
        raise RuntimeError("it reads no file in ONNX's quantised form")
    import pnnx

    command = [pnnx.EXEC_PATH, onnx_file.name, "fp16=0"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if not (folder / "model.ncnn.param").is_file():
        raise RuntimeError(f"pnnx ended with {done.returncode}")
    return folder / "model.ncnn.param"


def table(results: list[dict]) -> str:
    """Return the page's table in Markdown."""
    columns = ("armlet", *PEERS)
    lines = [
        f"| network | board | precision | {' | '.join(columns)} | armlet over the best: instructions | cycles"
        " | float32 over INT8: cycles |",
        "|---" * (6 + len(columns)) + "|",
    ]
    whole = {
        (r["network"], r["board"]): r["counted"]["armlet"] for r in results if r["precision"] == "float32"
    }
    for result in results:
        counted = result["counted"]
        cells = [
            f"{format_count(counted[c]['instructions'])}, {format_count(counted[c]['cycles'])}"
            if c in counted
            else "–"
            for c in columns
        ]
        over = [_over_best(counted, what) for what in ("instructions", "cycles")]
        beside = whole.get((result["network"], result["board"]))
        if result["precision"] == "float32" or beside is None:
            over.append("–")
        else:
            over.append(f"{beside['cycles'] / counted['armlet']['cycles']:.2f}")
        lines.append(
            f"| {result['network']} | {result['board']} | {result['precision']} | {' | '.join((*cells, *over))} |"
        )
    return "\n".join(lines)


def _over_best(counted: dict[str, dict[str, int]], what: str) -> str:
    peers = {name: found[what] for name, found in counted.items() if name != "armlet"}
    if not peers:
        return "–"
    best = min(peers, key=peers.__getitem__)
    return f"{counted['armlet'][what] / peers[best]:.2f} ({best})"


def with_table(document: str) -> str:
    """Return the page's text with its table made anew."""
    return tables.with_table(document, "arm_counts", table(keeping.kept(RESULTS)))


def main() -> None:
    """Count networks, or write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    runner = verbs.add_parser("run", help="count networks and keep the results")
    runner.add_argument("networks", nargs="*", help=f"all by default: {', '.join(NETWORKS)}")
    runner.add_argument("--board", choices=BOARDS, help="both by default")
    runner.add_argument("--precision", choices=latency.PRECISIONS, help="both by default")
    runner.add_argument("--own", action="store_true", help="count armlet's programs only")
    verbs.add_parser("table", help="write the page's table")
    given = parser.parse_args()
    if given.verb == "run":
        for name in given.networks or NETWORKS:
            for board in [given.board] if given.board else BOARDS:
                for precision in [given.precision] if given.precision else latency.PRECISIONS:
                    result = (measure_own if given.own else measure)(name, board, precision)
                    keeping.keep(RESULTS, result)
                    print(table([result]), *result["missing"].items(), sep="\n", file=sys.stderr, flush=True)
    page = latency.PAGE
    page.write_text(with_table(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
