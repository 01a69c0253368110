"""Which answers compression changed: the classes and the inputs that pay for a smaller network.

Source: Hooker et al. 2019, "What Do Compressed Deep Neural Networks Forget?" (compression-identified exemplars).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from armlet.artifacts import ChangedClass, ChangedInput, Changes

MOST_INPUTS = 48
"""Changed inputs that are kept one by one, those first of which the network before was surest."""


def find_changes(before: npt.NDArray[Any], after: npt.NDArray[Any], labels: npt.NDArray[np.int64]) -> Changes:
    """Compare two networks' answers to the same samples.

    Args:
        before: logits [N, n_classes] of the network before compression.
        after: logits [N, n_classes] of what came of it.
        labels: [N].
    """
    sure_before, sure_after = confidences(before), confidences(after)
    was, is_ = before.argmax(axis=1), after.argmax(axis=1)
    changed = was != is_
    lost, gained = changed & (was == labels), changed & (is_ == labels)
    classes = tuple(
        ChangedClass(
            n_samples=int((labels == c).sum()),
            n_changed=int((changed & (labels == c)).sum()),
            n_lost=int((lost & (labels == c)).sum()),
            n_gained=int((gained & (labels == c)).sum()),
        )
        for c in range(before.shape[1])
    )
    indices = np.flatnonzero(changed)
    surest = indices[np.argsort(-sure_before[indices, was[indices]], kind="stable")][:MOST_INPUTS]
    inputs = tuple(
        ChangedInput(
            index=int(i),
            label=int(labels[i]),
            before=int(was[i]),
            after=int(is_[i]),
            confidence_before=float(sure_before[i, was[i]]),
            confidence_after=float(sure_after[i, is_[i]]),
        )
        for i in surest
    )
    return Changes(len(labels), int(changed.sum()), int(lost.sum()), int(gained.sum()), classes, inputs)


def confidences(logits: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return the softmax of logits [N, n_classes]."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    shares: npt.NDArray[np.float64] = exponentials / exponentials.sum(axis=1, keepdims=True)
    return shares
