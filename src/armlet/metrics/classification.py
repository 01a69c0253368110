"""Classification: how many answers are right, over all samples and in each class."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from armlet.artifacts import Score
from armlet.errors import ArmletError, UsageError


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
    return Score("accuracy", float(hits.sum() / n_samples.sum()), len(labels), split, per_class)
