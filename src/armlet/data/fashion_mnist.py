"""Fashion-MNIST: 28×28 grey pictures of clothes in 10 classes, 60,000 to train and 10,000 to test.

Source: Xiao, Rasul, Vollgraf 2017, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning
Algorithms", arXiv:1708.07747.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from armlet.artifacts import InputSpec, Task
from armlet.data.dataset import DATA_SETS, DataSet
from armlet.data.sources import DebianPackage, Source, SourceFile, Upstream, gunzip
from armlet.data.splits import Samples, Splits
from armlet.errors import Problem, UsageError

if TYPE_CHECKING:
    import numpy as np

CLASS_NAMES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip

SOURCE = Source(
    kind="fashion-mnist",
    licence="MIT (copyright 2017 Zalando SE)",
    files=(
        SourceFile(
            "train-images-idx3-ubyte", "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"
        ),
        SourceFile(
            "train-labels-idx1-ubyte", "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"
        ),
        SourceFile(
            "t10k-images-idx3-ubyte", "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"
        ),
        SourceFile(
            "t10k-labels-idx1-ubyte", "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"
        ),
    ),
    ways=(
        DebianPackage("dataset-fashion-mnist", "usr/share/datasets/fashion-mnist/{name}.gz", gunzip),
        Upstream(
            "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/{name}.gz", gunzip
        ),
    ),
    install=(
        "apt-get install dataset-fashion-mnist, or put its four .gz files into $ARMLET_DATA_DIR/fashion-mnist"
    ),
)


PICTURE = (1, 28, 28)


def read(
    folder: Path,
    *,
    task: Literal["classification", "denoising", "generation"] = "classification",
    noise: float = 0.25,
    latent: int = 64,
    spread: float = 1.0,
) -> Splits:
    """Read the four IDX files of `folder`; pictures [N, 1, 28, 28] from 0 to 1.

    Args:
        folder: of the verified files.
        task: what is asked: the class of a picture, the clean form of a noisy picture, or a new picture, from -1 to
            1, from random numbers [N, latent].
        noise: standard deviation of the Gaussian noise; noisy pictures are cut off at 0 and 1.
        latent: random numbers of a sample.
        spread: standard deviation of the random numbers. Beside 1, that of training, it trades variety for precision
            ("truncation trick": Brock et al. 2018, section 3.1).

    Raises:
        UsageError: a file is missing or is not an IDX file of bytes.
    """
    import numpy as np

    train, test = _samples(folder, "train"), _samples(folder, "t10k")
    inputs = (InputSpec("input", PICTURE),)
    asked = Task("classification", (len(CLASS_NAMES),), CLASS_NAMES)
    if task == "denoising":
        train, test = (_noisy(samples, noise, stream) for stream, samples in enumerate((train, test)))
        asked = Task("denoising", PICTURE)
    elif task == "generation":
        train, test = (
            _generated(samples, latent, spread, stream) for stream, samples in enumerate((train, test))
        )
        inputs, asked = (InputSpec("input", (latent,)),), Task("generation", PICTURE)
    return Splits(train, train.take(np.arange(0)), test, inputs, asked)


def _noisy(samples: Samples, noise: float, stream: int) -> Samples:
    """Ask for the pictures, given noisy ones; the noise is part of the data, the same in every run."""
    import numpy as np

    (clean,) = samples.inputs
    drawn = np.random.default_rng((7, stream)).standard_normal(clean.shape, np.float32)
    return Samples((np.clip(clean + np.float32(noise) * drawn, 0, 1),), clean, samples.labels)


def _generated(samples: Samples, latent: int, spread: float, stream: int) -> Samples:
    """Ask for pictures like these, from -1 to 1, given random numbers; the same numbers in every run."""
    import numpy as np

    drawn = np.random.default_rng((8, stream)).standard_normal((len(samples), latent), np.float32)
    return Samples((np.float32(spread) * drawn,), samples.inputs[0] * 2 - 1, samples.labels)


def _samples(folder: Path, prefix: str) -> Samples:
    import numpy as np

    pictures = _idx(folder / f"{prefix}-images-idx3-ubyte")
    labels = _idx(folder / f"{prefix}-labels-idx1-ubyte").astype(np.int64)
    return Samples((pictures[:, np.newaxis].astype(np.float32) / np.float32(255),), labels, labels)


def _idx(path: Path) -> np.ndarray:
    """Read an IDX file of unsigned bytes: two zeros, type 8, number of axes, big-endian extents, values."""
    import numpy as np

    try:
        data = path.read_bytes()
        kind, n_axes = struct.unpack_from(">2xBB", data)
        shape = struct.unpack_from(f">{n_axes}I", data, 4)
        values = np.frombuffer(data, {8: np.uint8}[kind], offset=4 + 4 * n_axes).reshape(shape)
    except (OSError, struct.error, KeyError, ValueError) as error:
        raise UsageError(Problem(f"is not an IDX file of bytes: {error!r}", file=path)) from error
    return values


_PREPROCESSING = (
    "28 rows of 28 grey pixels, 0 (background) to 255, in C order with one channel; each value divided by 255"
)

DATA_SETS.register(SOURCE.kind)(
    DataSet(
        source=SOURCE,
        preprocessing=_PREPROCESSING,
        read=read,
        by_task={
            "denoising": f"{_PREPROCESSING}; the answer times 255 is the clean picture",
            "generation": (
                "random numbers, each drawn from a normal distribution of mean 0 whose standard deviation is the"
                " recipe's data.spread, or 1; the answer plus 1, times 127.5, is a picture of 28 rows of 28 grey pixels"
            ),
        },
    )
)
