"""`armlet check` and `armlet inspect`: a bundle's verdict again, and what is in it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from armlet.cli import options

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.table import Table

    from armlet.artifacts import Compiled
    from armlet.bundle import Bundle, Manifest


def check(  # noqa: PLR0913 - one parameter for each flag
    bundle: options.BundleFolder,
    accuracy: options.Accuracy = None,
    accuracy_drop: options.AccuracyDrop = None,
    worst_class_accuracy_drop: options.WorstDrop = None,
    latency: options.Latency = None,
    size: options.Size = None,
    memory: options.Memory = None,
    budget: options.Budget = [],  # noqa: B006 - typer reads it, nothing writes it
    baseline: Annotated[
        Path | None,
        typer.Option(
            "--baseline", metavar="BUNDLE", help="An older bundle, which this one must not be worse than."
        ),
    ] = None,
    tolerance: Annotated[
        str, typer.Option("--tolerance", metavar="SHARE", help="How much worse than the baseline it may be.")
    ] = "0 %",
    junit: Annotated[
        Path | None, typer.Option("--junit", metavar="FILE", help="Also write the checks as JUnit XML.")
    ] = None,
    json: options.Json = False,
) -> int:
    """Verify every file of a bundle and repeat its verdict; flags replace its budgets. Exit 1 if one fails."""
    from armlet import artifact_json
    from armlet.bundle import Bundle
    from armlet.cli.console import print_json, stdout
    from armlet.regression import beside_baseline
    from armlet.report.junit import write_junit
    from armlet.report.tables import verdict_table
    from armlet.spec.load import override_budgets

    opened = Bundle.open(bundle)
    given = options.budgets(
        budget,
        accuracy=accuracy,
        accuracy_drop=accuracy_drop,
        worst_class_accuracy_drop=worst_class_accuracy_drop,
        latency=latency,
        size=size,
        memory=memory,
    )
    verdict = opened.check(override_budgets(opened.manifest.budgets, given))
    if baseline:
        verdict = beside_baseline(verdict, opened, baseline, tolerance)
    if junit:
        write_junit(verdict, opened.manifest.name, junit)
    if json:
        print_json({"passes": verdict.passes, "bundle": str(bundle)} | artifact_json.to_data(verdict))
    else:
        stdout().print(verdict_table(verdict, bundle))
    return 0 if verdict.passes else 1


def inspect(
    bundle: options.BundleFolder,
    layers: Annotated[
        bool,
        typer.Option("--layers", help="Each call of a kernel instead: layers, result, MACs, bytes, cycles."),
    ] = False,
    json: options.Json = False,
) -> None:
    """Verify every file of a bundle and print what it holds: interface, sizes, kernels, provenance."""
    from armlet import artifact_json
    from armlet.bundle import Bundle
    from armlet.cli.console import print_json, stdout
    from armlet.report.kernels import kernel_rows
    from armlet.report.tables import layers_table

    opened = Bundle.open(bundle)
    compiled, measured = opened.manifest.compiled, opened.manifest.measured
    if layers and json:
        print_json([artifact_json.to_data(row) for row in kernel_rows(compiled, measured)])
    elif layers:
        stdout().print(layers_table(compiled, measured))
    elif json:
        print_json(artifact_json.to_data(opened.manifest))
    else:
        _print(opened)


def _kernels_table(compiled: Compiled) -> Table:
    """Return a line for each call; of a variant, for those of kernels that no build before it has."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("kernel", "layer", "schedule", "precision"):
        table.add_column(column)
    table.add_column("MACs", justify="right")
    known = set[str]()
    for kernels in (compiled.kernels, *(variant.kernels for variant in compiled.variants)):
        for kernel in kernels:
            if kernel.symbol not in known:
                table.add_row(
                    kernel.symbol, kernel.layer, kernel.schedule, kernel.precision, f"{kernel.macs:,}"
                )
        known |= {kernel.symbol for kernel in kernels}
    return table


def _of_the_build(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Say what is not so of every program."""
    compiled = manifest.compiled
    if compiled.precision != "float32":
        apart = manifest.evaluated and not compiled.gpu
        scored = "; scores are those of the float32 program" if apart else ""
        yield "real numbers", f"{compiled.precision} within{scored}"
    if compiled.threads > 1:
        shared = sum(kernel.parallel for kernel in compiled.kernels)
        yield "threads", f"{compiled.threads}, for {shared} of {len(compiled.kernels)} calls of kernels"
    if compiled.variants:
        names = ", ".join(variant.name for variant in compiled.variants)
        yield "variants", f"{names}: taken where the CPU has them; {manifest.measured.variant} ran"
    if not manifest.measured.ran:
        scores = "; scores are those of the program for this machine" if manifest.evaluated else ""
        yield "ran on", f"{manifest.measured.device}{scores}"
    if compiled.gpu:
        yield "GPU", f"{compiled.gpu}; checked on {manifest.measured.device}"


def _print(opened: Bundle) -> None:
    from rich.table import Table

    from armlet.cli.console import stdout
    from armlet.report.tables import score_rows
    from armlet.report.words import arena_excess, headline
    from armlet.units import format_bytes

    console, manifest = stdout(), opened.manifest
    compiled = manifest.compiled
    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_column(style="bold")
    facts.add_column()
    for info in (*manifest.inputs, *manifest.outputs):
        kind = "input" if info in manifest.inputs else "output"
        facts.add_row(kind, f"{info.name}  {info.dtype}{list(info.shape)}")
    facts.add_row("preprocessing", manifest.preprocessing)
    facts.add_row(
        "target", f"{manifest.target.name}: {compiled.triple}, {compiled.cpu} {' '.join(compiled.features)}"
    )
    for name, text in _of_the_build(manifest):
        facts.add_row(name, text)
    if manifest.evaluated:
        score = manifest.measured.score if compiled.gpu else manifest.evaluated.score
        for label, text in score_rows(score) if score else [("score", "not measured")]:
            facts.add_row(label, text)
    elif file := manifest.imported:
        facts.add_row("accuracy", "not measured")
        facts.add_row("compiled from", f"{file.file}, SHA-256 {file.sha256}")
    facts.add_row("size", f"{format_bytes(manifest.size_bytes)} ({format_bytes(compiled.code_bytes)} code,"
                  f" {format_bytes(compiled.constant_bytes)} constants)")  # fmt: skip
    if packed := compiled.packed:
        facts.add_row(
            "packed",
            f"{format_bytes(packed.size_bytes)} ({format_bytes(packed.packed_bytes)} packed constants), and"
            f" {format_bytes(packed.weights_bytes)} of memory for them",
        )
    facts.add_row("memory", f"arena {format_bytes(manifest.memory_bytes)}, {arena_excess(compiled)}")
    symbol, last = manifest.symbol, "char *message" if compiled.gpu else "void *arena"
    first = f"{symbol}_program *program, " if compiled.gpu else ""
    facts.add_row(
        "call", f"int {symbol}_run({first}const void *const inputs[], void *const outputs[], {last})"
    )
    if stream := manifest.stream:
        state = format_bytes(stream.exported.inputs[1].n_bytes)
        facts.add_row(
            "stream",
            f"{stream.compiled.symbol}_run: {stream.exported.frames} at a time, {state} of state,"
            f" {format_bytes(stream.compiled.size_bytes)} code and constants, in stream/",
        )
    facts.add_row("verdict", "pass" if manifest.verdict.passes else headline(manifest.verdict))
    facts.add_row("files", f"{len(manifest.files)}, all verified")
    facts.add_row("versions", ", ".join(manifest.provenance.versions))
    console.print(f"{manifest.name} for {manifest.target.name}", style="bold")
    console.print(facts)
    console.print(_kernels_table(compiled))
    for fallback in compiled.fallbacks:
        console.print(f"fallback: {fallback.layer} ({fallback.op}): {fallback.reason}")
