"""Samples with labels, the splits of a data set, and how smaller or held-out splits are drawn from them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from armlet.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

    Indices = np.ndarray[tuple[int], np.dtype[np.int64]]


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """Inputs and labels, in step.

    Attributes:
        inputs: float32 [n_samples, *input_shape].
        labels: int64 [n_samples], each from 0 to n_classes - 1.
    """

    inputs: np.ndarray
    labels: np.ndarray

    def __post_init__(self) -> None:
        if self.inputs.dtype != "float32" or self.labels.dtype != "int64":
            raise TypeError(
                f"inputs are {self.inputs.dtype} and labels {self.labels.dtype}: float32, int64 are meant"
            )
        if self.labels.shape != self.inputs.shape[:1]:
            raise ValueError(f"{self.inputs.shape[0]} inputs have labels of shape {self.labels.shape}")

    def __len__(self) -> int:
        return int(self.labels.shape[0])

    def take(self, indices: Indices) -> Samples:
        """Return the samples at `indices`, int64 [n]."""
        return Samples(self.inputs[indices], self.labels[indices])


@dataclass(frozen=True, slots=True, eq=False)
class Splits:
    """A data set; `validation` is empty until `hold_out`."""

    train: Samples
    validation: Samples
    test: Samples
    class_names: tuple[str, ...]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input, without a batch."""
        return tuple(int(extent) for extent in self.train.inputs.shape[1:])

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)


def hold_out(splits: Splits, share: float, seed: int) -> Splits:
    """Move a stratified `share` (0 to below 1) of the training samples into the validation split.

    Each class gives its share, to within one sample; the same seed draws the same samples. Both splits keep
    the order that the samples had.

    Raises:
        UsageError: nothing would be left to train on.
    """
    import numpy as np

    n_held = max(1, round(share * len(splits.train))) if share > 0 else 0
    if n_held >= len(splits.train):
        raise UsageError(f"validation {share:g} of {len(splits.train)} samples leaves none to train on")
    labels = splits.train.labels
    counts = np.bincount(labels, minlength=splits.n_classes)
    rng = np.random.default_rng((seed, 1))  # a stream of its own for each purpose
    held = _draw(labels, _largest_remainder(counts, n_held), rng)
    kept = np.setdiff1d(np.arange(len(splits.train)), held, assume_unique=True)
    return replace(splits, train=splits.train.take(kept), validation=splits.train.take(held))


def limited(samples: Samples, limit: int | None, n_classes: int, seed: int) -> Samples:
    """Return at most `limit` samples, as many of each class as the classes allow; None leaves all.

    Raises:
        UsageError: the limit is below one sample a class.
    """
    import numpy as np

    if limit is None or limit >= len(samples):
        return samples
    if limit < n_classes:
        raise UsageError(f"a limit of {limit} samples is below one for each of {n_classes} classes")
    rng = np.random.default_rng((seed, 2))
    counts = np.bincount(samples.labels, minlength=n_classes)
    return samples.take(_draw(samples.labels, _balanced(counts, limit, rng), rng))


def _largest_remainder(counts: Indices, total: int) -> Indices:
    """Split `total` in proportion to `counts`, rounding by largest remainders."""
    import numpy as np

    exact = counts * (total / counts.sum())
    shares: Indices = np.floor(exact).astype(np.int64)
    short = total - int(shares.sum())
    shares[np.argsort(shares - exact, kind="stable")[:short]] += 1
    return shares


def _balanced(counts: Indices, total: int, rng: np.random.Generator) -> Indices:
    """Split `total` evenly over classes of `counts` samples; the rest goes to classes drawn at random."""
    import numpy as np

    level = max(n for n in range(counts.max() + 1) if np.minimum(counts, n).sum() <= total)
    shares = np.minimum(counts, level)
    open_classes = np.flatnonzero(counts > level)
    shares[rng.permutation(open_classes)[: total - int(shares.sum())]] += 1
    return shares


def _draw(labels: np.ndarray, shares: Indices, rng: np.random.Generator) -> Indices:
    """Return the sorted indices of `shares[c]` random samples of each class c."""
    import numpy as np

    drawn = [rng.permutation(np.flatnonzero(labels == c))[:n] for c, n in enumerate(shares)]
    return np.sort(np.concatenate(drawn))
