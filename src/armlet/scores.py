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
        meaning: what it says, to somebody who has never met it.
    """

    label: str
    higher_is_better: bool
    form: Form
    meaning: str

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
    "accuracy": Metric(
        "accuracy",
        higher_is_better=True,
        form="percent",
        meaning="share of the samples whose highest answer is the right class",
    ),
    "expected_calibration_error": Metric(
        "calibration error",
        higher_is_better=False,
        form="percent",
        meaning="how far sureness and accuracy are apart, on average over 15 bins; 0: right as often as it is sure",
    ),
    "reconstruction_error": Metric(
        "reconstruction error",
        higher_is_better=False,
        form="plain",
        meaning="mean squared difference between a sample and what the network repeats of it",
    ),
    "mape": Metric(
        "MAPE",
        higher_is_better=False,
        form="percent",
        meaning="mean absolute percentage error: how far forecasts are off on average, in per cent of what came",
    ),
    "roc_auc": Metric(
        "ROC AUC",
        higher_is_better=True,
        form="plain",
        meaning="chance that an anomaly has a larger error than a normal sample; 0.5 is guessing, 1 perfect",
    ),
    "average_precision": Metric(
        "average precision",
        higher_is_better=True,
        form="plain",
        meaning="share of true anomalies among those reported, averaged over all thresholds; guessing gives their"
        " share of all samples, 1 is perfect",
    ),
    "psnr": Metric(
        "PSNR",
        higher_is_better=True,
        form="decibel",
        meaning="peak signal-to-noise ratio against the clean picture, on average; 3 dB more is half the squared error",
    ),
    "psnr_gain": Metric(
        "PSNR gain",
        higher_is_better=True,
        form="decibel",
        meaning="how much higher the PSNR of the answer is than that of the noisy input",
    ),
    "ssim": Metric(
        "SSIM",
        higher_is_better=True,
        form="plain",
        meaning="structural similarity to the clean picture, nearer than PSNR to what an eye sees; 1 is the same",
    ),
    "frechet_distance": Metric(
        "Fréchet distance",
        higher_is_better=False,
        form="plain",
        meaning="how far generated and real pictures are apart as two clouds in the features of the judge; it compares"
        ' with other distances of the same judge only, and with no published "FID", which has another judge',
    ),
    "frechet_ratio": Metric(
        "Fréchet distance, of untrained",
        higher_is_better=False,
        form="percent",
        meaning="the Fréchet distance as a share of that of the network before training",
    ),
    "sample_precision": Metric(
        "precision of samples",
        higher_is_better=True,
        form="percent",
        meaning="share of the generated pictures that lie among the real ones: how good they are",
    ),
    "sample_recall": Metric(
        "recall of samples",
        higher_is_better=True,
        form="percent",
        meaning="share of the real pictures that lie among the generated ones: how much of them is covered",
    ),
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
