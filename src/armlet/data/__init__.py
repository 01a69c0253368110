"""Data sets: fetched once from a real source, verified by digest, split by seed.

`fetch` puts verified files into a folder, `load` reads them, `prepare` limits them and holds out a validation
split. All data sets share one folder: each lies in the subfolder of its kind. Importing this package, and
asking for kinds, licences and digests, loads neither numpy nor torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from armlet.artifacts import DataReady
from armlet.data import (
    electricity_demand,
    fashion_mnist,
    japanese_vowels,
    letter_recognition,
    movie_sentences,
    shuttle,
    smartwatch_exercises,
)
from armlet.data.dataset import DATA_SETS
from armlet.data.sources import fetch_files, problems
from armlet.data.splits import Samples, Splits, hold_out, limited, with_labels
from armlet.errors import Problem
from armlet.progress import Progress

__all__ = [
    "Samples",
    "Splits",
    "digests",
    "electricity_demand",
    "ensure",
    "fashion_mnist",
    "fetch",
    "hold_out",
    "is_fetched",
    "japanese_vowels",
    "kinds",
    "letter_recognition",
    "licence",
    "limited",
    "load",
    "movie_sentences",
    "prepare",
    "shuttle",
    "smartwatch_exercises",
    "verify",
]


def kinds() -> tuple[str, ...]:
    """Return the names of all data sets, sorted."""
    return tuple(DATA_SETS)


def licence(kind: str) -> str:
    """Return the licence of a data set."""
    return DATA_SETS[kind].source.licence


def digests(kind: str) -> tuple[str, ...]:
    """Return the SHA-256 of each file's content: what a data set is, before any of it is fetched."""
    return tuple(file.sha256 for file in DATA_SETS[kind].source.files)


def ensure(kind: str, folder: Path, progress: Progress) -> None:
    """Put the verified files of a data set below `folder`, without reading them; raises as `fetch` does."""
    fetch_files(DATA_SETS[kind].source, folder / kind, progress)


def fetch(
    kind: str, folder: Path, progress: Progress, options: Mapping[str, object] | None = None
) -> tuple[DataReady, Splits]:
    """Put the verified files of a data set below `folder`, describe and read them; what is there is kept.

    Raises:
        UsageError: no such data set.
        CorruptedFile: a file is not the recorded one.
        MissingDependency: no way to get the files works on this machine.
    """
    ensure(kind, folder, progress)
    data_set, splits = DATA_SETS[kind], load(kind, folder, options)
    ready = DataReady(
        kind=kind,
        source_digests=digests(kind),
        licence=data_set.source.licence,
        n_train=len(splits.train),
        n_test=len(splits.test),
        inputs=splits.inputs,
        class_names=splits.task.class_names,
        preprocessing=data_set.by_task.get(splits.task.kind, data_set.preprocessing),
        assets=tuple(name for name, _ in splits.assets),
    )
    return ready, splits


def load(kind: str, folder: Path, options: Mapping[str, object] | None = None) -> Splits:
    """Read a fetched data set, whole: no validation split yet.

    Args:
        kind: the data set.
        folder: where data sets lie.
        options: of the data set itself, by name; its own defaults where left out.

    Raises:
        UsageError: no such data set, or a file is missing or malformed.
    """
    return DATA_SETS[kind].read(folder / kind, **(options or {}))


def verify(kind: str, folder: Path) -> list[Problem]:
    """Return what is wrong with a data set's files; empty when all are there with the recorded digest."""
    return problems(DATA_SETS[kind].source, folder / kind)


def is_fetched(kind: str, folder: Path) -> bool:
    """Return whether every file of a data set is there; its digest is not computed."""
    return all((folder / kind / file.name).is_file() for file in DATA_SETS[kind].source.files)


def prepare(  # noqa: PLR0913 - each keyword is one key of a recipe's data section
    splits: Splits,
    *,
    validation: float,
    limit: int | None,
    test_limit: int | None,
    seed: int,
    fraction: float = 1.0,
    per_class: int | None = None,
) -> Splits:
    """Return the splits that a recipe asks for: both limited, validation held out of training, labels taken away.

    Args:
        splits: a whole data set.
        validation: share of the (limited) training samples that is held out, 0 to below 1.
        limit: most training samples, validation included; None takes all.
        test_limit: most test samples; None takes all.
        fraction: share of the training samples left that keep their labels; the others become unlabelled.
        per_class: most samples of each class that keep their labels; None is no limit.
        seed: draws the same samples each time.
    """
    smaller = replace(
        splits,
        train=limited(splits.train, limit, seed),
        test=limited(splits.test, test_limit, seed),
    )
    return with_labels(hold_out(smaller, validation, seed), fraction, per_class, seed)
