"""Budgets: what must hold for a build to pass."""

from __future__ import annotations

from pydantic import Field

from armlet.spec.base import Bytes, Fraction, Milliseconds, Spec


class Budgets(Spec):
    """What must hold; a budget that is left out is not checked."""

    accuracy: Fraction | None = Field(
        None, description="Least accuracy of the compiled program, full test split."
    )
    accuracy_drop: Fraction | None = Field(
        None,
        description="Most accuracy lost between the trained network and the compiled program, in points.",
    )
    worst_class_accuracy_drop: Fraction | None = Field(
        None, description="Most accuracy that any one class may lose, in points."
    )
    latency: Milliseconds | None = Field(
        None,
        description="Most time for one inference, with its unit; an estimate counts with its upper bound.",
    )
    size: Bytes | None = Field(
        None, description="Most bytes of code and constants that an app links, with unit."
    )
    memory: Bytes | None = Field(None, description="Most bytes of working memory (the arena), with its unit.")
