"""Budgets: what must hold for a build to pass."""

from __future__ import annotations

from pydantic import Field, NonNegativeFloat

from armlet.spec.base import Bytes, Decibels, Fraction, Milliseconds, Spec


class Budgets(Spec):
    """What must hold; a budget that is left out is not checked."""

    accuracy: Fraction | None = Field(
        None, description="Least accuracy of the compiled program, full test split."
    )
    accuracy_drop: Fraction | None = Field(
        None,
        description="Most accuracy lost between the trained network and the compiled program, in points.",
    )
    worst_class_accuracy_drop: Fraction | None = Field(
        None, description="Most accuracy that any one class may lose, in points."
    )
    expected_calibration_error: Fraction | None = Field(
        None, description="Most that confidence and accuracy may be apart, on average."
    )
    mape: Fraction | None = Field(None, description="Most mean absolute percentage error of a forecast.")
    roc_auc: Fraction | None = Field(None, description="Least area under the ROC curve of the anomaly score.")
    average_precision: Fraction | None = Field(
        None, description="Least average precision of the anomaly score."
    )
    psnr: Decibels | None = Field(None, description="Least mean PSNR of denoised pictures, with its unit.")
    psnr_gain: Decibels | None = Field(
        None, description="Least gain of PSNR over the noisy pictures, with its unit."
    )
    ssim: Fraction | None = Field(None, description="Least structural similarity of denoised pictures.")
    frechet_distance: NonNegativeFloat | None = Field(
        None, description="Most Fréchet distance of generated from real pictures, in the judge's features."
    )
    frechet_ratio: Fraction | None = Field(
        None, description="Most Fréchet distance, as a share of that of the network before training."
    )
    sample_precision: Fraction | None = Field(
        None, description="Least share of generated samples that look real."
    )
    sample_recall: Fraction | None = Field(
        None, description="Least share of real samples that could be generated."
    )
    score_drop: NonNegativeFloat | None = Field(
        None,
        description="Most that the task's main metric may get worse between the trained network and the compiled "
        "program, in the metric's own unit.",
    )
    latency: Milliseconds | None = Field(
        None,
        description="Most time for one inference, with its unit; an estimate counts with its upper bound.",
    )
    step_latency: Milliseconds | None = Field(
        None, description="Most time for one step of a stream, with its unit; counted as latency is."
    )
    size: Bytes | None = Field(
        None, description="Most bytes of code and constants that an app links, with unit."
    )
    memory: Bytes | None = Field(None, description="Most bytes of working memory (the arena), with its unit.")
