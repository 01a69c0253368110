"""Options of passes that depend on the rest of a recipe, in numbers: how wide the vectors of its kernels are."""

from __future__ import annotations

from armlet.spec.load import load_target
from armlet.spec.passes import PassSpec, PruneChannels
from armlet.spec.recipe import Recipe
from armlet.spec.target import Element


def settled(recipe: Recipe, position: int) -> PassSpec:
    """Return the options of a pass, with a number for `round_to: vector`.

    Raises:
        UsageError: there is no such target.
    """
    options = recipe.passes[position]
    if not isinstance(options, PruneChannels) or options.target is None:
        return options
    integers = any(later.computes_integers for later in recipe.passes[position + 1 :])
    element = "int8" if integers else recipe.precision_on(load_target(options.target))
    return options.model_copy(update={"round_to": multiple_of(options, element)})


def multiple_of(options: PruneChannels, element: Element = "float32") -> int:
    """Return what the widths become multiples of, for kernels that multiply `element`.

    Raises:
        UsageError: there is no such target.
    """
    if options.round_to != "vector":
        return options.round_to
    return load_target(options.target or "").lanes(element)
