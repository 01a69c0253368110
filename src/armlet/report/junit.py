"""A verdict as JUnit XML, the form in which CI systems read test results."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

from armlet.artifacts import Verdict


def write_junit(verdict: Verdict, name: str, file: Path) -> None:
    """Write each check as a test case: a failed budget is a failure, one that was not measured an error.

    Args:
        verdict: of a bundle.
        name: of its program.
        file: to write.
    """
    outcomes = [check.outcome for check in verdict.checks]
    suite = ET.Element(
        "testsuite",
        name=f"{name} for {verdict.target}",
        tests=str(len(outcomes)),
        failures=str(outcomes.count("fail")),
        errors=str(outcomes.count("not measured")),
        skipped=str(outcomes.count("no budget")),
    )
    for check in verdict.checks:
        case = ET.SubElement(suite, "testcase", classname=f"{name}.{verdict.target}", name=check.what)
        said = f"budget {check.budget or 'none'}, measured {check.measured}"
        match check.outcome:
            case "fail":
                ET.SubElement(case, "failure", message=said)
            case "not measured":
                ET.SubElement(case, "error", message=said)
            case "no budget":
                ET.SubElement(case, "skipped", message=said)
            case "pass":
                ET.SubElement(case, "system-out").text = said
    ET.ElementTree(suite).write(file, encoding="utf-8", xml_declaration=True)
