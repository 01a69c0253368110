"""The metrics that tasks are scored with: what each is called, which way is better, and how it is written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from armlet.units import format_percent

Form = Literal["percent", "decibel", "plain"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric.

    Attributes:
        label: what a person reads.
        higher_is_better: false for errors and distances.
        form: "percent": a fraction, written in per cent; "decibel"; "plain": four significant digits.
    """

    label: str
    higher_is_better: bool
    form: Form

    def text(self, value: float) -> str:
        """Return a value as a person reads it."""
        match self.form:
            case "percent":
                return format_percent(value, 2)
            case "decibel":
                return f"{value:.2f} dB"
            case "plain":
                return f"{value:.4g}"

    def change(self, before: float, after: float) -> str:
        """Return a change with its sign, in points, decibels, or as a plain difference."""
        change = after - before
        match self.form:
            case "percent":
                text, nothing = f"{change * 100:+.2f} points", abs(change) < 0.00005
            case "decibel":
                text, nothing = f"{change:+.2f} dB", abs(change) < 0.005
            case "plain":
                text, nothing = f"{change:+.3g}", change == 0
        return ("±" + text[1:] if nothing else text).replace("-", "−")


METRICS: dict[str, Metric] = {
    "accuracy": Metric("accuracy", higher_is_better=True, form="percent"),
    "expected_calibration_error": Metric("calibration error", higher_is_better=False, form="percent"),
    "reconstruction_error": Metric("reconstruction error", higher_is_better=False, form="plain"),
    "mape": Metric("mean absolute percentage error", higher_is_better=False, form="percent"),
    "roc_auc": Metric("ROC AUC", higher_is_better=True, form="plain"),
    "average_precision": Metric("average precision", higher_is_better=True, form="plain"),
    "psnr": Metric("PSNR", higher_is_better=True, form="decibel"),
    "psnr_gain": Metric("PSNR gain", higher_is_better=True, form="decibel"),
    "ssim": Metric("SSIM", higher_is_better=True, form="plain"),
    "frechet_distance": Metric("Fréchet distance", higher_is_better=False, form="plain"),
    "frechet_ratio": Metric("Fréchet distance, of untrained", higher_is_better=False, form="percent"),
    "sample_precision": Metric("precision of samples", higher_is_better=True, form="percent"),
    "sample_recall": Metric("recall of samples", higher_is_better=True, form="percent"),
}

TASK_METRICS: dict[str, tuple[str, ...]] = {
    "classification": ("accuracy", "expected_calibration_error"),
    "forecast": ("mape",),
    "anomaly": ("roc_auc", "average_precision"),
    "denoising": ("psnr", "psnr_gain", "ssim"),
    "generation": ("frechet_distance", "frechet_ratio", "sample_precision", "sample_recall"),
}
"""The metrics of each task, the main one first."""


def loss_of_score(metric: str, before: float, after: float) -> float:
    """Return how much worse `after` is: above 0 is worse, in the metric's own unit."""
    return before - after if METRICS[metric].higher_is_better else after - before
