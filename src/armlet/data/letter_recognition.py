"""Letter Recognition: 16 integer features of 20,000 distorted printed letters in 26 classes.

Source: Frey, Slate 1991, "Letter Recognition Using Holland-Style Adaptive Classifiers", Machine Learning
6(2); the customary split is theirs: the first 16,000 rows to train, the last 4,000 to test.
"""

from __future__ import annotations

import lzma
import string
import tempfile
import warnings
import zlib
from pathlib import Path

from armlet.artifacts import InputSpec, Task
from armlet.data.dataset import DATA_SETS, DataSet
from armlet.data.sources import DebianPackage, Source, SourceFile, Unavailable, Upstream, unchanged
from armlet.data.splits import Samples, Splits
from armlet.errors import Problem, UsageError

_FILE = "letter-recognition.data"
_N_TRAIN = 16_000
_N_FEATURES = 16


def csv_of_rda(data: bytes) -> bytes:
    """Turn R's `LetterRecognition` data frame into the lines of the upstream text file.

    Raises:
        Unavailable: the package that reads R's files is not installed.
        ValueError: it is not that data frame.
    """
    try:
        import rdata
    except ImportError as error:
        raise Unavailable("rdata is missing: pip install 'armlet[train]'") from error
    with tempfile.NamedTemporaryFile(suffix=".rda") as file, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Unknown encoding")  # the letters are ASCII
        file.write(data)
        file.flush()
        try:
            found = rdata.read_rda(file.name)
        except (OSError, EOFError, zlib.error, lzma.LZMAError, NotImplementedError) as error:
            raise ValueError(f"not R data: {error}") from error
    if "LetterRecognition" not in found:
        raise ValueError(f"holds {', '.join(found) or 'nothing'}, not LetterRecognition")
    rows = found["LetterRecognition"].itertuples(index=False)
    lines = (",".join([letter, *(str(int(value)) for value in values)]) for letter, *values in rows)
    return ("\n".join(lines) + "\n").encode("ascii")


SOURCE = Source(
    kind="letter-recognition",
    licence="CC BY 4.0 (UCI Machine Learning Repository); the Debian package mlbench is GPL-2",
    files=(SourceFile(_FILE, "2b89f3602cf768d3c8355267d2f13f2417809e101fc2b5ceee10db19a60de6e2"),),
    ways=(
        DebianPackage(
            "r-cran-mlbench", "usr/lib/R/site-library/mlbench/data/LetterRecognition.rda", csv_of_rda
        ),
        Upstream(
            "https://archive.ics.uci.edu/ml/machine-learning-databases/letter-recognition/{name}", unchanged
        ),
    ),
    install=f"apt-get install r-cran-mlbench, or put {_FILE} into $ARMLET_DATA_DIR/letter-recognition",
)


def read(folder: Path) -> Splits:
    """Read the text file of `folder`; inputs [N, 16] from 0 to 1.

    Raises:
        UsageError: the file is missing, or a line is not a letter and 16 integers.
    """
    import numpy as np

    path = folder / _FILE
    try:
        rows = [line.split(",") for line in path.read_text(encoding="ascii").splitlines()]
        labels = np.array([string.ascii_uppercase.index(row[0]) for row in rows], np.int64)
        features = np.array([row[1:] for row in rows]).astype(np.int64).reshape(len(rows), _N_FEATURES)
    except (OSError, ValueError) as error:
        raise UsageError(Problem(f"is not the Letter Recognition file: {error}", file=path)) from error
    samples = Samples((features.astype(np.float32) / np.float32(15),), labels, labels)
    rank = np.arange(len(samples))
    train, test = samples.take(rank[:_N_TRAIN]), samples.take(rank[_N_TRAIN:])
    task = Task("classification", (26,), tuple(string.ascii_uppercase))
    return Splits(train, samples.take(rank[:0]), test, (InputSpec("input", (_N_FEATURES,)),), task)


DATA_SETS.register(SOURCE.kind)(
    DataSet(
        source=SOURCE,
        preprocessing="16 integer features from 0 to 15, in the UCI file's order; each value divided by 15",
        read=read,
    )
)
