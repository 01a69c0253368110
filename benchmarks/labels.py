"""Measures how well a network learns from a part of the labels, with and without what the other samples teach.

    python benchmarks/labels.py run                       # Japanese vowels by a GRU; a quarter of an hour
    python benchmarks/labels.py run recipes/transformer-smartwatch-exercises.yaml
    python benchmarks/labels.py plot                      # docs/images/labels.svg, from the results that are kept

Three ways: from the labels alone; pre-trained to fill in hidden parts of all inputs first; trained from the labels,
then on its own answers to the samples without any. Each with the same shares, seeds and updates from labels; scores are
of the whole test split, in torch. One JSON file for each recipe in benchmarks/results/labels/. Runs that the store has
are not done again.
"""

from __future__ import annotations

import argparse
import io
import re
import statistics
import sys
from pathlib import Path

import keeping
from armlet import api, artifact_json
from armlet.artifacts import Compressed, Score, Trained
from armlet.flow import run_steps
from armlet.progress import Silent
from armlet.spec.load import load_recipe
from armlet.spec.passes import Distill
from armlet.spec.recipe import Pretrain, Recipe
from armlet.spec.train import TrainSpec
from armlet.store import Store

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "labels"
PLOT = ROOT / "docs" / "images" / "labels.svg"
RECIPE = ROOT / "recipes" / "rnn-japanese-vowels.yaml"
SHARES = (0.05, 0.1, 0.2, 0.5, 1.0)
SEEDS = (0, 1, 2)
WAYS = {
    "plain": "from the labels alone",
    "pretrain": "pre-trained on all inputs",
    "distill": "then on its own answers to the rest",
}
COLOURS = {"plain": "#3f83c6", "pretrain": "#d9762b", "distill": "#2f9a62"}
# A small share has few batches an epoch: more epochs make as many updates of it, ten times as many at most.
_MOST_TIMES = 10


def recipe_of(full: Recipe, share: float, seed: int, way: str) -> Recipe:
    """Return the recipe that learns from a share of the labels in one of the ways."""
    train = full.train.model_copy(
        update={"epochs": round(full.train.epochs / 2 * min(1 / share, _MOST_TIMES))}
    )
    # Without labels there are as many inputs for each share.
    unlabeled = full.train.model_copy(update={"epochs": full.train.epochs // 2})
    changes: dict[str, object] = {
        "seed": seed,
        "data": full.data.model_copy(update={"fraction": share}),
        "train": train,
        "passes": (),
        "profiles": {},
    }
    if way == "pretrain":
        pretraining = TrainSpec(**{**unlabeled.model_dump(), "loss": "auto", "label_smoothing": 0.0})
        changes["pretrain"] = Pretrain(train=pretraining)
    if way == "distill":
        changes["passes"] = (Distill(kind="distill", temperature=2.0, unlabeled=True, train=unlabeled),)
    return full.model_copy(update=changes)


def scored(recipe: Recipe, store: Store) -> Score:
    """Train a recipe's network, unless the store has it, and return its score on the test split."""
    plan = api.plan(recipe)
    steps = [step for step in plan.network_steps if step.stage != "export"]
    done = run_steps(plan, steps, store=store, progress=Silent())
    last = plan.pass_steps[-1] if plan.pass_steps else plan["train"]
    if last.stage == "pass":
        return artifact_json.load(Compressed, done[last.name].folder).record.score_after
    return artifact_json.load(Trained, done[last.name].folder).score


def run(file: Path) -> dict[str, object]:
    """Measure a recipe in each way, and return what is kept of it."""
    full, store, points = load_recipe(file), Store(), []
    for way in WAYS:
        for share in SHARES:
            if way == "distill" and share == 1.0:
                continue  # no samples are left without labels
            found = [scored(recipe_of(full, share, seed, way), store) for seed in SEEDS]
            points.append({"way": way, "share": share, "scores": [round(s.value, 4) for s in found]})
            print(f"{full.name}: {way}, {share:.0%}: {points[-1]['scores']}", file=sys.stderr, flush=True)
    return {
        "recipe": full.name,
        "metric": found[0].metric,
        "n_test": found[0].n_samples,
        "seeds": list(SEEDS),
        "points": points,
    }


def plot(results: list[dict]) -> str:
    """Return the plot of the results as SVG; the same results give the same bytes."""
    import matplotlib.pyplot as plt

    style = {
        "svg.hashsalt": "labels", "svg.fonttype": "none", "font.size": 9, "axes.spines.top": False,
        "axes.spines.right": False, "legend.frameon": False, "axes.titlelocation": "left",
    }  # fmt: skip
    with plt.rc_context(style):
        figure, axes = plt.subplots(1, len(results), figsize=(5.2 * len(results), 3.4), squeeze=False)
        for axis, result in zip(axes[0], results, strict=True):
            _draw(axis, result)
        figure.tight_layout()
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
        plt.close(figure)
    return re.sub(r" +\n", "\n", text.getvalue())


def _draw(axis, result: dict) -> None:  # noqa: ANN001 - matplotlib is imported where it draws
    """Draw one recipe: the mean of each way over the shares, and a dot for each seed."""
    for way, words in WAYS.items():
        points = [point for point in result["points"] if point["way"] == way]
        shares = [100 * point["share"] for point in points]
        means = [100 * statistics.mean(point["scores"]) for point in points]
        axis.plot(shares, means, color=COLOURS[way], label=words)
        for share, point in zip(shares, points, strict=True):
            dots = [100 * score for score in point["scores"]]
            axis.plot([share] * len(dots), dots, ".", color=COLOURS[way], alpha=0.6)
    axis.set(xscale="log", xlabel="training samples with a label (%)", ylabel=f"{result['metric']} (%)")
    axis.set_xticks([100 * share for share in SHARES], [f"{100 * share:g}" for share in SHARES])
    axis.minorticks_off()
    axis.set_title(result["recipe"])
    axis.grid(alpha=0.2)
    axis.legend(loc="lower right")


def main() -> None:
    """Measure recipes, or draw the plot."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    runner = verbs.add_parser("run", help="train with each share of the labels and keep the scores")
    runner.add_argument("recipes", nargs="*", type=Path, help="the GRU of Japanese vowels by default")
    verbs.add_parser("plot", help="draw the plot")
    given = parser.parse_args()
    if given.verb == "run":
        for file in given.recipes or [RECIPE]:
            keeping.keep(RESULTS, run(file))
    PLOT.parent.mkdir(parents=True, exist_ok=True)
    PLOT.write_text(plot(keeping.kept(RESULTS)), encoding="utf-8")


if __name__ == "__main__":
    main()
