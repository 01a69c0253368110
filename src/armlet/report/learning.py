"""How the network learned: the plots of the page, and the rows of its tables and of the terminal's."""

from __future__ import annotations

from collections.abc import Sequence

from armlet.artifacts import Compressed, Evaluated, Pretrained, Score, Trained
from armlet.report import plots
from armlet.spec.recipe import Recipe

_USUAL_LOSS = {"classification": "cross_entropy", "generation": "hinge"}  # what a recipe's `auto` stands for
_IN_NATS = ("cross_entropy", "focal", "bce", "kl")


def training_plots(recipe: Recipe, trained: Trained, passes: Sequence[Compressed]) -> tuple[str, ...]:
    """Plot losses, validation scores and learning rates of the training and of the passes that train."""
    stretches = [plots.Stretch("training", trained.history)]
    stretches += [
        plots.Stretch(f"{number} {step.record.kind}", step.record.history)
        for number, step in enumerate(passes, start=1)
    ]
    run = [stretch for stretch in stretches if stretch.history]
    if not run:
        return ()
    # A generator has no validation loss: its history repeats the score there.
    validation = recipe.data.asks != "generation"
    return (
        plots.losses(run, _loss_unit(recipe), validation=validation),
        plots.validation_scores(run),
        plots.learning_rates(run),
    )


def pretraining_plot(recipe: Recipe, pretrained: Pretrained | None) -> str:
    """Plot the losses of the guesses at what was hidden; nothing where nothing was pre-trained."""
    if pretrained is None or not pretrained.history:
        return ""
    unit = "nats" if recipe.data.form == "text" else "mse"
    run = [plots.Stretch("pre-training", pretrained.history)]
    return plots.losses(run, unit, title="Pre-training loss")


def metric_rows(
    other: Score | None, trained: Score, compiled: Score
) -> tuple[tuple[str, float | None, float, float], ...]:
    """Return (name of the metric, another score's value, trained, compiled) for each that the last two share."""
    first, before, after = other.values() if other else {}, trained.values(), compiled.values()
    return tuple((name, first.get(name), before[name], after[name]) for name in after if name in before)


def class_rows(
    class_names: tuple[str, ...], trained: Trained, evaluated: Evaluated
) -> tuple[tuple[str, float, float], ...]:
    """Return (class, accuracy when trained, accuracy of the program), or nothing where classes weren't scored."""
    before, after = trained.score.per_class, evaluated.score.per_class
    if not len(class_names) == len(before) == len(after):
        return ()
    return tuple(zip(class_names, before, after, strict=True))


def _loss_unit(recipe: Recipe) -> str:
    """Return the unit of the losses, or their name where they have none."""
    usual = _USUAL_LOSS.get(recipe.data.asks, "mse")
    loss = usual if recipe.train.loss == "auto" else recipe.train.loss
    return "nats" if loss in _IN_NATS else loss.replace("_", " ")
