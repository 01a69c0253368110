"""How long work says what it is doing: one small protocol, so that no stage knows of terminals."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Receives what a stage is doing. All calls come from the main thread."""

    def start(self, what: str, total: int | None = None) -> None:
        """Begin a unit of work of `total` parts, None when not known."""

    def advance(self, parts: int = 1, note: str = "") -> None:
        """Some parts are done; `note` is a short state such as "loss 0.31  accuracy 88.9 %"."""

    def say(self, line: str) -> None:
        """Print one lasting line."""


class Silent:
    """Progress that goes nowhere: for library calls and tests."""

    def start(self, what: str, total: int | None = None) -> None:
        """Do nothing."""

    def advance(self, parts: int = 1, note: str = "") -> None:
        """Do nothing."""

    def say(self, line: str) -> None:
        """Do nothing."""
