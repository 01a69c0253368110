"""Results of benchmarks, one JSON file for each recipe."""

from __future__ import annotations

import json
from pathlib import Path


def keep(folder: Path, result: dict) -> None:
    """Write the result of a recipe, which names it; an older one is replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, indent=2, ensure_ascii=False)
    (folder / f"{result['recipe']}.json").write_text(text + "\n", encoding="utf-8")


def kept(folder: Path) -> list[dict]:
    """Return the results of a folder, in the order of the recipes' names."""
    return [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))]
