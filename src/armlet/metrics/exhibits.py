"""Picks what a person can look at from the answers of a compiled program: pictures, errors, forecasts, confidences."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import numpy.typing as npt

from armlet.artifacts import Task
from armlet.data.splits import Samples
from armlet.exhibits import ConfidenceBin, ErrorHistogram, Exhibits, Forecasts, Pictures, Reliability
from armlet.metrics.anomaly import reconstruction_errors
from armlet.metrics.changes import confidences
from armlet.metrics.classification import N_BINS

N_GENERATED, N_GENERATED_TRAINED = 64, 16
N_DENOISED = 8
N_FORECASTS = 336  # of half hours, seven days
_N_ERROR_BINS = 40
_SMALLEST_ERROR = 1e-12  # an error of 0 has no place on a logarithmic scale


def n_of_trained(task: Task) -> int:
    """Return how many of the first test samples `make_exhibits` wants the trained network's answers to."""
    if not _are_pictures(task):
        return 0
    return N_GENERATED_TRAINED if task.kind == "generation" else N_DENOISED


def make_exhibits(
    task: Task, samples: Samples, compiled: npt.NDArray[Any], trained: npt.NDArray[Any] | None
) -> Exhibits:
    """Pick what the task has to show.

    Args:
        task: what was asked.
        samples: the test split.
        compiled: answers of the compiled program to all of it.
        trained: answers of the trained network before compression: for classification to all of it, for pictures to
            the first `n_of_trained`; None where no exhibit needs them.
    """
    match task.kind:
        case "classification" if trained is not None:
            bins = (confidence_bins(logits, samples.targets) for logits in (trained, compiled))
            return Exhibits(reliability=Reliability(*bins))
        case "forecast":
            values = (x.reshape(len(x), -1)[:N_FORECASTS, 0] for x in (samples.targets, compiled))
            return Exhibits(forecasts=Forecasts(*(tuple(map(float, x)) for x in values)))
        case "anomaly" if samples.labels is not None:
            return Exhibits(errors=error_histogram(reconstruction_errors(compiled, samples), samples.labels))
        case "generation" if trained is not None and _are_pictures(task):
            kinds = {"compiled program": compiled, "trained network": trained, "real": samples.targets}
            return Exhibits(_pictures(kinds, N_GENERATED, lowest=-1.0))
        case "denoising" if trained is not None and _are_pictures(task):
            kinds = {
                "noisy input": samples.inputs[0],
                "compiled program": compiled,
                "trained network": trained,
                "clean picture": samples.targets,
            }
            return Exhibits(_pictures(kinds, N_DENOISED, lowest=0.0))
    return Exhibits()


def confidence_bins(
    logits: npt.NDArray[Any], labels: npt.NDArray[np.int64], n_bins: int = N_BINS
) -> tuple[ConfidenceBin, ...]:
    """Return the samples by confidence, in bins of equal width: those whose mean gap is the calibration error.

    Source: Guo et al. 2017, "On Calibration of Modern Neural Networks".
    """
    shares = confidences(logits)
    sure, right = shares.max(axis=1), shares.argmax(axis=1) == labels
    places = np.minimum((sure * n_bins).astype(np.int64), n_bins - 1)
    members = [np.flatnonzero(places == place) for place in range(n_bins)]
    return tuple(
        ConfidenceBin(len(m), float(sure[m].mean()), float(right[m].mean())) for m in members if len(m)
    )


def error_histogram(
    errors: npt.NDArray[np.float64], labels: npt.NDArray[np.int64], n_bins: int = _N_ERROR_BINS
) -> ErrorHistogram:
    """Count the errors of normal samples (label 0) and of anomalies, over the range that both span."""
    clipped = np.maximum(errors, _SMALLEST_ERROR)
    low, high = clipped.min(), clipped.max()
    # Two ends that are the same would give bins of no width.
    edges = np.geomspace(low, high if high > low else 2 * low, n_bins + 1)
    edges[0], edges[-1] = min(edges[0], low), max(edges[-1], high)  # powers round
    normal, anomalies = (np.histogram(clipped[labels == kind], edges)[0] for kind in (0, 1))
    return ErrorHistogram(tuple(map(float, edges)), tuple(map(int, normal)), tuple(map(int, anomalies)))


def _are_pictures(task: Task) -> bool:
    """Say whether the answers are grey or coloured pictures, [channels, height, width]."""
    return (
        task.kind in ("generation", "denoising")
        and len(task.output_shape) == 3
        and task.output_shape[0] in (1, 3)
    )


def _pictures(kinds: dict[str, npt.NDArray[Any]], n: int, lowest: float) -> tuple[Pictures, ...]:
    """Return the first `n` pictures of each kind, given by name as [N, C, H, W] of values from `lowest` to 1."""
    made = []
    for name, values in kinds.items():
        lightness = (values[:n].astype(np.float64) - lowest) / (1.0 - lowest)
        pixels = np.rint(255 * np.clip(lightness, 0, 1)).astype(np.uint8).transpose(0, 2, 3, 1)
        n_shown, height, width, n_channels = pixels.shape
        made.append(
            Pictures(
                name,
                (n_shown, height, width, n_channels),
                base64.b64encode(pixels.tobytes()).decode("ascii"),
            )
        )
    return tuple(made)
