"""How the report and the terminal word a verdict and a change."""

from __future__ import annotations

from armlet.artifacts import Compiled, Verdict
from armlet.scores import Metric


def verdict_sentence(verdict: Verdict) -> str:
    """Say in one sentence whether the budgets hold; no budget at all is said too."""
    outcomes = [check.outcome for check in verdict.checks]
    failed, unmeasured = outcomes.count("fail"), outcomes.count("not measured")
    n_set = len(outcomes) - outcomes.count("no budget")
    if n_set == 0:
        return "no budget is set: nothing was checked"
    parts = []
    if failed:
        parts.append(f"{failed} of {n_set} checks fail")
    if unmeasured:
        parts.append(f"{unmeasured} of {n_set} not measured")
    return ", ".join(parts) if parts else f"{n_set} of {n_set} checks pass"


def headline(verdict: Verdict) -> str:
    """Say a verdict in the word of its worst check."""
    outcomes = {check.outcome for check in verdict.checks}
    return next((word for word in ("fail", "not measured", "pass") if word in outcomes), "no budget")


def margin_text(margin: float | None) -> str:
    """Say how much of a budget is left: "12 % left", "missed by 3 %"; "–" where it can't be said."""
    if margin is None:
        return "–"
    return f"{margin * 100:.3g} % left" if margin >= 0 else f"missed by {-margin * 100:.3g} %"


def arena_excess(compiled: Compiled) -> str:
    """Say how far the arena is above its lower bound: "0 % above the least possible"."""
    least = compiled.arena_lower_bound
    excess = (compiled.arena_bytes - least) / least if least else 0.0
    return f"{excess * 100:.2g} % above the least possible"


def cost_change(before: float, after: float) -> str:
    """Say a change of a cost: "÷2.5", "×1.2", or nothing when three digits show none."""
    if not before or not after:
        return ""
    ratio = f"{max(before, after) / min(before, after):.3g}"
    return "" if ratio == "1" else f"{'÷' if after < before else '×'}{ratio}"


def axis_of(metric: Metric) -> tuple[float, str]:
    """Return what values of a metric are multiplied by on an axis, and the unit to write after its name."""
    return {"percent": (100.0, " (%)"), "decibel": (1.0, " (dB)"), "plain": (1.0, "")}[metric.form]
