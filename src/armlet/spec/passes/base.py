"""What the options of every pass have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from armlet.spec.base import Spec

QUANTIZING: Mapping[str, str] = dict.fromkeys(
    ("quantize_static", "quantize_aware"), "that leaves integers, and this pass works on float numbers"
)
"""The passes after which no other can come, and why."""


class PassOptions(Spec):
    """Base of all passes.

    Attributes:
        never_after: the kinds that must not stand earlier in the recipe, and why.
        once: whether it can stand in a recipe only once.
        gains: what it gains, said in a plan, where users may expect something else.
    """

    never_after: ClassVar[Mapping[str, str]] = {}
    once: ClassVar[bool] = False
    gains: ClassVar[str] = ""

    @property
    def computes_integers(self) -> bool:
        """Whether programs multiply int8 after it."""
        return False
