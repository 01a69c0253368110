"""Compression beside its peers: the same trained network, the same data, the same budget, in one run.

    python benchmarks/compression.py run                      # both recipes; needs armlet[peers]; two hours on a core
    python benchmarks/compression.py run recipes/transformer-smartwatch-exercises.yaml
    python benchmarks/compression.py table                    # the table of docs/techniques, from kept results

Each of three seeds trains a network of its own. *Pruning*: to the same share of the multiply-accumulates, then the same
fine-tuning by armlet's loop. *INT8*: of the unpruned network, calibrated on the same training samples. The answers of
armlet's are its compiled program's on this machine; ONNX Runtime's are its own, with optimisations off; torchao's are
torch's. Scores are of the whole test split; no tool sees it before.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from statistics import mean, stdev

import numpy as np

import keeping
import peers
import tables
from armlet import api
from armlet.compile.pipeline import compile_onnx
from armlet.data.splits import Samples, Splits
from armlet.devices.host import HostProgram
from armlet.export import export_onnx
from armlet.flow import run_steps
from armlet.metrics import Scorer
from armlet.models.network import Network, load_network
from armlet.passes import PassContext, run_pass
from armlet.plan import package_version
from armlet.progress import Silent
from armlet.scores import METRICS
from armlet.spec.load import load_recipe, load_target
from armlet.spec.passes import PruneChannels, QuantizeStatic
from armlet.stages import StageContext
from armlet.store import Store
from armlet.train import TrainOptions, evaluate, train_network

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "compression"
PAGE = ROOT / "docs" / "techniques" / "index.md"
SEEDS = (0, 1, 2)
MACS = (0.5, 0.25)
N_CALIBRATION = 512
RECIPES = {
    "cnn-fashion-mnist": TrainOptions(
        epochs=3, batch_size=128, optimizer="sgd", learning_rate=0.05, weight_decay=5e-4, schedule="one_cycle"
    ),
    "transformer-smartwatch-exercises": TrainOptions(
        epochs=10, batch_size=64, learning_rate=1e-3, weight_decay=0.05, schedule="one_cycle"
    ),
}  # fmt: skip
"""How each recipe's network is fine-tuned, whichever tool pruned it."""


@dataclass(frozen=True)
class Subject:
    """What is compressed."""

    network: Network
    splits: Splits
    scorer: Scorer

    def score(self, answers: np.ndarray) -> float:
        """Score answers to the test split."""
        return self.scorer.score(answers, self.splits.test, "test").value

    def context(self, seed: int, work: str) -> PassContext:
        """Return what a pass may use."""
        return PassContext(self.splits, self.network, self.scorer, seed, Path(work), Silent())


def subject_of(recipe: Path, seed: int) -> Subject:
    """Train a recipe's network from a seed, unless the store has it."""
    plan, store = api.plan(load_recipe(recipe).model_copy(update={"seed": seed})), Store()
    steps = [step for step in plan.network_steps if step.stage not in ("pass", "export")]
    done = run_steps(plan, steps, store=store, progress=Silent())
    folder = done["train"].folder
    context = StageContext(plan, plan["train"], (), folder, folder, store.root / "data", Silent())
    splits = context.splits()
    return Subject(load_network(folder), splits, Scorer(splits.task))


def by_armlet(subject: Subject, **goal: float) -> Network:
    """Prune by armlet, with its defaults, but through layer normalisations, as torch-pruning does."""
    with tempfile.TemporaryDirectory() as work:
        return run_pass(
            PruneChannels(kind="prune_channels", through_layer_norm=True, **goal),
            subject.network,
            subject.context(0, work),
        )[0]


def pruning(subject: Subject, finetune: TrainOptions, seed: int) -> Iterator[tuple[str, str, float]]:
    """Prune by each tool to each share, fine-tune, and yield budget, tool and score."""
    network = subject.network
    tools: dict[str, Callable[[float], Network]] = {
        "armlet, shares found": lambda share: by_armlet(subject, macs=share),
        "armlet, one share": lambda share: peers.pruned_to(
            network, lambda _, ratio: by_armlet(subject, ratio=ratio), share
        ),
        f"torch-pruning {package_version('torch-pruning')}, one share": lambda share: peers.pruned_to(
            network, peers.torch_pruning, share
        ),
    }
    for share in MACS:
        for tool, prune in tools.items():
            pruned = prune(share)
            with tempfile.TemporaryDirectory() as work:
                trained, _ = train_network(
                    pruned, subject.splits, finetune, subject.scorer, seed=seed, work=Path(work), progress=Silent()
                )  # fmt: skip
            score = evaluate(trained, subject.splits.test, subject.scorer, "test")
            yield f"{share:.0%} of the MACs", tool, score.value


def quantized_by_armlet(subject: Subject, calibration: Samples) -> np.ndarray:
    """Quantise by armlet and return the compiled program's answers."""
    splits = replace(subject.splits, train=calibration)
    options = QuantizeStatic(kind="quantize_static", calibration_samples=N_CALIBRATION)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        quantized, _ = run_pass(options, subject.network, replace(subject.context(0, name), splits=splits))
        export_onnx(quantized, calibration, folder)
        compiled = compile_onnx(folder / "model.onnx", load_target("host"), "network", folder)
        (found,) = HostProgram.load(folder, compiled).run_batch(subject.splits.test.inputs)
        return found


def quantization(subject: Subject, seed: int) -> Iterator[tuple[str, str, float]]:
    """Quantise to INT8 by each tool from the seed's calibration samples, and yield budget, tool and score."""
    test, train = subject.splits.test, subject.splits.train
    with tempfile.TemporaryDirectory() as name:
        export_onnx(subject.network, train, Path(name))
        onnx_file = Path(name) / "model.onnx"
        tools: dict[str, Callable[[Samples], np.ndarray]] = {
            "armlet": partial(quantized_by_armlet, subject),
            f"onnxruntime {package_version('onnxruntime')}": lambda found: peers.onnxruntime_static(
                onnx_file, found
            )(test),
            f"torchao {package_version('torchao')}": lambda found: peers.torchao_static(
                subject.network, found
            )(test),
        }
        chosen = np.sort(np.random.default_rng(seed).permutation(len(train))[:N_CALIBRATION])
        for tool, quantize in tools.items():
            yield "INT8", tool, subject.score(quantize(train.take(chosen)))


def run(recipe: Path) -> dict[str, object]:
    """Measure one recipe's network and return what is kept of it."""
    uncompressed, scores = [], defaultdict(list)
    for seed in SEEDS:
        subject = subject_of(recipe, seed)
        before = evaluate(subject.network, subject.splits.test, subject.scorer, "test")
        uncompressed.append(before.value)
        for what, tool, score in chain(
            quantization(subject, seed), pruning(subject, RECIPES[recipe.stem], seed)
        ):
            print(f"{recipe.stem}, seed {seed}, {what}, {tool}: {score}", file=sys.stderr, flush=True)
            scores[what, tool].append(score)
    return {
        "recipe": recipe.stem,
        "metric": before.metric,
        "n_test": before.n_samples,
        "uncompressed": uncompressed,
        "seeds": list(SEEDS),
        "rows": [{"what": what, "tool": tool, "scores": found} for (what, tool), found in scores.items()],
    }


def table(results: list[dict]) -> str:
    """Return the table of the page in Markdown."""
    lines = [
        "| network | uncompressed | budget | tool | after | change, mean ± deviation | seeds |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in results:
        metric, before = METRICS[result["metric"]], mean(result["uncompressed"])
        for row in result["rows"]:
            pairs = zip(result["uncompressed"], row["scores"], strict=True)
            spread, middle = stdev(100 * (after - first) for first, after in pairs), mean(row["scores"])
            lines.append(
                f"| {result['recipe']} | {metric.text(before)} | {row['what']} | {row['tool']} "
                f"| {metric.text(middle)} | {metric.change(before, middle)} ± {spread:.2f} | {len(row['scores'])} |"
            )
    return "\n".join(lines)


def with_table(document: str) -> str:
    """Return the page's text with its table made anew."""
    return tables.with_table(document, "compression", table(keeping.kept(RESULTS)))


def main() -> None:
    """Run recipes, or write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    runner = verbs.add_parser("run", help="compress by each tool and keep what was measured")
    runner.add_argument("recipes", nargs="*", type=Path, help=f"both by default: {', '.join(RECIPES)}")
    verbs.add_parser("table", help="write the page's table")
    given = parser.parse_args()
    if given.verb == "run":
        for recipe in given.recipes or [ROOT / "recipes" / f"{name}.yaml" for name in RECIPES]:
            keeping.keep(RESULTS, run(recipe))
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(table(keeping.kept(RESULTS)))


if __name__ == "__main__":
    main()
