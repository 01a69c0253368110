"""Shuttle: nine sensor readings of a spacecraft's radiator, 49,097 samples, 3511 of them anomalies.

Source: Statlog (Shuttle), UCI Machine Learning Repository, in the form of Rayana 2016, "ODDS Library": the largest
class is normal, the rare ones are anomalies. An autoencoder learns what is normal from half of the normal samples.
"""

from __future__ import annotations

from pathlib import Path

from armlet.artifacts import InputSpec, Task
from armlet.data.dataset import DATA_SETS, DataSet
from armlet.data.sources import PythonPackage, Source, SourceFile, gunzip
from armlet.data.splits import Samples, Splits
from armlet.errors import Problem, UsageError

N_FEATURES = 9
_FILE = "shuttle.csv"

SOURCE = Source(
    kind="shuttle",
    licence="CC BY 4.0 (UCI Machine Learning Repository); the Python package river is BSD-3-Clause",
    files=(SourceFile(_FILE, "8bee3239f80b6549cbf0bc69c07bdcad8bb33fb968329c0678328a8ca971784b"),),
    ways=(PythonPackage("river", "0.26.1", "river/datasets/{name}.gz", gunzip),),
    install=f"pip, and a network; or put {_FILE} into $ARMLET_DATA_DIR/shuttle",
)


def read(folder: Path) -> Splits:
    """Read the table; inputs and targets [N, 9], standardised by the training samples, labels 1 for anomalies.

    Every second normal sample trains; the others and all anomalies test.

    Raises:
        UsageError: the file is missing or malformed.
    """
    import numpy as np

    path = folder / _FILE
    try:
        table = np.loadtxt(path, delimiter=",", skiprows=1, dtype=np.float64)
    except (OSError, ValueError) as error:
        raise UsageError(Problem(f"is not the Shuttle table: {error}", file=path)) from error
    if table.ndim != 2 or table.shape[1] != N_FEATURES + 1:
        raise UsageError(Problem(f"has the shape {table.shape}, not [n, 10]", file=path))
    values, labels = table[:, :-1], table[:, -1].astype(np.int64)
    train = np.flatnonzero(labels == 0)[::2]
    mean, deviation = values[train].mean(axis=0), values[train].std(axis=0)
    scaled = ((values - mean) / deviation).astype(np.float32)
    samples = Samples((scaled,), scaled, labels)
    rest = np.setdiff1d(np.arange(len(labels)), train)
    splits = samples.take(train), samples.take(slice(0)), samples.take(rest)
    return Splits(*splits, (InputSpec("input", (N_FEATURES,)),), Task("anomaly", (N_FEATURES,)))


DATA_SETS.register(SOURCE.kind)(
    DataSet(
        source=SOURCE,
        preprocessing=(
            "9 sensor readings in the table's order, each less its mean and divided by its standard deviation over "
            "the training samples; the mean squared error of the program's answer tells anomalies"
        ),
        read=read,
    )
)
