"""The part of the page that shows what the compiled program answers, and how sure it is."""

from __future__ import annotations

from dataclasses import dataclass

from armlet.artifacts import TaskKind
from armlet.exhibits import Exhibits
from armlet.report import pictures, plots

_N_COLUMNS = 8


@dataclass(frozen=True, slots=True)
class Answers:
    """What the page shows of the answers.

    Attributes:
        title: of the section.
        sentence: what is seen.
        figures: as SVG; none where the task has nothing to show.
    """

    title: str
    sentence: str
    figures: tuple[str, ...]


def show_answers(task: TaskKind, exhibits: Exhibits, test_limit: int | None) -> Answers | None:
    """Return what of a task's answers can be looked at, None where nothing can.

    Args:
        task: what was asked.
        exhibits: what was kept.
        test_limit: most test samples that the recipe uses; what is left has gaps.
    """
    if exhibits.pictures and task == "generation":
        titles = ("Made by the compiled program", "Made by the trained network", "Real")
        grids = zip(exhibits.pictures, titles, strict=True)
        return Answers(
            "What it makes",
            "Pictures from the first random numbers of the test split: the compiled program's, the trained network's"
            " before compression from the same numbers, and real ones of the test split. None was picked.",
            tuple(pictures.mosaic(grid, title, _N_COLUMNS) for grid, title in grids),
        )
    if exhibits.pictures:
        return Answers(
            "What it answers",
            "The first samples of the test split, none of them picked: what goes in, what the compiled program and the"
            " trained network before compression make of it, and what was meant.",
            (pictures.strips(exhibits.pictures, "Test samples"),),
        )
    if exhibits.forecasts:
        gaps = ", which are drawn from all of it, so that there are gaps between them" if test_limit else ""
        return Answers(
            "What it answers",
            f"What came and what the compiled program had forecast, for the first {len(exhibits.forecasts.came)}"
            f" samples of the test split{gaps}.",
            (plots.courses(exhibits.forecasts),),
        )
    if exhibits.errors:
        return Answers(
            "How it tells anomalies",
            "How badly the compiled program repeats normal test samples and anomalies: the less the two overlap, the"
            " surer a threshold between them tells them apart.",
            (plots.error_shares(exhibits.errors),),
        )
    return None
