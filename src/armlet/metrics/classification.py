"""Classification: how many answers are right, over all samples and in each class."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from armlet.artifacts import Score
from armlet.errors import ArmletError, UsageError

N_BINS = 15


def score_classification(
    predictions: npt.NDArray[Any], labels: npt.NDArray[np.int64], n_classes: int, split: str
) -> Score:
    """Return the accuracy, over all samples and of each class.

    Args:
        predictions: logits [N, n_classes] of any type, of which the first highest counts, or classes [N].
        labels: [N].
        n_classes: number of classes; a class without samples scores 0.
        split: name of the split that the samples come from.

    Raises:
        UsageError: there are no samples, or the shapes don't fit.
        ArmletError: a prediction is not a number.
    """
    import torch
    from torchmetrics.functional.classification import multiclass_stat_scores

    if len(labels) == 0:
        raise UsageError(f"the {split} split has no samples to score")
    logits_fit = predictions.shape == (len(labels), n_classes)
    if not logits_fit and predictions.shape != labels.shape:
        raise UsageError(
            f"predictions of shape {predictions.shape} for {len(labels)} labels of {n_classes} classes"
        )
    if np.isnan(predictions).any():
        raise ArmletError(f"predictions for the {split} split are not numbers (NaN)")
    classes = predictions.argmax(axis=1) if logits_fit else predictions
    counts = multiclass_stat_scores(
        torch.from_numpy(classes.astype(np.int64)), torch.from_numpy(labels), n_classes, average="none"
    ).numpy()  # [n_classes, (true positives, false positives, true negatives, false negatives, samples)]
    hits, n_samples = counts[:, 0], counts[:, 4]
    # Divided here, as torchmetrics would round to float32.
    per_class = tuple(float(h / n) if n else 0.0 for h, n in zip(hits, n_samples, strict=True))
    others = (("expected_calibration_error", _calibration_error(predictions, labels)),) if logits_fit else ()
    return Score("accuracy", float(hits.sum() / n_samples.sum()), len(labels), split, per_class, others)


def _calibration_error(logits: npt.NDArray[Any], labels: npt.NDArray[np.int64]) -> float:
    """Return how far confidence and accuracy are apart, on average over 15 bins of confidence.

    Source: Guo et al. 2017, "On Calibration of Modern Neural Networks".
    """
    import torch
    from torchmetrics.functional.classification import multiclass_calibration_error

    confidences = torch.from_numpy(logits.astype(np.float32)).softmax(dim=1)
    error = multiclass_calibration_error(
        confidences, torch.from_numpy(labels), logits.shape[1], n_bins=N_BINS
    )
    return float(error)
