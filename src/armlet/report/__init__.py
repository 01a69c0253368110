"""Reports: one HTML page for people, tables for the terminal. Reads artefacts only."""

from __future__ import annotations

from armlet.report.page import ReportInput, render_report
from armlet.report.tables import passes_table, verdict_table

__all__ = ["ReportInput", "passes_table", "render_report", "verdict_table"]
