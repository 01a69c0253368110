"""Runs every full recipe for two boards, keeps what was measured, and writes the README's table of it.

    python benchmarks/families.py run                     # every recipe of recipes/, one after the other; hours
    python benchmarks/families.py run recipes/cnn-fashion-mnist.yaml
    python benchmarks/families.py boards                  # sizes and latencies of today's compiler; minutes
    python benchmarks/families.py table                   # README.md's table, from the results that are kept

One JSON file for each recipe in benchmarks/results/families/. Scores are of the whole test split: of the network in
torch after training and after each pass, and of the compiled program itself at the end. Latencies are estimates. What a
program takes follows from its layers and not from how well it learned: `boards` renews sizes, memory and latencies with
the full recipe's network, trained and compressed as in the smoke profile, if it then has the same multiplications and
bytes after every pass.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Iterable
from pathlib import Path

import armlet
import keeping
import tables
from armlet.artifacts import PassRecord
from armlet.bench.protocol import cpu_name
from armlet.bundle import Manifest
from armlet.scores import METRICS
from armlet.spec.load import load_recipe
from armlet.units import format_bytes, format_ms

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "families"
README = ROOT / "README.md"
BOARDS = ("raspberry-pi-4", "raspberry-pi-5")


def run(recipe: Path, output: Path) -> dict[str, object]:
    """Carry a recipe the whole way for both boards and return what is kept of it."""
    result = armlet.run(recipe, BOARDS, output=output)
    manifests = [armlet.Bundle.open(bundle).manifest for bundle in result.bundles]
    first = manifests[0]
    return {
        "recipe": first.name,
        "family": first.provenance.recipe.model.kind,
        "data": first.data.kind,
        "metric": first.trained.score.metric,
        "n_test": first.evaluated.score.n_samples,
        "trained": {"scores": first.trained.score.values(), "seconds": round(first.trained.seconds)},
        "trained_on": f"{first.trained.device}, {first.trained.precision}",
        "passes": [_pass(step.record) for step in first.passes],
        "compiled": {"scores": first.evaluated.score.values(), "integer_only": first.compiled.integer_only},
        "boards": {manifest.target.name: _board(manifest) for manifest in manifests},
        "machine": f"{cpu_name()}, {platform.system()}",
        "versions": list(first.provenance.versions),
    }


def renewed(kept: dict, recipe: Path, output: Path) -> dict[str, object]:
    """Return kept results with what the boards' programs take today.

    Raises:
        ValueError: the smoke profile's passes leave other layers.
    """
    quick = load_recipe(recipe, "smoke").model_copy(update={"model": load_recipe(recipe).model})
    result = armlet.run(quick, BOARDS, output=output)
    manifests = [armlet.Bundle.open(bundle).manifest for bundle in result.bundles]
    found = [(p["macs"], p["weight_bytes"]) for p in map(_pass, (s.record for s in manifests[0].passes))]
    if found != [(p["macs"], p["weight_bytes"]) for p in kept["passes"]]:
        raise ValueError(f"{recipe.stem}: the smoke profile's passes leave other layers")
    boards = {manifest.target.name: _board(manifest) for manifest in manifests}
    for name, board in boards.items():
        board["verdict"] = kept["boards"][name]["verdict"]  # of the trained network
    return kept | {"boards": boards}


def _pass(record: PassRecord) -> dict[str, object]:
    return {
        "kind": record.kind,
        "scores": record.score_after.values(),
        "macs": record.after.macs,
        "weight_bytes": record.after.weight_bytes,
        "seconds": round(record.seconds, 1),
    }


def _board(manifest: Manifest) -> dict[str, object]:
    latency = manifest.measured.latency
    return {
        "size_bytes": manifest.size_bytes,
        "memory_bytes": manifest.memory_bytes,
        "latency_ms": [latency.low_ms, latency.typical_ms, latency.high_ms] if latency else None,
        "verdict": "pass" if manifest.verdict.passes else "fail",
    }


def table(results: Iterable[dict]) -> str:
    """Return the README's table in Markdown."""
    lines = [
        "| recipe | metric | trained | after each pass | compiled program | size | memory "
        "| Raspberry Pi 4, estimated | Raspberry Pi 5, estimated |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in sorted(results, key=lambda r: r["recipe"]):
        metric = METRICS[r["metric"]]
        text = {"trained": metric.text(r["trained"]["scores"][r["metric"]])}
        passes = ", ".join(f"{p['kind']} {metric.text(p['scores'][r['metric']])}" for p in r["passes"]) or "–"
        boards = [r["boards"][name] for name in BOARDS]
        latencies = [_interval(board["latency_ms"]) for board in boards]
        lines.append(
            f"| [{r['recipe']}](recipes/{r['recipe']}.yaml) | {metric.label} | {text['trained']} | {passes} "
            f"| **{metric.text(r['compiled']['scores'][r['metric']])}** | {format_bytes(boards[0]['size_bytes'])} "
            f"| {format_bytes(boards[0]['memory_bytes'])} | {latencies[0]} | {latencies[1]} |"
        )
    return "\n".join(lines)


def _interval(latency: list[float] | None) -> str:
    return f"{format_ms(latency[0])} to {format_ms(latency[2])}" if latency else "not estimated"


def with_table(readme: str) -> str:
    """Return the README's text with its table made anew."""
    return tables.with_table(readme, "families", table(keeping.kept(RESULTS)))


def main() -> None:
    """Run recipes, or write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    runner = verbs.add_parser("run", help="run full recipes and keep what was measured")
    runner.add_argument("recipes", nargs="*", type=Path, help="all by default")
    runner.add_argument("--output", type=Path, default=Path("build"), help="folder for the bundles")
    again = verbs.add_parser("boards", help="renew what the programs take on the boards")
    again.add_argument("recipes", nargs="*", type=Path, help="all by default")
    again.add_argument("--output", type=Path, default=Path("build"), help="folder for the bundles")
    verbs.add_parser("table", help="write the README's table")
    given = parser.parse_args()
    if given.verb == "run":
        for recipe in given.recipes or sorted((ROOT / "recipes").glob("*.yaml")):
            print(f"{recipe.stem} ...", file=sys.stderr, flush=True)
            keeping.keep(RESULTS, run(recipe, given.output))
    if given.verb == "boards":
        known = {kept["recipe"]: kept for kept in keeping.kept(RESULTS)}
        for recipe in given.recipes or [ROOT / "recipes" / f"{name}.yaml" for name in known]:
            print(f"{recipe.stem} ...", file=sys.stderr, flush=True)
            keeping.keep(RESULTS, renewed(known[recipe.stem], recipe, given.output))
    README.write_text(with_table(README.read_text(encoding="utf-8")), encoding="utf-8")
    print(table(keeping.kept(RESULTS)))


if __name__ == "__main__":
    main()
