"""How much smaller the recipes' networks get, and what that costs, from several seeds.

    python benchmarks/goals.py run                                  # all recipes, three seeds; a day on two cores
    python benchmarks/goals.py run recipes/lstm-smartwatch-exercises.yaml --seeds 3
    python benchmarks/goals.py table                                # the table of docs/techniques, from kept results

Each seed draws weights, batches and held-out samples: it trains a network of its own, which is compressed by the
passes below. Scores are of the whole test split, in torch; one JSON file for each recipe in benchmarks/results/goals/.
Steps that the store has are not done again.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev

from pydantic import TypeAdapter

import keeping
import tables
from armlet import api, artifact_json
from armlet.artifacts import Compressed, PassRecord
from armlet.flow import run_steps
from armlet.progress import Silent
from armlet.scores import METRICS, Metric
from armlet.spec.load import load_recipe
from armlet.spec.passes import PassSpec
from armlet.spec.recipe import Recipe
from armlet.store import Store

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "goals"
PAGE = ROOT / "docs" / "techniques" / "index.md"


@dataclass(frozen=True)
class Goal:
    """What a network is made of the trained one, and what that may cost.

    Attributes:
        most: that the score may get worse, in the unit of the metric; relative where the metric is a plain distance.
        passes: as a recipe has them.
        model: keys of the recipe's `model` that are others for this goal.
    """

    what: str
    most: float
    passes: tuple[dict[str, object], ...]
    relative: bool = False
    model: dict[str, object] = field(default_factory=dict)


INT8 = {"kind": "quantize_static", "calibration_samples": 1024}
FOUR = {**INT8, "weight_bits": 4, "weight_range": "mse", "rounding": "adaround"}
_SGD = {"optimizer": "sgd", "batch_size": 128}
_WATCH = {"learning_rate": 0.002, "weight_decay": 0.05, "batch_size": 64, "gradient_clip": 1.0}
_MOVED = {**_WATCH, "label_smoothing": 0.1, "augment": ["rotate", "scale", "noise", "speed"]}
_GAN = {
    "epochs": 12, "batch_size": 64, "loss": "hinge", "optimizer": "adam", "learning_rate": 0.0005,
    "betas": [0.5, 0.99], "schedule": "linear", "ema": 0.999,
}  # fmt: skip
GOALS: dict[str, tuple[Goal, ...]] = {
    "cnn-fashion-mnist": (
        Goal("INT8", 0.002, (INT8,)),
        Goal("4-bit weights, AdaRound", 0.01, (FOUR,)),
        Goal("a quarter of the MACs", 0.005, (
            {"kind": "prune_channels", "ratio": 0.508, "finetune": {"epochs": 1, **_SGD, "learning_rate": 0.02}},
            {"kind": "distill", "temperature": 4.0, "alpha": 0.9,
             "train": {"epochs": 40, **_SGD, "learning_rate": 0.1, "weight_decay": 0.0002, "augment": ["flip"],
                       "precision": "bf16"}},
        ), model={"channels": [32, 64, 128]}),
    ),
    "lstm-smartwatch-exercises": (
        Goal("INT8", 0.005, (INT8,)),
        Goal("half of the hidden units", 0.01, (
            {"kind": "prune_channels", "ratio": 0.5, "finetune": {"epochs": 1, **_MOVED}},
            {"kind": "distill", "teachers": 3, "temperature": 2.0, "alpha": 0.7, "train": {"epochs": 25, **_MOVED}},
        )),
    ),
    "transformer-smartwatch-exercises": (
        Goal("INT8", 0.005, (INT8,)),
        Goal("half of the heads and of the feed-forward units", 0.01, (
            {"kind": "prune_channels", "ratio": 0.5, "finetune": {"epochs": 1, **_WATCH}},
            {"kind": "distill", "teachers": 3, "temperature": 2.0, "alpha": 0.7, "train": {"epochs": 30, **_WATCH}},
        )),
    ),
    "autoencoder-shuttle": (
        Goal("INT8", 0.005, ({**INT8, "calibration_samples": 2048},)),
        Goal("a third of the parameters", 0.005, (
            {"kind": "prune_channels", "parameters": 0.33},
            {"kind": "distill", "alpha": 0.5, "train": {"epochs": 30, "batch_size": 256, "learning_rate": 0.005}},
        )),
    ),
    "gan-fashion-mnist": (
        Goal("a third of the parameters", 0.1, (
            {"kind": "prune_channels", "ratio": 0.25},
            {"kind": "factorize", "parameters": 0.46},
            {"kind": "distill", "alpha": 0.5, "train": _GAN},
        ), relative=True),
    ),
}  # fmt: skip
"""What each recipe's network is asked for; passes in their recipe's form."""


def recipe_of(full: Recipe, goal: Goal, seed: int) -> Recipe:
    """Return the recipe with the goal's passes and the seed."""
    passes = TypeAdapter(tuple[PassSpec, ...]).validate_python(goal.passes)
    model = full.model.model_validate({**full.model.model_dump(), **goal.model})
    return full.model_copy(
        update={"seed": seed, "model": model, "passes": passes, "profiles": {}, "stream": None}
    )


def records(recipe: Recipe, store: Store) -> list[PassRecord]:
    """Train a recipe's network and carry out its passes, unless the store has them; return what each did."""
    plan = api.plan(recipe)
    steps = [step for step in plan.network_steps if step.stage != "export"]
    done = run_steps(plan, steps, store=store, progress=Silent())
    return [artifact_json.load(Compressed, done[step.name].folder).record for step in plan.pass_steps]


def run(file: Path, seeds: int) -> dict[str, object]:
    """Measure a recipe's goals, and return what is kept of them."""
    full, store, rows = load_recipe(file), Store(), []
    for goal in GOALS[full.name]:
        before, after = [], []
        for seed in range(seeds):
            found = records(recipe_of(full, goal, seed), store)
            before.append(found[0].score_before.value)
            after.append(found[-1].score_after.value)
            print(
                f"{full.name}, {goal.what}, seed {seed}: {before[-1]} -> {after[-1]}",
                file=sys.stderr,
                flush=True,
            )
        first, last = found[0].before, found[-1].after
        rows.append({
            "goal": goal.what, "passes": [record.kind for record in found], "before": before, "after": after,
            "macs": [first.macs, last.macs], "parameters": [first.parameters, last.parameters],
            "weight_bytes": [first.weight_bytes, last.weight_bytes],
        })  # fmt: skip
    score = found[-1].score_after
    return {"recipe": full.name, "metric": score.metric, "n_test": score.n_samples, "rows": rows}


def table(results: list[dict]) -> str:
    """Return the table of the page in Markdown."""
    lines = [
        "| recipe | goal | MACs | weights | trained | compressed | change, mean ± deviation | at most | seeds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        metric = METRICS[result["metric"]]
        goals = {goal.what: goal for goal in GOALS[result["recipe"]]}
        for row in result["rows"]:
            macs, size = (row[name][0] / row[name][1] for name in ("macs", "weight_bytes"))
            before, after = mean(row["before"]), mean(row["after"])
            lines.append(
                f"| {result['recipe']} | {row['goal']} | ÷{macs:.2f} | ÷{size:.2f} | {metric.text(before)} "
                f"| {metric.text(after)} | {' | '.join(_changes(metric, goals[row['goal']], row))} "
                f"| {len(row['before'])} |"
            )
    return "\n".join(lines)


def _changes(metric: Metric, goal: Goal, row: dict) -> tuple[str, str]:
    """Return how the score changed, each seed against its own network, and how much worse it may get."""
    worse = -1 if metric.higher_is_better else 1
    pairs = list(zip(row["before"], row["after"], strict=True))
    if goal.relative:
        found = [100 * (after / before - 1) for before, after in pairs]
        middle, limit = f"{mean(found):+.1f} %".replace("-", "−"), f"{worse * 100 * goal.most:+.0f} %"
    else:
        found = [after - before for before, after in pairs]
        middle, limit = metric.change(0.0, mean(found)), metric.change(0.0, worse * goal.most)
        found = [100 * change for change in found] if metric.form == "percent" else found
    spread = f" ± {stdev(found):.2g}" if len(found) > 1 else ""
    return middle + spread, limit.replace("-", "−")


def with_table(document: str) -> str:
    """Return the page's text with its table made anew."""
    return tables.with_table(document, "goals", table(keeping.kept(RESULTS)))


def main() -> None:
    """Run recipes, or write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    runner = verbs.add_parser("run", help="compress from each seed and keep the scores")
    runner.add_argument("recipes", nargs="*", type=Path, help=f"all by default: {', '.join(GOALS)}")
    runner.add_argument("--seeds", type=int, default=3, help="how many, from 0 on")
    verbs.add_parser("table", help="write the page's table")
    given = parser.parse_args()
    if given.verb == "run":
        for file in given.recipes or [ROOT / "recipes" / f"{name}.yaml" for name in GOALS]:
            keeping.keep(RESULTS, run(file, given.seeds))
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(table(keeping.kept(RESULTS)))


if __name__ == "__main__":
    main()
