"""A recipe: data, model, training, passes and budgets of one network."""

from __future__ import annotations

from typing import Any

from pydantic import Field, NonNegativeInt

from armlet.scores import METRICS, TASK_METRICS
from armlet.spec.base import ListOf, Spec
from armlet.spec.budget import Budgets
from armlet.spec.data import DataSpec
from armlet.spec.model import Autoencoder, Cnn, Lstm, ModelSpec, Transformer
from armlet.spec.passes import PassSpec
from armlet.spec.train import TrainSpec


class Recipe(Spec):
    """One network, from data to budgets."""

    name: str = Field(
        pattern=r"^[a-z][a-z0-9]*(-[a-z0-9]+)*$", max_length=64, description="Lower case, digits, dashes."
    )
    description: str = Field("", description="One line, for people.")
    seed: NonNegativeInt = Field(
        0, lt=2**63, description="Draws the weights, the batches and the held-out samples."
    )
    data: DataSpec = Field(description="What the network learns from.")
    model: ModelSpec = Field(description="The network.")
    train: TrainSpec = Field(TrainSpec(), description="How the network is trained before any pass.")
    passes: ListOf[PassSpec] = Field((), description="What makes it smaller, in this order.")
    budgets: Budgets = Field(Budgets(), description="What must hold for a build to pass.")
    profiles: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="Named sets of changes; `full` is the recipe as written, `smoke` runs in seconds.",
    )

    @property
    def symbol(self) -> str:
        """The name as a C identifier."""
        return self.name.replace("-", "_")


_FORMS = {
    "row": "rows of numbers",
    "picture": "pictures",
    "sequence": "sequences",
    "text": "text",
    "latent": "random numbers",
}


def misfits(recipe: Recipe) -> list[tuple[tuple[str, ...], str]]:
    """Return (location, message) for every value that is right by itself and wrong beside another section."""
    data, model = recipe.data, recipe.model
    found: list[tuple[tuple[str, ...], str]] = [
        (("data", key), f"{limit} samples are less than one for each of {data.n_classes} classes")
        for key, limit in (("limit", data.limit), ("test_limit", data.test_limit))
        if limit is not None and limit < data.n_classes
    ]
    if data.form not in model.takes:
        takes = " or ".join(_FORMS[form] for form in model.takes)
        found.append(
            (("model", "kind"), f"a {model.kind} takes {takes}, and {data.kind} has {_FORMS[data.form]}")
        )
    elif data.asks not in model.tasks:
        message = f"a {model.kind} is not made for {data.asks}, which {data.kind} asks for"
        found.append((("model", "kind"), message))
    elif (
        isinstance(model, Cnn)
        and data.picture is not None
        and min(data.picture) < 2 ** (len(model.channels) - 1)
    ):
        height, width = data.picture
        message = f"pictures of {height}×{width} can't be halved {len(model.channels) - 1} times"
        found.append((("model", "channels"), f"{message}: use fewer stages"))
    elif isinstance(model, Lstm) and model.projection and model.projection >= min(model.hidden):
        found.append(
            (("model", "projection"), f"is not narrower than the {min(model.hidden)} units of a layer")
        )
    elif isinstance(model, Transformer):
        if model.width % model.heads:
            found.append((("model", "width"), f"{model.width} does not divide among {model.heads} heads"))
        if data.picture is not None and any(extent % model.patch for extent in data.picture):
            found.append(
                (("model", "patch"), f"pictures of {data.picture[0]}×{data.picture[1]} have no whole patches")
            )
    elif isinstance(model, Autoencoder):
        if data.form == "row" and not model.code:
            found.append((("model", "code"), "rows need a code: only pictures can go without"))
        if data.form == "picture" and model.shortcuts and model.code:
            found.append((("model", "shortcuts"), "would go past the code: use code: 0"))
    known = TASK_METRICS[data.asks]
    found += [
        (("budgets", name), f"{data.kind} is scored by {', '.join(known)}, not by {name}")
        for name in METRICS
        if name not in known and getattr(recipe.budgets, name, None) is not None
    ]
    if data.asks != "classification":
        found += [
            (("budgets", name), "only classification has an accuracy: use score_drop")
            for name in ("accuracy_drop", "worst_class_accuracy_drop")
            if getattr(recipe.budgets, name) is not None
        ]
    return found
