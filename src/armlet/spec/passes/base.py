"""What the options of every pass have in common."""

from __future__ import annotations

from typing import ClassVar

from armlet.spec.base import Spec


class PassOptions(Spec):
    """Base of all passes; `never_after` lists the kinds that must not stand earlier in the recipe."""

    never_after: ClassVar[tuple[str, ...]] = ()
    once: ClassVar[bool] = False
