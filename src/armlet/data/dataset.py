"""What a data set is: its source, its words, and how its files are read. Light to import: no numpy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from armlet.artifacts import TaskKind
from armlet.data.sources import Source
from armlet.data.splits import Splits
from armlet.registry import Registry


@dataclass(frozen=True, slots=True)
class DataSet:
    """One data set.

    Attributes:
        preprocessing: how raw values become the network's inputs, in words that an app's author can follow.
        read: reads the verified files of a folder, its first argument; keywords are the data set's own options.
            `validation` of its result is empty.
        by_task: the preprocessing for those of its tasks that have another, or whose answers need words too.
    """

    source: Source
    preprocessing: str
    read: Callable[..., Splits]
    by_task: Mapping[TaskKind, str] = field(default_factory=dict)


DATA_SETS: Registry[DataSet] = Registry("data set")
