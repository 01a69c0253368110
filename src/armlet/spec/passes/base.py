"""What the options of every pass have in common."""

from __future__ import annotations

from typing import ClassVar

from armlet.spec.base import Spec

QUANTIZING = ("quantize_static", "quantize_aware")
"""The passes that leave integers, which no other pass takes."""


class PassOptions(Spec):
    """Base of all passes.

    Attributes:
        never_after: the kinds that must not stand earlier in the recipe.
        once: whether it can stand in a recipe only once.
        gains: what it gains, said in a plan, where users may expect something else.
    """

    never_after: ClassVar[tuple[str, ...]] = ()
    once: ClassVar[bool] = False
    gains: ClassVar[str] = ""
