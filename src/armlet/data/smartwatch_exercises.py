"""Smart-watch exercises: seven shoulder exercises of ten people, 50 Hz acceleration and rotation at the wrist.

Source: Burns et al. 2018, "Shoulder physiotherapy exercise recognition: machine learning the inertial signals from a
smartwatch", Physiological Measurement 39; published with the package seglearn. Test samples are of people whom
training never sees: windows of the same person in both would flatter.
"""

from __future__ import annotations

import io
from pathlib import Path

from armlet.artifacts import InputSpec, Task
from armlet.data.dataset import DATA_SETS, DataSet
from armlet.data.pickles import numpy_globals, read_pickle
from armlet.data.sequences import standardize
from armlet.data.sources import PythonPackage, Source, SourceFile
from armlet.data.splits import Samples, Splits
from armlet.errors import Problem, UsageError

N_FRAMES, STEP, N_CHANNELS = 100, 50, 6
TEST_SUBJECTS = (9, 10)
EXERCISES = (
    "pendulum",
    "abduction",
    "forward elevation",
    "internal rotation",
    "external rotation",
    "trapezius extension",
    "upright row",
)
_FILE = "watch_dataset.npy"


def rows_of_pickle(data: bytes) -> bytes:
    """Turn the published object array into a plain .npy: float32 [n, 9] of recording, subject, exercise, six signals.

    Raises:
        ValueError: it is not that array, or its pickle asks for anything but arrays.
    """
    import numpy as np

    stream = io.BytesIO(data)
    np.lib.format.read_magic(stream)
    np.lib.format.read_array_header_1_0(stream)
    found = read_pickle(data[stream.tell() :], numpy_globals())
    record = found.item() if isinstance(found, np.ndarray) and found.shape == () else None
    if not isinstance(record, dict) or not {"X", "y", "subject"} <= record.keys():
        raise ValueError("holds no recordings with exercises and subjects")
    recordings = zip(record["X"], record["subject"], record["y"], strict=True)
    rows = [
        np.column_stack([np.tile([number, subject, exercise], (len(signals), 1)), signals])
        for number, (signals, subject, exercise) in enumerate(recordings)
    ]
    result = io.BytesIO()
    np.save(result, np.concatenate(rows).astype(np.float32), allow_pickle=False)
    return result.getvalue()


SOURCE = Source(
    kind="smartwatch-exercises",
    licence="BSD-3-Clause (the Python package seglearn, which publishes the recordings)",
    files=(SourceFile("watch.npy", "e1fb75737c1528a911029a026c62d7a6d2d03f65c1d0fe8f30fbea46e7e8edea"),),
    ways=(PythonPackage("seglearn", "1.2.5", f"seglearn/data/{_FILE}", rows_of_pickle),),
    install="pip, and a network; or put watch.npy into $ARMLET_DATA_DIR/smartwatch-exercises",
)


def read(folder: Path) -> Splits:
    """Read the recordings as windows of 2 s that overlap by half, [N, 100, 6], standardised by the training windows.

    Raises:
        UsageError: the file is missing or malformed.
    """
    import numpy as np

    path = folder / "watch.npy"
    try:
        rows = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UsageError(Problem(f"is not the file of smart-watch recordings: {error}", file=path)) from error
    if rows.ndim != 2 or rows.shape[1] != 3 + N_CHANNELS:
        raise UsageError(Problem(f"has the shape {rows.shape}, not [n, 9]", file=path))
    windows, subjects, exercises = [], [], []
    for recording in np.unique(rows[:, 0]):
        of_it = rows[rows[:, 0] == recording]
        for start in range(0, len(of_it) - N_FRAMES + 1, STEP):
            windows.append(of_it[start : start + N_FRAMES, 3:])
            subjects.append(int(of_it[0, 1]))
            exercises.append(int(of_it[0, 2]))
    labels, groups = np.array(exercises, np.int64), np.array(subjects, np.int64)
    samples = Samples((np.stack(windows).astype(np.float32),), labels, labels, groups)
    tested = np.isin(groups, TEST_SUBJECTS)
    train, test = standardize(samples.take(np.flatnonzero(~tested)), samples.take(np.flatnonzero(tested)))
    task = Task("classification", (len(EXERCISES),), EXERCISES)
    return Splits(train, train.take(slice(0)), test, (InputSpec("input", (N_FRAMES, N_CHANNELS)),), task)


DATA_SETS.register(SOURCE.kind)(
    DataSet(
        source=SOURCE,
        preprocessing=(
            "2 s at 50 Hz of acceleration (x, y, z) and rotation (x, y, z) at the wrist, each less its mean and "
            "divided by its standard deviation over the training windows"
        ),
        read=read,
    )
)
