"""Samples with their targets, the splits of a data set, and how smaller or held-out splits are drawn from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from armlet.artifacts import InputSpec, Task
from armlet.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

    Indices = np.ndarray[tuple[int], np.dtype[np.int64]]


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """Inputs and what the network shall answer, in step.

    Attributes:
        inputs: for each input of the network [n_samples, *shape]: float32, or int32 for tokens and lengths.
        targets: int64 [n_samples] classes, or float32 [n_samples, ...] answers.
        labels: int64 [n_samples], the class of each sample where there are classes; for classification the targets,
            for anomalies 0 (normal) or 1.
        groups: int64 [n_samples], such as the subject that a sample comes from; validation holds out whole groups.
        shares: float32 [n_samples, n_classes], how sure people are of each class; training learns them in place of
            the target, and scores are of the target all the same.
    """

    inputs: tuple[np.ndarray, ...]
    targets: np.ndarray
    labels: np.ndarray | None = None
    groups: np.ndarray | None = None
    shares: np.ndarray | None = None

    def __post_init__(self) -> None:
        if any(x.dtype not in ("float32", "int32") for x in self.inputs):
            raise TypeError(
                f"inputs are {', '.join(str(x.dtype) for x in self.inputs)}: float32 or int32 is meant"
            )
        if self.targets.dtype not in ("int64", "float32"):
            raise TypeError(f"targets are {self.targets.dtype}: int64 or float32 is meant")
        for what, found in (("labels", self.labels), ("groups", self.groups)):
            if found is not None and (found.dtype != "int64" or found.ndim != 1):
                raise TypeError(
                    f"{what} are {found.dtype} of shape {found.shape}: one int64 a sample is meant"
                )
        if self.shares is not None and (self.shares.dtype != "float32" or self.shares.ndim != 2):
            raise TypeError(
                f"shares are {self.shares.dtype} of shape {self.shares.shape}: float32 [N, n] is meant"
            )
        sizes = {name: len(x) for name, x in self.named().items()}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"as many of each are meant, but there are {sizes}")

    def __len__(self) -> int:
        return int(self.targets.shape[0])

    def take(self, indices: Indices | slice) -> Samples:
        """Return the samples at `indices`, int64 [n] or a slice."""
        return Samples.of_named({name: x[indices] for name, x in self.named().items()})

    def named(self) -> dict[str, np.ndarray]:
        """Return the arrays that are there, by name; the inputs are named by their position."""
        others = {
            "targets": self.targets,
            "labels": self.labels,
            "groups": self.groups,
            "shares": self.shares,
        }
        inputs = {f"inputs.{i}": x for i, x in enumerate(self.inputs)}
        return inputs | {name: x for name, x in others.items() if x is not None}

    @classmethod
    def of_named(cls, arrays: Mapping[str, np.ndarray]) -> Samples:
        """Return what `named` gave."""
        inputs = tuple(arrays[f"inputs.{i}"] for i in range(sum(n.startswith("inputs.") for n in arrays)))
        return cls(inputs, arrays["targets"], *(arrays.get(name) for name in ("labels", "groups", "shares")))


@dataclass(frozen=True, slots=True, eq=False)
class Splits:
    """A data set; `validation` is empty until `hold_out`.

    Attributes:
        assets: files that an app needs to prepare inputs, such as a tokenizer, by name.
        unlabeled: inputs without an answer, to pre-train on; none where the data set has none.
    """

    train: Samples
    validation: Samples
    test: Samples
    inputs: tuple[InputSpec, ...]
    task: Task
    assets: tuple[tuple[str, bytes], ...] = ()
    unlabeled: tuple[np.ndarray, ...] = ()

    def __post_init__(self) -> None:
        for samples in (self.train, self.validation, self.test):
            found = [(x.shape[1:], str(x.dtype)) for x in samples.inputs]
            if found != [(spec.shape, spec.dtype) for spec in self.inputs]:
                raise ValueError(f"samples are {found}, which are not {self.inputs}")


def not_finite(array: np.ndarray) -> str:
    """Say which samples, [N, ...], hold a NaN or an infinity; nothing where none does."""
    import numpy as np

    bad = [number for number, sample in enumerate(array) if not np.isfinite(sample).all()]
    return f"not finite: {len(bad)} of {len(array)}, the first is number {bad[0]}" if bad else ""


def hold_out(splits: Splits, share: float, seed: int) -> Splits:
    """Move a `share` (0 to below 1) of the training samples into the validation split.

    Samples that have groups are held out by whole groups, as many as come nearest to the share and at least one; else
    each class gives its share, to within one sample, where there are classes. The same seed draws the same samples.
    Both splits keep the order that the samples had.

    Raises:
        UsageError: nothing would be left to train on.
    """
    import numpy as np

    n_held = max(1, round(share * len(splits.train))) if share > 0 else 0
    if n_held >= len(splits.train):
        raise UsageError(f"validation {share:g} of {len(splits.train)} samples leaves none to train on")
    rng = np.random.default_rng((seed, 1))  # a stream of its own for each purpose
    if splits.train.groups is not None and n_held:
        held = _draw_groups(splits.train.groups, n_held, rng)
    else:
        labels = _classes(splits.train)
        held = _draw(labels, _largest_remainder(np.bincount(labels), n_held), rng)
    kept = np.setdiff1d(np.arange(len(splits.train)), held, assume_unique=True)
    return replace(splits, train=splits.train.take(kept), validation=splits.train.take(held))


def limited(samples: Samples, limit: int | None, seed: int) -> Samples:
    """Return at most `limit` samples, as many of each class as the classes allow; None leaves all.

    Raises:
        UsageError: the limit is below one sample a class.
    """
    import numpy as np

    if limit is None or limit >= len(samples):
        return samples
    labels = _classes(samples)
    n_classes = len(np.unique(labels))
    if limit < n_classes:
        raise UsageError(f"a limit of {limit} samples is below one for each of {n_classes} classes")
    rng = np.random.default_rng((seed, 2))
    return samples.take(_draw(labels, _balanced(np.bincount(labels), limit, rng), rng))


def with_labels(splits: Splits, fraction: float, per_class: int | None, seed: int) -> Splits:
    """Leave a part of the training samples their labels; the inputs of the others become unlabelled.

    Each class keeps the same share of its samples, and at least one. A smaller part is within a larger one of the same
    seed, so that what is compared is only how much was known.

    Args:
        splits: after `hold_out`.
        fraction: share of the samples, above 0 to 1.
        per_class: most samples of each class; None is no limit.
        seed: draws the same samples each time.
    """
    import numpy as np

    labels = _classes(splits.train)
    order = np.random.default_rng((seed, 3)).permutation(len(labels))
    kept = []
    for label in np.unique(labels):
        members = order[labels[order] == label]
        n_kept = max(1, round(fraction * len(members)))
        kept.append(members[: n_kept if per_class is None else min(n_kept, per_class)])
    chosen = np.sort(np.concatenate(kept))
    if len(chosen) == len(labels):
        return splits
    others = np.setdiff1d(np.arange(len(labels)), chosen, assume_unique=True)
    unlabeled = tuple(x[others] for x in splits.train.inputs)
    if splits.unlabeled:
        unlabeled = tuple(np.concatenate(pair) for pair in zip(unlabeled, splits.unlabeled, strict=True))
    return replace(splits, train=splits.train.take(chosen), unlabeled=unlabeled)


def _classes(samples: Samples) -> np.ndarray:
    """Return the class of each sample, one for all where there are none."""
    import numpy as np

    return np.zeros(len(samples), np.int64) if samples.labels is None else samples.labels


def _draw_groups(groups: np.ndarray, total: int, rng: np.random.Generator) -> Indices:
    """Return the sorted indices of whole groups, drawn at random until `total` samples are nearest.

    Raises:
        UsageError: there is only one group.
    """
    import numpy as np

    names = rng.permutation(np.unique(groups))
    if len(names) < 2:
        raise UsageError("validation holds out whole groups (such as subjects), and there is only one")
    sizes = np.cumsum([np.count_nonzero(groups == name) for name in names])[:-1]
    n_groups = int(np.argmin(np.abs(sizes - total))) + 1
    return np.flatnonzero(np.isin(groups, names[:n_groups]))


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
