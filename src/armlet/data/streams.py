"""Sequences cut into the steps in which a stream takes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from armlet.data.splits import Samples

if TYPE_CHECKING:
    import numpy as np


def in_whole_steps(samples: Samples, frames: int) -> Samples:
    """Return the samples cut to whole steps of `frames`; those that are shorter than one step are left out.

    Args:
        samples: sequences [N, T, ...], and lengths [N] where they differ in it; without lengths T is whole steps.
        frames: of a step.
    """
    import numpy as np

    if len(samples.inputs) == 1:
        return samples
    cut = (samples.inputs[1] // frames * frames).astype(np.int32)
    whole = Samples((samples.inputs[0], cut), samples.targets, samples.labels, samples.groups)
    return whole.take(np.flatnonzero(cut))


def steps_of(samples: Samples, frames: int) -> list[np.ndarray]:
    """Return each sample's frames step by step, [steps, 1, frames, ...], those behind its length left out."""
    n_whole = samples.inputs[0].shape[1] // frames
    steps = samples.inputs[0][:, : n_whole * frames]
    steps = steps.reshape(len(samples), n_whole, 1, frames, *steps.shape[2:])
    counts = [n_whole] * len(samples) if len(samples.inputs) == 1 else samples.inputs[1] // frames
    return [part[:n] for part, n in zip(steps, counts, strict=True)]
