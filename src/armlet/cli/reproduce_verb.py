"""`armlet reproduce`: repeat a failed step from its reproducer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def reproduce(
    folder: Annotated[Path, typer.Argument(help="The reproducer that a failed run named.")],
) -> None:
    """Repeat a failed step from the spec and inputs kept with it, with the full traceback."""
    import traceback

    from armlet import flow
    from armlet.cli.console import run_display
    from armlet.errors import ArmletError, UsageError

    with run_display() as display:
        try:
            result = flow.reproduce(folder, display)
        except UsageError:
            raise
        except ArmletError:
            traceback.print_exc()  # the command line prints the message only
            raise
    typer.echo(f"the step works now; its result is in {result}")
