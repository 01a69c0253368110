"""Japanese Vowels: 640 utterances of nine speakers as 7 to 29 frames of 12 linear prediction cepstra.

Source: Kudo, Toyama and Shimbo 1999, "Multidimensional curve classification using passing-through regions", Pattern
Recognition Letters 20; the split is theirs: 30 utterances of each speaker to train, 370 others to test.
"""

from __future__ import annotations

from pathlib import Path

from armlet.artifacts import InputSpec, Task
from armlet.data.dataset import DATA_SETS, DataSet
from armlet.data.sequences import pad, standardize
from armlet.data.sources import PythonPackage, Source, SourceFile, unchanged
from armlet.data.splits import Samples, Splits
from armlet.errors import Problem, UsageError

N_FRAMES, N_CHANNELS, N_SPEAKERS = 29, 12, 9
_FILES = ("JapaneseVowels_TRAIN.ts", "JapaneseVowels_TEST.ts")

SOURCE = Source(
    kind="japanese-vowels",
    licence="CC BY 4.0 (UCI Machine Learning Repository); the Python package aeon is BSD-3-Clause",
    files=(
        SourceFile(_FILES[0], "68a430eabd919cc77f40b1f5f3bc0dcafacc1486bca9260785aeb7d262cc78cd"),
        SourceFile(_FILES[1], "b3d41d6a0ca3bcad3afb9ca7d4365382aa51341e2e58bae2a574babdda5b9462"),
    ),
    ways=(PythonPackage("aeon", "1.6.0", "aeon/datasets/data/JapaneseVowels/{name}", unchanged),),
    install="pip, and a network; or put both .ts files into $ARMLET_DATA_DIR/japanese-vowels",
)


def read(folder: Path) -> Splits:
    """Read the two files; inputs [N, 29, 12], standardised by the training frames and padded with zeros, and lengths.

    Raises:
        UsageError: a file is missing or malformed.
    """
    train, test = (_samples(folder / name) for name in _FILES)
    train, test = standardize(train, test)
    inputs = (
        InputSpec("input", (N_FRAMES, N_CHANNELS)),
        InputSpec("length", (), "int32", n_values=N_FRAMES + 1),
    )
    task = Task("classification", (N_SPEAKERS,), tuple(f"speaker {n}" for n in range(1, N_SPEAKERS + 1)))
    return Splits(train, train.take(slice(0)), test, inputs, task)


def _samples(path: Path) -> Samples:
    """Read one .ts file: after @data a line each, channels divided by colons, the class at the end."""
    import numpy as np

    try:
        lines = path.read_text(encoding="utf-8").partition("@data\n")[2].split()
        rows = [line.split(":") for line in lines]
        frames = [np.array([row.split(",") for row in channels[:-1]], np.float32).T for channels in rows]
        labels = np.array([int(channels[-1]) - 1 for channels in rows], np.int64)
    except (OSError, ValueError) as error:
        raise UsageError(Problem(f"is not the Japanese Vowels file: {error}", file=path)) from error
    if not rows or any(x.shape[1] != N_CHANNELS or not 0 < len(x) <= N_FRAMES for x in frames):
        message = "is not the Japanese Vowels file: it has not utterances of 1 to 29 frames of 12 numbers"
        raise UsageError(Problem(message, file=path))
    return Samples(pad(frames, N_FRAMES), labels, labels)


DATA_SETS.register(SOURCE.kind)(
    DataSet(
        source=SOURCE,
        preprocessing=(
            "12 linear prediction cepstra a frame, each less its mean and divided by its standard deviation over the "
            "training frames; up to 29 frames, zeros after the last, and how many there are"
        ),
        read=read,
    )
)
