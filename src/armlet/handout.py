"""Hands a trained or compressed network out as files that others can use, with a model card that says what it is."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from armlet import artifact_json, digest
from armlet.artifacts import Compressed, DataReady, Pretrained, Trained
from armlet.bundle import versions
from armlet.errors import UsageError, nearest
from armlet.flow import StepResult
from armlet.plan import Plan, Step
from armlet.report.card import CardInput, FileRow, render_card
from armlet.spec.load import FULL
from armlet.stages.context import ASSETS
from armlet.store import require_folder

Format = Literal["safetensors", "pt2", "onnx"]
FORMATS: tuple[Format, ...] = get_args(Format)
CARD_FILE = "README.md"


@dataclass(frozen=True, slots=True)
class Handout:
    """What was written.

    Attributes:
        files: with the card, in the order in which they were written.
    """

    folder: Path
    files: tuple[Path, ...]


def chosen_formats(names: Sequence[str]) -> tuple[Format, ...]:
    """Return the formats that are named, all where none is.

    Raises:
        UsageError: an unknown format.
    """
    for name in names:
        if name not in FORMATS:
            raise UsageError(f"unknown format {name!r} ({nearest(name, FORMATS)})")
    return tuple(format_ for format_ in FORMATS if format_ in (names or FORMATS))


def default_folder(plan: Plan) -> Path:
    """Return where a plan's network is handed out if nothing else is said."""
    suffix = "" if plan.profile == FULL else f"-{plan.profile}"
    return Path("build") / f"{plan.recipe.name}{suffix}-model"


def handed_out_steps(plan: Plan, *, compressed: bool) -> tuple[Step, ...]:
    """Return the steps of a plan that a hand-out needs: without passes where it is of the network before them."""
    left_out = () if compressed else ("pass", "teacher", "export")
    return tuple(step for step in plan.network_steps if step.stage not in left_out)


def require_place(folder: Path) -> None:
    """Refuse a folder that a network can't be handed out into, before any work.

    Raises:
        UsageError: it holds something else, or can't be a folder.
    """
    require_folder(folder, "--output")
    if any(folder.iterdir()) and not _is_handout(folder):
        raise UsageError(
            f"{folder} is not empty and holds other things than a handed-out network: choose another --output"
        )


def hand_out(
    plan: Plan,
    steps: Mapping[str, StepResult],
    folder: Path,
    formats: tuple[Format, ...] = FORMATS,
    *,
    compressed: bool = True,
) -> Handout:
    """Write a network into `folder` with its model card; what was handed out there before is replaced.

    Args:
        plan: of the recipe.
        steps: what `armlet.flow.run_steps` gave of `handed_out_steps`.
        folder: is made if missing.
        formats: "safetensors" is armlet's own form (`network.json` beside the weights, read by `load_network`).
        compressed: the network after every pass; else the trained one before any.

    Raises:
        UsageError: the folder holds something else.
    """
    require_place(folder)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".handout-") as scratch:
        names = _write(plan, steps, Path(scratch), formats, compressed)
        for old in folder.iterdir():  # of another network, maybe: no two are mixed
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        for name in names:  # only what is whole gets here
            (folder / name).parent.mkdir(exist_ok=True)
            (Path(scratch) / name).replace(folder / name)
    return Handout(folder, tuple(folder / name for name in names))


def _is_handout(folder: Path) -> bool:
    """Whether all that a folder holds was handed out: known names, and a card of armlet's."""
    from armlet.export import ONNX_FILE
    from armlet.export.formats import PT2_FILE
    from armlet.models.network import MANIFEST_FILE, WEIGHTS_FILE

    known = {CARD_FILE, ASSETS, ONNX_FILE, PT2_FILE, MANIFEST_FILE, WEIGHTS_FILE}
    card = folder / CARD_FILE
    return (
        {path.name for path in folder.iterdir()} <= known
        and card.is_file()
        and card.read_text(encoding="utf-8", errors="replace").startswith("---\nlibrary_name: armlet\n")
    )


def _write(
    plan: Plan, steps: Mapping[str, StepResult], folder: Path, formats: Sequence[Format], compressed: bool
) -> tuple[str, ...]:
    """Write the files and their card; return their names."""
    last = steps[plan.steps[_position(plan, compressed)].name]
    written = [path for name in formats for path in _WRITERS[name](last.folder, folder)]
    assets = steps["data"].folder / ASSETS
    if assets.is_dir():
        shutil.copytree(assets, folder / ASSETS)
        written += sorted((folder / ASSETS).iterdir())
    train = artifact_json.load(Trained, steps["train"].folder)
    passes = tuple(
        artifact_json.load(Compressed, steps[s.name].folder).record for s in plan.pass_steps if compressed
    )
    card = CardInput(
        recipe=plan.recipe,
        profile=plan.profile,
        data=artifact_json.load(DataReady, steps["data"].folder),
        trained=train,
        passes=passes,
        files=tuple(
            FileRow(path.relative_to(folder).as_posix(), path.stat().st_size, digest.of_file(path))
            for path in written
        ),
        versions=versions(),
        judge=artifact_json.load(Trained, steps["judge"].folder) if "judge" in steps else None,
        pretrained=artifact_json.load(Pretrained, steps["pretrain"].folder) if "pretrain" in steps else None,
    )
    (folder / CARD_FILE).write_text(render_card(card), encoding="utf-8")
    return (*(path.relative_to(folder).as_posix() for path in written), CARD_FILE)


def _position(plan: Plan, compressed: bool) -> int:
    """Return the position in the plan of the step whose network is handed out."""
    stages = ("train", "pass") if compressed else ("train",)
    return max(i for i, step in enumerate(plan.steps) if step.stage in stages)


def _safetensors(source: Path, folder: Path) -> tuple[Path, ...]:
    from armlet.models.network import MANIFEST_FILE, WEIGHTS_FILE

    return tuple(
        Path(shutil.copyfile(source / name, folder / name)) for name in (WEIGHTS_FILE, MANIFEST_FILE)
    )


def _pt2(source: Path, folder: Path) -> tuple[Path, ...]:
    from armlet.export.formats import write_pt2
    from armlet.models.network import load_network

    return (write_pt2(load_network(source), folder),)


def _onnx(source: Path, folder: Path) -> tuple[Path, ...]:
    from armlet.export import ONNX_FILE
    from armlet.export.onnx import to_onnx, write_onnx
    from armlet.models.network import load_network

    write_onnx(to_onnx(load_network(source)), folder / ONNX_FILE)
    return (folder / ONNX_FILE,)


_WRITERS: dict[Format, Callable[[Path, Path], tuple[Path, ...]]] = {
    "safetensors": _safetensors,
    "pt2": _pt2,
    "onnx": _onnx,
}
