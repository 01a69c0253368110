"""Compiles the networks of ImageNet's size for two boards, and says what they cost there.

    python benchmarks/imagenet.py run                  # every network, both boards; some minutes each
    python benchmarks/imagenet.py run mobilenet-v2
    python benchmarks/imagenet.py table                # the table in docs/models.md, from the results that are kept

Inputs are 224×224×3, outputs 1000 classes. Weights are random (batch normalisation has the statistics of random
pictures, and random gains and offsets), quantised to INT8: cost does not depend on the values, and nothing is said
about accuracy. The emulated board's answer to one picture is compared with this machine's, bit for bit where all
arithmetic is on integers. Latencies are estimates. The results are kept in benchmarks/results/imagenet.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

import tables
from armlet.analysis.cost import cost_of
from armlet.artifacts import InputSpec, Task
from armlet.bench.cycles import count_cycles, estimate_latency
from armlet.compile.pipeline import compile_onnx
from armlet.data.splits import Samples, Splits
from armlet.devices.emulator import Emulator
from armlet.devices.host import HostProgram
from armlet.export.onnx import to_onnx, write_onnx
from armlet.metrics import Scorer
from armlet.models.network import Network, architecture_of, build
from armlet.passes import PassContext
from armlet.passes.quantize.quantize_static import StaticQuantization
from armlet.progress import Silent
from armlet.spec.load import load_target
from armlet.units import format_bytes, format_count, format_ms

RESULT = Path(__file__).parent / "results" / "imagenet.json"
PAGE = Path(__file__).parents[1] / "docs" / "models.md"
BOARDS = ("raspberry-pi-4", "raspberry-pi-5")
PICTURE = (InputSpec("input", (3, 224, 224)),)
CLASSES = 1000
NETWORKS: dict[str, tuple[str, dict[str, object]]] = {
    "mobilenet-v1": ("mobilenet", {"version": "v1"}),
    "mobilenet-v2": ("mobilenet", {"version": "v2"}),
    "mobilenet-v3-small": ("mobilenet", {"version": "v3_small"}),
    "efficientnet-lite0": ("efficientnet_lite", {}),
    "resnet-18": ("resnet", {"depth": 18}),
}


def quantized(family: str, options: dict[str, object]) -> Network:
    """Return a network of ImageNet's size, in INT8, that answers differently to different pictures."""
    network = build(architecture_of(family, options, PICTURE, (CLASSES,)), seed=0)
    rng = np.random.default_rng(0)
    pictures = rng.standard_normal((8, *PICTURE[0].shape), "float32")
    for layer in network.module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0  # one batch replaces the statistics
    with torch.no_grad():
        network.module.train()(torch.from_numpy(pictures))
        for layer in network.module.eval().modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.weight.copy_(torch.from_numpy(rng.uniform(0.8, 1.2, layer.weight.shape)))
                layer.bias.copy_(torch.from_numpy(rng.normal(0, 0.2, layer.bias.shape)))
    samples = Samples((pictures,), np.zeros((len(pictures), CLASSES), "float32"))
    splits = Splits(samples, samples, samples, PICTURE, Task("forecast", (CLASSES,)))
    context = PassContext(splits, network, Scorer(splits.task), 0, Path("unused"), Silent())
    return StaticQuantization(n_samples=8).run(network, context).network


def measure(name: str) -> dict[str, object]:
    """Compile one network for this machine and the boards, compare, and count."""
    network = quantized(*NETWORKS[name])
    picture = np.random.default_rng(1).standard_normal((1, *PICTURE[0].shape), "float32")
    cost = cost_of(network)
    found: dict[str, object] = {"macs": cost.macs, "parameters": cost.parameters}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_onnx(to_onnx(network), folder / "model.onnx")
        host = compile_onnx(folder / "model.onnx", load_target("host"), "network", folder / "host")
        (expected,) = HostProgram.load(folder / "host", host).run(picture)
        for board in BOARDS:
            found[board] = _on_board(board, folder, picture, expected)
    return found


def _on_board(name: str, folder: Path, picture: np.ndarray, expected: np.ndarray) -> dict[str, object]:
    target = load_target(name)
    compiled = compile_onnx(folder / "model.onnx", target, "network", folder / name)
    runner, emulator = folder / name / "bin" / "run", Emulator(target)
    (answer,) = emulator.run_all(runner, (picture,), compiled.outputs)
    difference = float(np.abs(answer - expected).max())
    if compiled.integer_only and difference:
        raise SystemExit(f"{name} answers otherwise than this machine, by {difference:g}")
    counts = count_cycles(emulator.count(runner, picture), runner, target)
    latency = estimate_latency(counts, target)
    return {
        "size_bytes": compiled.size_bytes,
        "arena_bytes": compiled.arena_bytes,
        "arena_lower_bound": compiled.arena_lower_bound,
        "instructions": counts.instructions,
        "latency_ms": [latency.low_ms, latency.typical_ms, latency.high_ms] if latency else None,
        "integer_only": compiled.integer_only,
        "largest_difference_from_host": difference,
        "fallbacks": sorted({fallback.op for fallback in compiled.fallbacks}),
    }


def kept() -> dict[str, dict]:
    """Return the results that are kept."""
    return json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.is_file() else {}


def table() -> str:
    """Return the page's table in Markdown."""
    lines = [
        "| Network, INT8 | MACs | parameters | size | arena | Raspberry Pi 4, estimated | Raspberry Pi 5, estimated |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, found in kept().items():
        first, latencies = found[BOARDS[0]], [found[board]["latency_ms"] for board in BOARDS]
        told = [f"{format_ms(low)} to {format_ms(high)}" for low, _, high in latencies]
        lines.append(
            f"| {name} | {format_count(found['macs'])} | {format_count(found['parameters'])} "
            f"| {format_bytes(first['size_bytes'])} | {format_bytes(first['arena_bytes'])} | {told[0]} | {told[1]} |"
        )
    return "\n".join(lines)


def with_table(page: str) -> str:
    """Return the page's text with its table made anew."""
    return tables.with_table(page, "imagenet", table())


def main() -> None:
    """Measure networks, or write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    runner = verbs.add_parser("run", help="compile and count networks, and keep the results")
    runner.add_argument("networks", nargs="*", help=f"all by default: {', '.join(NETWORKS)}")
    verbs.add_parser("table", help="write the table in docs/models.md")
    given = parser.parse_args()
    if given.verb == "run":
        for name in given.networks or NETWORKS:
            print(f"{name} ...", file=sys.stderr, flush=True)
            results = kept() | {name: measure(name)}
            text = json.dumps(results, indent=2, sort_keys=True)
            RESULT.write_text(text + "\n", encoding="utf-8")
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(table())


if __name__ == "__main__":
    main()
