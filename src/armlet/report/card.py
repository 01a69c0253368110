"""The model card of a handed-out network: a README.md with the metadata block that model hubs read.

Source: Mitchell et al. 2019, "Model Cards for Model Reporting"; the metadata keys are those of Hugging Face's hub.
"""

from __future__ import annotations

from dataclasses import dataclass

from armlet.artifacts import DataReady, PassRecord, Pretrained, Trained
from armlet.report.page import environment
from armlet.scores import METRICS
from armlet.spec.recipe import Recipe


@dataclass(frozen=True, slots=True)
class FileRow:
    """One file that is handed out."""

    name: str
    n_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class CardInput:
    """Everything that a model card tells.

    Attributes:
        passes: what was done after training, none for the trained network itself.
        versions: "name version" of armlet and of the packages that took part.
        judge: what generated samples were compared in the features of; other tasks have none.
        pretrained: what the network learned without labels first, if anything.
    """

    recipe: Recipe
    profile: str
    data: DataReady
    trained: Trained
    passes: tuple[PassRecord, ...]
    files: tuple[FileRow, ...]
    versions: tuple[str, ...]
    judge: Trained | None = None
    pretrained: Pretrained | None = None


def render_card(card: CardInput) -> str:
    """Return the card as Markdown; the same input gives the same text."""
    score = card.passes[-1].score_after if card.passes else card.trained.score
    cost = card.passes[-1].after if card.passes else card.trained.cost
    return environment(html=False).get_template("card.md").render(
        card=card, score=score, cost=cost, metric=METRICS[score.metric], metrics=METRICS
    )  # fmt: skip
