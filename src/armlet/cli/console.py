"""Where the command line prints: rich on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import time
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.console import Console

    from armlet.flow import StepResult
    from armlet.plan import Step


class RunDisplay(Protocol):
    """Shows a run: what each step does, and how far it is."""

    def __enter__(self) -> RunDisplay: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def begin(self, step: Step) -> None:
        """A step starts."""

    def finish(self, result: StepResult) -> None:
        """A step is done, or was there already."""

    def start(self, what: str, total: int | None = None) -> None:
        """See `Progress.start`."""

    def advance(self, parts: int = 1, note: str = "") -> None:
        """See `Progress.advance`."""

    def say(self, line: str) -> None:
        """See `Progress.say`."""


def stdout() -> Console:
    """Return a console on standard output."""
    from rich.console import Console

    console = Console(highlight=False, markup=False)  # brackets in names and paths are meant
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 120  # a log has no width of its own, and rich's guess of 80 breaks lines
    return console


def json_text(data: object) -> str:
    """Return data as indented JSON."""
    import json

    return json.dumps(data, indent=2, allow_nan=False)


def print_json(data: object) -> None:
    """Print data as indented JSON on standard output."""
    import typer

    typer.echo(json_text(data))


def run_display(quiet: bool = False) -> RunDisplay:
    """Return the display that fits standard error: a live one on a terminal, plain lines elsewhere."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False, quiet=quiet)
    return LiveDisplay(console) if console.is_terminal and not quiet else PlainDisplay(console)


class LiveDisplay:
    """A line for each finished step, and a bar for what is running."""

    def __init__(self, console: Console) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            SpinnerColumn,
            TextColumn,
            TimeElapsedColumn,
        )

        self._console = console
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}", style="dim"),
            console=console,
            transient=True,
        )
        self._task = self._bar.add_task("", total=None, note="", visible=False)

    def __enter__(self) -> LiveDisplay:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def begin(self, step: Step) -> None:
        """Show the step's name with a spinner."""
        self.start(step.what)

    def finish(self, result: StepResult) -> None:
        """Leave a line for the step."""
        self._bar.update(self._task, visible=False)
        self._console.print(_finished(result), style="dim" if result.cached else "", markup=False)

    def start(self, what: str, total: int | None = None) -> None:
        """Show a new bar."""
        self._bar.reset(self._task, description=what, total=total, note="", visible=True)

    def advance(self, parts: int = 1, note: str = "") -> None:
        """Move the bar; without a note the last one stays."""
        if note:
            self._bar.update(self._task, advance=parts, note=note)
        else:
            self._bar.update(self._task, advance=parts)

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        self._console.print(line, markup=False)


class PlainDisplay:
    """Lines only, for logs and CI: a step's start and end, and now and then how far it is."""

    interval_s = 10.0

    def __init__(self, console: Console) -> None:
        self._console = console
        self._what, self._done, self._total, self._last = "", 0, 0, 0.0

    def __enter__(self) -> PlainDisplay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return

    def begin(self, step: Step) -> None:
        """Print that the step starts."""
        self._print(f"{step.name}: {step.what}")

    def finish(self, result: StepResult) -> None:
        """Print that the step is done."""
        self._print(_finished(result))

    def start(self, what: str, total: int | None = None) -> None:
        """Remember what is being done."""
        self._what, self._done, self._total, self._last = what, 0, total or 0, time.monotonic()

    def advance(self, parts: int = 1, note: str = "") -> None:
        """Print how far it is, at most once in a while."""
        self._done += parts
        if time.monotonic() - self._last >= self.interval_s:
            self._last = time.monotonic()
            of = f"/{self._total}" if self._total else ""
            self._print(f"  {self._what} {self._done}{of}  {note}".rstrip())

    def say(self, line: str) -> None:
        """Print the line."""
        self._print(f"  {line}")

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, soft_wrap=True)


def _finished(result: StepResult) -> str:
    took = "cached" if result.cached else f"{result.seconds:.1f} s"
    return f"✓ {result.step.name:<34} {took}"
