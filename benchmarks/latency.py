"""Latency beside other runtimes on this machine: one thread, batch of one, in one interleaved run.

    python benchmarks/latency.py run                        # every network, float32 and INT8; needs armlet[peers]
    python benchmarks/latency.py run mobilenet-v2 --precision int8
    python benchmarks/latency.py table                      # docs/performance.md's table, from kept results

Weights are random, and batch normalisation has statistics of random inputs; INT8 is calibrated on random inputs, and
the same quantised network goes to every runtime (as ONNX QDQ, or as its .tflite twin). Times are CPU time of this
process, each reading over as many calls as take some milliseconds; runtimes take turns, so that what disturbs the
machine disturbs all. armlet's program is compiled for the vector unit that this CPU has (`--features`).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import nn

import keeping
import runtimes
import tables
from armlet.analysis.cost import cost_of
from armlet.artifacts import InputSpec, Task
from armlet.data.splits import Samples, Splits
from armlet.export.onnx import to_onnx, write_onnx
from armlet.metrics import Scorer
from armlet.models.network import Network, architecture_of, build
from armlet.passes import PassContext
from armlet.passes.quantize.quantize_static import StaticQuantization
from armlet.progress import Silent
from armlet.units import format_count, format_ms

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "latency"
PAGE = ROOT / "docs" / "performance.md"
READINGS = 15
READING_S = 0.02


def pictures(*shape: int) -> tuple[InputSpec, ...]:
    """Return the one input of a network of pictures or sequences."""
    return (InputSpec("input", shape),)


IMAGENET, CLASSES = pictures(3, 224, 224), (1000,)
NETWORKS: dict[str, tuple[str, dict[str, object], tuple[InputSpec, ...], tuple[int, ...]]] = {
    # as in recipes/
    "fnn-letter-recognition": ("fnn", {"hidden": [128, 128]}, pictures(16), (26,)),
    "cnn-fashion-mnist": ("cnn", {"channels": [16, 32, 64], "depth": [1, 1, 2]}, pictures(1, 28, 28), (10,)),
    "lstm-smartwatch-exercises": ("lstm", {"hidden": [48]}, pictures(100, 6), (10,)),
    "rnn-japanese-vowels": ("rnn", {"hidden": [48], "cell": "gru"}, pictures(29, 12), (9,)),
    "transformer-smartwatch-exercises": ("transformer", {"width": 48, "heads": 4}, pictures(100, 6), (10,)),
    # of ImageNet's size
    "mobilenet-v1": ("mobilenet", {"version": "v1"}, IMAGENET, CLASSES),
    "mobilenet-v2": ("mobilenet", {"version": "v2"}, IMAGENET, CLASSES),
    "mobilenet-v3-small": ("mobilenet", {"version": "v3_small"}, IMAGENET, CLASSES),
    "efficientnet-lite0": ("efficientnet_lite", {}, IMAGENET, CLASSES),
    "resnet-18": ("resnet", {"depth": 18}, IMAGENET, CLASSES),
    # as in MLPerf Tiny (Banbury et al. 2021): keywords, pictures of CIFAR-10's size, visual wake words, machine sounds
    "ds-cnn": ("ds_cnn", {}, pictures(1, 49, 10), (12,)),
    "resnet-8": ("resnet", {"depth": 8}, pictures(3, 32, 32), (10,)),
    "mobilenet-v1-x0.25": ("mobilenet", {"version": "v1", "width": 0.25}, pictures(3, 96, 96), (2,)),
    "autoencoder-640": (
        "autoencoder", {"hidden": [128] * 4, "code": 8, "norm": "batch"}, pictures(640), (640,),
    ),
    # sequences
    "lstm-2x128": ("lstm", {"hidden": [128, 128]}, pictures(100, 40), (12,)),
    "encoder-4x128": ("transformer", {"width": 128, "depth": 4, "heads": 4, "patch": 1}, pictures(64, 40), (12,)),
}  # fmt: skip
"""Family, options, inputs and outputs of each network."""
PRECISIONS = ("float32", "int8")


def network_of(name: str) -> tuple[Network, np.ndarray]:
    """Return a network that answers differently to different inputs, and some inputs [8, ...]."""
    family, options, inputs, outputs = NETWORKS[name]
    network = build(architecture_of(family, options, inputs, outputs), seed=0)
    rng = np.random.default_rng(0)
    some = rng.standard_normal((8, *inputs[0].shape), "float32")
    normalisations = [m for m in network.module.modules() if isinstance(m, nn.BatchNorm2d)]
    for layer in normalisations:
        layer.momentum = 1.0  # one batch replaces the statistics
    with torch.no_grad():
        network.module.train()(torch.from_numpy(some))
        network.module.eval()
        for layer in normalisations:
            layer.weight.copy_(torch.from_numpy(rng.uniform(0.8, 1.2, layer.weight.shape)))
            layer.bias.copy_(torch.from_numpy(rng.normal(0, 0.2, layer.bias.shape)))
    return network, some


def quantized(network: Network, some: np.ndarray) -> Network:
    """Return the network in static INT8."""
    outputs = network.architecture.output_shape
    samples = Samples((some,), np.zeros((len(some), *outputs), "float32"))
    splits = Splits(samples, samples, samples, network.architecture.inputs, Task("forecast", outputs))
    context = PassContext(splits, network, Scorer(splits.task), 0, Path("unused"), Silent())
    return StaticQuantization(n_samples=len(some)).run(network, context).network


def measure(name: str, precision: str, features: tuple[str, ...]) -> dict[str, object]:
    """Time one network in one precision in every runtime that has a form for it."""
    network, some = network_of(name)
    macs = cost_of(network).macs
    network = quantized(network, some) if precision == "int8" else network
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_onnx(to_onnx(network), folder / "model.onnx")
        calls, missing = runtimes.all_of(folder, some[:1], features)
        times = interleaved(calls)
    return {
        "recipe": f"{name}-{precision}",
        "network": name,
        "precision": precision,
        "macs": macs,
        "features": list(features),
        "ms": times,
        "missing": missing,
    }


def interleaved(calls: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Return milliseconds of CPU of one call, some readings of each, in turns."""
    counts = {}
    for name, call in calls.items():
        for _ in range(3):
            call()
        counts[name] = max(1, round(READING_S / max(_reading(call, 3), 1e-7)))
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(READINGS):
        for name, call in calls.items():
            times[name].append(round(1e3 * _reading(call, counts[name]), 6))
    return times


def _reading(call: Callable[[], object], n: int) -> float:
    start = time.process_time()
    for _ in range(n):
        call()
    return (time.process_time() - start) / n


def ratios(times: dict[str, list[float]], peer: str) -> list[float]:
    """Return armlet's time over the peer's, turn by turn, in rising order."""
    return sorted(a / b for a, b in zip(times["armlet"], times[peer], strict=True))


def table(results: list[dict]) -> str:
    """Return the page's table in Markdown."""
    peers = sorted({peer for result in results for peer in result["ms"]} - {"armlet"})
    lines = [
        f"| network | precision | MACs | armlet | {' | '.join(peers)} | armlet over the best (spread) |",
        "|---" * (5 + len(peers)) + "|",
    ]
    for result in results:
        middles = {name: median(times) for name, times in result["ms"].items()}
        cells = [format_ms(middles[p]) if p in middles else "–" for p in ("armlet", *peers)]
        best = min((p for p in peers if p in middles), key=middles.__getitem__)
        found = ratios(result["ms"], best)
        ratio = f"{median(found):.2f} ({found[0]:.2f} to {found[-1]:.2f}), {best}"
        lines.append(
            f"| {result['network']} | {result['precision']} | {format_count(result['macs'])} "
            f"| {' | '.join(cells)} | {ratio} |"
        )
    return "\n".join(lines)


def with_table(document: str) -> str:
    """Return the page's text with its table made anew."""
    return tables.with_table(document, "latency", table(keeping.kept(RESULTS)))


def main() -> None:
    """Time networks, or write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    runner = verbs.add_parser("run", help="time networks and keep the results")
    runner.add_argument("networks", nargs="*", help=f"all by default: {', '.join(NETWORKS)}")
    runner.add_argument("--precision", choices=PRECISIONS, help="both by default")
    runner.add_argument("--features", nargs="*", default=["avx512vnni"], help="that armlet may use")
    verbs.add_parser("table", help="write the table in docs/performance.md")
    given = parser.parse_args()
    if given.verb == "run":
        for name in given.networks or NETWORKS:
            for precision in [given.precision] if given.precision else PRECISIONS:
                result = measure(name, precision, tuple(given.features))
                keeping.keep(RESULTS, result)
                print(table([result]), *result["missing"].items(), sep="\n", file=sys.stderr, flush=True)
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
