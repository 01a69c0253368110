"""The command line: one verb a file, errors and interruptions turned into documented exit codes."""

from __future__ import annotations

import io
import signal
import sys
import traceback

import typer

from armlet.cli import (
    ablate_verb,
    analyze_verb,
    bench_verb,
    bundle_verbs,
    compile_verb,
    data_verbs,
    device_verbs,
    doctor_verb,
    export_verb,
    plan_verb,
    report_verb,
    reproduce_verb,
    run_verb,
    target_verbs,
    tune_verb,
)

INTERRUPTED = 130
CLOSED_PIPE = 128 + signal.SIGPIPE  # what a shell says of other programs whose reader went away

app = typer.Typer(
    name="armlet",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Turn a neural network into a small, fast, proven program for a phone or an ARM board.",
    epilog=(
        "Exit codes: 0 all budgets hold; 1 a budget fails; 2 bad usage or bad file; 3 something is missing on"
        " this machine; 4 a step failed (a reproducer is written); 130 interrupted (run again to resume)."
    ),
)
app.command("run")(run_verb.run)
app.command("plan")(plan_verb.plan)
app.command("compile")(compile_verb.compile_)
app.command("check")(bundle_verbs.check)
app.command("inspect")(bundle_verbs.inspect)
app.command("bench")(bench_verb.bench)
app.command("report")(report_verb.report)
app.command("ablate")(ablate_verb.ablate)
app.command("analyze")(analyze_verb.analyze)
app.command("export")(export_verb.export)
app.command("tune")(tune_verb.tune)
app.command("doctor")(doctor_verb.doctor)
app.command("reproduce")(reproduce_verb.reproduce)
app.add_typer(data_verbs.app, name="data")
app.add_typer(device_verbs.app, name="devices")
app.add_typer(target_verbs.app, name="targets")


@app.callback(invoke_without_command=True)
def _version(version: bool = typer.Option(False, "--version", help="Print the version and end.")) -> None:
    if version:
        from armlet import __version__

        typer.echo(f"armlet {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line and end the process with the documented exit code."""
    from armlet.errors import ArmletError

    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal that lacks a sign must not end a run
        sys.stdout.reconfigure(errors="replace")
    try:
        code = app(standalone_mode=False)
    except ArmletError as error:
        typer.echo("\n".join([f"error: {error}", *getattr(error, "__notes__", ())]), err=True)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except typer.Exit as end:
        sys.exit(end.exit_code)
    except SystemExit:  # the parser's answer to a closed pipe is 1, which would say that a budget failed
        sys.exit(CLOSED_PIPE)
    except (
        OSError
    ) as error:  # a full disk, a file that may not be written: nothing that a traceback would explain
        typer.echo(f"error: {error}", err=True)
        sys.exit(4)
    except Exception as error:  # noqa: BLE001 - the outermost border: nothing may end with the wrong exit code
        if hasattr(error, "show"):  # the parser's own: unknown option, missing argument
            error.show()
            sys.exit(2)
        # A bug of ours. Python's own exit code for it, 1, would say that a budget failed.
        traceback.print_exc()
        sys.exit(4)
    if code == INTERRUPTED:  # also what typer makes of Ctrl-C
        typer.echo("interrupted; what is finished is kept, run the same command again to go on", err=True)
    sys.exit(code if isinstance(code, int) else 0)
