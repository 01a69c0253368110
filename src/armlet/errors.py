"""The error tree: every error that armlet raises on purpose, with the exit code that the command line gives it.

Exit codes: 0 all budgets hold; 1 a budget fails; 2 bad usage or a bad file; 3 something is missing on this
machine; 4 a step failed; 130 interrupted.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


class ArmletWarning(UserWarning):
    """Something that still works, but that the user should know."""


class ArmletError(Exception):
    """Base of all errors that armlet raises on purpose."""

    exit_code = 4


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a file that the user wrote.

    Attributes:
        message: what is wrong, with the value.
        file: the file, or None for a command-line flag.
        line: 1-based line in the file, 0 when unknown.
        key: dotted path of the key, empty for the whole file.
        hint: what would be right, empty when nothing useful can be said.
    """

    message: str
    file: Path | None = None
    line: int = 0
    key: str = ""
    hint: str = ""

    def __str__(self) -> str:
        where = ""
        if self.file is not None:
            where = f"{self.file}:{self.line}: " if self.line else f"{self.file}: "
        key = f"{self.key}: " if self.key else ""
        hint = f" ({self.hint})" if self.hint else ""
        return f"{where}{key}{self.message}{hint}"


class UsageError(ArmletError):
    """Bad usage or a bad file; carries every problem found, not only the first."""

    exit_code = 2

    def __init__(self, problems: str | Problem | Iterable[Problem]) -> None:
        if isinstance(problems, str):
            problems = Problem(problems)
        self.problems: tuple[Problem, ...] = (problems,) if isinstance(problems, Problem) else tuple(problems)
        super().__init__("\n".join(str(p) for p in self.problems))


class CorruptedFile(UsageError):
    """A file whose digest is not the recorded one.

    Args:
        file: the file.
        expected: the recorded SHA-256, or what was expected in words.
        found: its SHA-256, empty when there is no such file.
        hint: what puts it right.
    """

    def __init__(self, file: Path, expected: str, found: str, hint: str = "delete it and run again") -> None:
        self.file = file
        super().__init__(
            Problem(
                f"is corrupted: SHA-256 is {found}, expected {expected}" if found else "is missing",
                file=file,
                hint=hint,
            )
        )


class MissingDependency(ArmletError):
    """A program or a package that this machine lacks; the message has the command that installs it."""

    exit_code = 3

    def __init__(self, what: str, needed_for: str, install: str) -> None:
        self.what, self.needed_for, self.install = what, needed_for, install
        super().__init__(f"missing: {what}, needed for {needed_for}; install with: {install}")


class StepFailed(ArmletError):
    """A step of a run failed; a reproducer was written.

    Attributes:
        step: name of the step.
        reproducer: folder with the step's spec, its inputs and the one command that repeats it.
    """

    exit_code = 4

    def __init__(self, step: str, reason: str, reproducer: Path | None = None) -> None:
        self.step, self.reason, self.reproducer = step, reason, reproducer
        tail = f"\nreproducer: {reproducer}" if reproducer else ""
        super().__init__(f"step {step} failed: {reason}{tail}")


class UnsupportedOperator(ArmletError):
    """A network uses operators that the compiler can't lower; names each node and operator."""

    exit_code = 4


class VerificationFailed(ArmletError):
    """Two forms of the same network disagree by more than the stated tolerance."""

    exit_code = 4


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint that names the known spelling nearest to `name`, and all known ones."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    listing = ", ".join(known)
    return f"did you mean {close[0]!r}? known: {listing}" if close else f"known: {listing}"
