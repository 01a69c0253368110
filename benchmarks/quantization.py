"""What each option of the passes that quantise is worth, on two small convolutional networks for Fashion-MNIST.

    python benchmarks/quantization.py run      # trains the networks, then all options; some ten minutes
    python benchmarks/quantization.py table    # the table in the page on quantisation after training

The networks have 16, 32, 64 and 64 channels, in plain and in separable blocks, and are trained for 6 epochs on 15 000
pictures. Accuracy is on the 10 000 test pictures, computed as quantised; noise is the variance of the float network's
answers over their mean squared change. The results are kept in benchmarks/results/quantization.json.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from pydantic import TypeAdapter

import tables
from armlet import data
from armlet.analysis.cost import cost_of
from armlet.data.splits import Splits, hold_out, limited
from armlet.metrics import Scorer
from armlet.models.network import Network, architecture_of, build, executable
from armlet.passes import PASSES, PassContext
from armlet.progress import Silent
from armlet.spec.passes import PassSpec
from armlet.train import TrainOptions, predict, train_network

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "quantization.json"
PAGE = ROOT / "docs" / "techniques" / "post-training-quantization.md"
CHANNELS = {"channels": [16, 32, 64], "depth": [1, 1, 2]}
NETWORKS = {"plain": {"block": "plain"}, "separable": {"block": "separable"}}
TRAIN = TrainOptions(epochs=6, optimizer="sgd", learning_rate=0.1, weight_decay=5e-4)
FOUR = {"weight_bits": 4, "weight_range": "mse"}
NO_DATA = {"calibration": "batch_norm", "input_range": [0.0, 1.0]}
LEARNED = {"kind": "quantize_aware", "train": {"epochs": 2, "learning_rate": 0.001}}
OPTIONS: dict[str, dict[str, object]] = {
    "no options": {},
    "`observer: moving_average`": {"observer": "moving_average"},
    "`observer: percentile`": {"observer": "percentile"},
    "`observer: entropy`": {"observer": "entropy"},
    "`observer: mse`": {"observer": "mse"},
    "`activations: symmetric`": {"activations": "symmetric"},
    "`calibration_samples: 16`": {"calibration_samples": 16},
    "`calibration: batch_norm`": NO_DATA,
    "`calibration: batch_norm`, `bias_correction`": {**NO_DATA, "bias_correction": True},
    "`weights: per_tensor`": {"weights": "per_tensor"},
    "`weights: per_tensor`, `equalize`": {"weights": "per_tensor", "equalize": True},
    "`bias_correction`": {"bias_correction": True},
    "`smooth: 50 %`": {"smooth": 0.5},
    "`rounding: adaround`": {"rounding": "adaround"},
    "`mode: weight_only`": {"mode": "weight_only"},
    "`mode: dynamic`": {"mode": "dynamic"},
    "`weight_bits: 4`": {"weight_bits": 4},
    "`weight_bits: 4`, `weight_range: mse`": FOUR,
    "4 bits, mse, `bias_correction`": {**FOUR, "bias_correction": True},
    "4 bits, mse, `equalize`, `bias_correction`": {**FOUR, "equalize": True, "bias_correction": True},
    "4 bits, mse, `rounding: gptq`": {**FOUR, "rounding": "gptq"},
    "4 bits, mse, `rounding: adaround`": {**FOUR, "rounding": "adaround"},
    "4 bits, mse, `mode: weight_only`, `rounding: gptq`": {**FOUR, "mode": "weight_only", "rounding": "gptq"},
    "`quantize_aware`, 2 epochs": LEARNED,
    "`quantize_aware`, 4 bits, 2 epochs": {**LEARNED, "weight_bits": 4},
    "`quantize_aware`, 4 bits, `alpha: 70 %`, 2 epochs": {**LEARNED, "weight_bits": 4, "alpha": 0.7},
}


def splits_of(folder: Path) -> Splits:
    """Return Fashion-MNIST with 15 000 training pictures."""
    _, splits = data.fetch("fashion-mnist", folder, Silent(), {})
    splits = hold_out(splits, 0.05, 0)
    return replace(splits, train=limited(splits.train, 15_000, 0))


def trained(name: str, splits: Splits, work: Path) -> Network:
    """Return one of the networks, trained."""
    options = {**CHANNELS, **NETWORKS[name]}
    start = build(architecture_of("cnn", options, splits.inputs, splits.task.output_shape), 0)
    scorer = Scorer(splits.task)
    return train_network(start, splits, TRAIN, scorer, seed=0, work=work, progress=Silent())[0]


def measure(network: Network, answers: torch.Tensor, splits: Splits, spec: PassSpec, work: Path) -> dict:
    """Quantise a network in one way, and compare what it answers with the float network's answers [N, 10]."""
    context = PassContext(splits, network, Scorer(splits.task), 0, work, Silent())
    started = time.monotonic()
    given = replace(network, module=copy.deepcopy(network.module))
    quantized = PASSES[spec.kind](spec).run(given, context).network
    seconds = time.monotonic() - started
    found = predict(executable(quantized), tuple(map(torch.from_numpy, splits.test.inputs)))
    noise = 10 * torch.log10(answers.var() / ((found - answers) ** 2).mean())
    return {
        "accuracy": accuracy(found, splits),
        "noise_db": round(float(noise), 2),
        "weight_bytes": cost_of(quantized).weight_bytes,
        "seconds": round(seconds, 1),
    }


def accuracy(answers: torch.Tensor, splits: Splits) -> float:
    """Return the share of the test pictures that answers [N, 10] name rightly."""
    return float((answers.argmax(1).numpy() == splits.test.targets).mean())


def run() -> None:
    """Measure everything and keep it."""
    splits = splits_of(Path.home() / ".cache" / "armlet" / "data")
    results: dict[str, dict[str, dict]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in NETWORKS:
            network = trained(name, splits, Path(scratch, name))
            answers = predict(network.module, tuple(map(torch.from_numpy, splits.test.inputs)))
            results.setdefault("float", {})[name] = {"accuracy": accuracy(answers, splits)}
            for number, (label, options) in enumerate(OPTIONS.items()):
                spec = TypeAdapter(PassSpec).validate_python({"kind": "quantize_static", **options})
                found = measure(network, answers, splits, spec, Path(scratch, f"{name}{number}"))
                results.setdefault(label, {})[name] = found
                print(name, label, found, file=sys.stderr, flush=True)
    RESULT.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def table() -> str:
    """Return the page's table in Markdown."""
    results = json.loads(RESULT.read_text(encoding="utf-8"))
    heads = [f"{name}: accuracy | noise | time" for name in NETWORKS]
    lines = ["| Options | " + " | ".join(heads) + " |", "|---" * (1 + 3 * len(NETWORKS)) + "|"]
    for label, found in results.items():
        cells = [
            f"{one['accuracy']:.2%} | {one['noise_db']:.1f} dB | {one['seconds']:.1f} s"
            if "seconds" in one
            else f"{one['accuracy']:.2%} | | "
            for one in (found[name] for name in NETWORKS)
        ]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines).replace(" %", "%").replace("%", " %")


def with_table(page: str) -> str:
    """Return the page's text with its table made anew."""
    return tables.with_table(page, "quantization", table())


def main() -> None:
    """Measure, or write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("run", help="train, quantise in every way, and keep the results")
    verbs.add_parser("table", help="write the table in the page")
    if parser.parse_args().verb == "run":
        run()
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(table())


if __name__ == "__main__":
    main()
