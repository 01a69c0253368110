"""What data sets of sequences have in common: padding with a length, and scales from the training frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from armlet.data.splits import Samples

if TYPE_CHECKING:
    import numpy as np


def pad(sequences: Sequence[np.ndarray], n_frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Return [N, n_frames, C] float32 with zeros behind each sequence's end, and the lengths [N] int32."""
    import numpy as np

    padded = np.zeros((len(sequences), n_frames, sequences[0].shape[1]), np.float32)
    for row, sequence in zip(padded, sequences, strict=True):
        row[: len(sequence)] = sequence
    return padded, np.array([len(s) for s in sequences], np.int32)


def standardize(train: Samples, *others: Samples) -> tuple[Samples, ...]:
    """Return the splits with every channel scaled to mean 0 and deviation 1 over the frames of `train`.

    Frames behind a sequence's length do not count, and stay 0.
    """
    import numpy as np

    frames = train.inputs[0].astype(np.float64)[_valid(train)]
    mean, deviation = frames.mean(axis=0), frames.std(axis=0)
    deviation = np.where(deviation > 0, deviation, 1.0)

    def scaled(samples: Samples) -> Samples:
        values = (samples.inputs[0] - mean) / deviation
        values = np.where(_valid(samples)[..., None], values, 0.0).astype(np.float32)
        return replace(samples, inputs=(values, *samples.inputs[1:]))

    return tuple(scaled(samples) for samples in (train, *others))


def _valid(samples: Samples) -> np.ndarray:
    """Return which frames are before the end of their sequence, [N, T]."""
    import numpy as np

    n, n_frames = samples.inputs[0].shape[:2]
    if len(samples.inputs) == 1:
        return np.ones((n, n_frames), bool)
    return np.arange(n_frames) < samples.inputs[1][:, None]
