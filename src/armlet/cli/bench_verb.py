"""`armlet bench`: time bundles' programs on a device, or count them on an emulated board."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from armlet.cli import options


def bench(  # noqa: PLR0913 - one parameter for each flag
    bundle: Annotated[
        list[Path], typer.Argument(help="Bundles; each but the first is compared with the first.")
    ],
    device: Annotated[
        str,
        typer.Option("--device", "-d", metavar="DEVICE", help="host, emulator, ssh://[user@]host[:port]."),
    ] = "host",
    samples: Annotated[int, typer.Option("--samples", help="Readings of the clock.")] = 1024,
    seconds: Annotated[float, typer.Option("--seconds", help="Most time that they take together.")] = 60.0,
    processes: Annotated[
        int, typer.Option("--processes", help="Fresh processes that share the readings.")
    ] = 10,
    cpus: Annotated[
        str | None,
        typer.Option(
            "--cpus", metavar="N,N", help="CPUs to pin to; the last of the fastest ones by default."
        ),
    ] = None,
    timeout: Annotated[
        float, typer.Option("--timeout", help="Longest wait for the device, in seconds.")
    ] = 600.0,
    latency: options.Latency = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Also write the JSON to a file.")
    ] = None,
    quiet: options.Quiet = False,
    json: options.Json = False,
) -> int:
    """Time programs on a device, and hold its answers against those of the same program here.

    Several bundles are timed in turns. Exit 1 if a latency budget fails; 3 if what leads to the device is not
    installed; 4 if the device can't be reached, can't run the program, or answers differently.
    """
    from armlet import artifact_json
    from armlet.api import bench as measure
    from armlet.cli.console import json_text, print_json, run_display, stdout
    from armlet.errors import UsageError
    from armlet.report.bench import benchmark_table

    if output and not output.parent.is_dir():  # before minutes of measuring
        raise UsageError(f"--output {output}: there is no folder {output.parent}")
    with run_display(quiet or json) as display:
        found = measure(
            bundle,
            device,
            samples=samples,
            seconds=seconds,
            processes=processes,
            cpus=_numbers(cpus) if cpus else (),
            latency=latency,
            timeout=timeout,
            progress=display,
        )
    data = {"passes": found.passes, **artifact_json.to_data(found)}
    if output:
        output.write_text(json_text(data) + "\n", encoding="utf-8")
    if json:
        print_json(data)
    else:
        stdout().print(benchmark_table(found))
    return 0 if found.passes else 1


def _numbers(text: str) -> tuple[int, ...]:
    from armlet.errors import UsageError

    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise UsageError(f"--cpus {text}: write the numbers of CPUs, such as 2,3")
    return tuple(int(part) for part in parts)
