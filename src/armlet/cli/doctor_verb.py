"""`armlet doctor`: what this machine has and lacks, with the command that installs it."""

from __future__ import annotations

from armlet.cli import options


def doctor(json: options.Json = False) -> int:
    """List what is there and what is missing, with the command that installs it. Exit 3 if something is missing."""
    from armlet import artifact_json
    from armlet.cli.console import print_json, stdout
    from armlet.doctor import diagnose

    findings = diagnose()
    missing = [finding for finding in findings if finding.is_missing]
    if json:
        print_json([artifact_json.to_data(finding) for finding in findings])
        return 3 if missing else 0
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("", "what", "found", "needed for"):
        table.add_column(column)
    for finding in findings:
        mark = "✗" if finding.is_missing else "✓" if finding.found else "–"
        table.add_row(mark, finding.name, finding.found or "no", finding.needed_for)
    console = stdout()
    console.print(table)
    for finding in missing:
        console.print(f"install {finding.name}: {finding.install}", soft_wrap=True)
    return 3 if missing else 0
