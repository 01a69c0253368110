"""Holds a bundle against an older one: no slower, no bigger, no less accurate, beyond what is allowed or chance.

Accuracies are compared as paired data, sample by sample: a difference that as many coin tosses would show fails
nothing, and a real drop does, however small.
"""

from __future__ import annotations

import base64
import math
from dataclasses import replace
from pathlib import Path

from armlet.artifacts import Check, Evaluated, Latency, Outcome, Verdict
from armlet.bundle import Bundle, Manifest
from armlet.errors import UsageError
from armlet.scores import METRICS, loss_of_score
from armlet.units import format_bytes, format_ms, format_percent, parse_fraction

_REPLICATES = 0.05  # by which timings of one program may differ from run to run
_CHANCE = 0.05  # share of builds without any change in accuracy that may fail


def regressions(bundle: Bundle, baseline: Bundle, tolerance: float) -> tuple[Check, ...]:
    """Compare what two bundles of one task are, on one target.

    Args:
        bundle: the new one.
        baseline: the old one.
        tolerance: share by which latency, size, memory and scores without single answers may be worse; a measured
            latency may be 5 % worse in any case.

    Raises:
        UsageError: they are for different targets or tasks.
    """
    new, old = bundle.manifest, baseline.manifest
    if new.target.name != old.target.name:
        raise UsageError(
            f"--baseline {baseline.folder} is for {old.target.name}, the bundle for {new.target.name}: their costs"
            " can't be compared"
        )
    return (
        _score(new, old, tolerance),
        _latency(new.measured.latency, old.measured.latency, tolerance),
        _bytes("size", new.size_bytes, old.size_bytes, tolerance),
        _bytes("memory", new.memory_bytes, old.memory_bytes, tolerance),
    )


def beside_baseline(
    verdict: Verdict, bundle: Bundle, baseline: str | Path, tolerance: str | float
) -> Verdict:
    """Return a bundle's verdict with the checks against an older bundle.

    Args:
        verdict: of the bundle.
        bundle: the new one.
        baseline: folder of the old one.
        tolerance: as `regressions` takes it, or as text such as "2 %".

    Raises:
        UsageError: the baseline is no bundle or can't be compared, or the tolerance is no share.
    """
    try:
        share = parse_fraction(tolerance)
    except ValueError as error:
        raise UsageError(f"tolerance: {error}") from None
    return replace(verdict, checks=(*verdict.checks, *regressions(bundle, Bundle.open(baseline), share)))


def pack_right(right: bytes) -> str:
    """Return which answers are right as text.

    Args:
        right: one byte for each sample, 1 or 0.
    """
    padded = right + bytes(-len(right) % 8)
    packed = bytes(
        sum(bit << place for place, bit in enumerate(padded[i : i + 8])) for i in range(0, len(padded), 8)
    )
    return base64.b64encode(packed).decode("ascii")


def unpack_right(text: str, n: int) -> list[bool]:
    """Return for each of n samples whether its answer is right; the inverse of `pack_right`."""
    packed = base64.b64decode(text)
    return [bool(packed[i // 8] >> i % 8 & 1) for i in range(n)]


def chance_of_drop(lost: int, gained: int) -> float:
    """Return how probable it is that as many answers or more are lost, were a change as likely to be a gain.

    Source: McNemar, Psychometrika 12 (1947), in its exact one-sided form: a binomial test with p = 1/2.
    """
    changed = lost + gained
    ways, of_k = 0, math.comb(changed, lost)
    for k in range(lost, changed + 1):
        ways += of_k
        of_k = of_k * (changed - k) // (k + 1)
    return ways / (1 << changed)


def _evaluated(manifest: Manifest) -> Evaluated | None:
    """Return what the program itself scored; single answers of one for a GPU are not kept."""
    found = manifest.evaluated
    if found is None or not manifest.compiled.gpu:
        return found
    score = manifest.measured.score
    return None if score is None else replace(found, score=score, right=None)


def _score(new: Manifest, old: Manifest, tolerance: float) -> Check:
    after, before = _evaluated(new), _evaluated(old)
    if after is None or before is None:
        return Check("accuracy beside baseline", "", "not measured", None, "no budget")
    what = f"{METRICS[after.score.metric].label} beside baseline"
    if after.score.metric != before.score.metric or after.score.n_samples != before.score.n_samples:
        raise UsageError("--baseline: the bundles were scored by other metrics or on other samples")
    drop = loss_of_score(after.score.metric, before.score.value, after.score.value)
    if (
        after.right is None
        or before.right is None
        or new.provenance.data_sha256 != old.provenance.data_sha256
    ):
        limit = tolerance * abs(before.score.value)
        outcome: Outcome = "pass" if drop <= limit else "fail"
        text = METRICS[after.score.metric].text
        measured = f"{text(after.score.value)}, was {text(before.score.value)}"
        return Check(what, f"at most {format_percent(tolerance)} worse", measured, None, outcome)
    n = after.score.n_samples
    pairs = list(zip(unpack_right(before.right, n), unpack_right(after.right, n), strict=True))
    lost, gained = sum(b and not a for b, a in pairs), sum(a and not b for b, a in pairs)
    chance = chance_of_drop(lost, gained)
    return Check(
        what,
        f"no drop beyond chance (p ≥ {_CHANCE:g})",
        f"{lost} newly wrong, {gained} newly right of {n}: p = {chance:.3g}",
        None,
        "fail" if lost > gained and chance < _CHANCE else "pass",
    )


def _latency(new: Latency | None, old: Latency | None, tolerance: float) -> Check:
    what = "latency beside baseline"
    if new is None or old is None:
        return Check(what, "", "not measured", None, "no budget")
    if new.label != old.label:
        return Check(what, "", f"not compared: {new.label}, was {old.label}", None, "no budget")
    allowed = tolerance if new.label == "estimated" else max(tolerance, _REPLICATES)
    limit = old.typical_ms * (1 + allowed)
    return Check(
        what,
        f"≤ {format_ms(limit)} ({format_percent(allowed, 0)} above {format_ms(old.typical_ms)})",
        f"{format_ms(new.typical_ms)} {new.label}",
        (limit - new.typical_ms) / limit,
        "pass" if new.typical_ms <= limit else "fail",
    )


def _bytes(what: str, new: int, old: int, tolerance: float) -> Check:
    limit = old * (1 + tolerance)
    return Check(
        f"{what} beside baseline",
        f"≤ {format_bytes(limit)} ({format_percent(tolerance, 0)} above {format_bytes(old)})",
        format_bytes(new),
        (limit - new) / limit if limit else None,
        "pass" if new <= limit else "fail",
    )
