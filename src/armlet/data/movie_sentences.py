"""Movie sentences: is what a sentence of a film review says good or bad? People's ratings of 10,605 sentences.

Source: Hutto and Gilbert 2014, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media Text";
the sentences are those of Pang and Lee 2004. The sign of the mean rating is the class; no split is published, so a
fifth, drawn once with a fixed seed, tests. The tokenizer is trained on the training sentences.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from armlet.artifacts import InputSpec, Task
from armlet.data.dataset import DATA_SETS, DataSet
from armlet.data.sources import PythonPackage, Source, SourceFile, unchanged
from armlet.data.splits import Samples, Splits
from armlet.errors import MissingDependency, Problem, UsageError

if TYPE_CHECKING:
    import numpy as np
    from tokenizers import Tokenizer

CLASSES = ("negative", "positive")
TOKENIZER_FILE = "tokenizer.json"
PADDING, UNKNOWN, MASK = "[PAD]", "[UNK]", "[MASK]"
_RATED = "movieReviewSnippets_GroundTruth.txt"
_OTHERS = (
    "amazonReviewSnippets_GroundTruth.txt",
    "nytEditorialSnippets_GroundTruth.txt",
    "tweets_GroundTruth.txt",
)
_TEST_SHARE = 0.2
_SPLIT_SEED = 0

SOURCE = Source(
    kind="movie-sentences",
    licence="MIT (the Python package vaderSentiment)",
    files=(
        SourceFile(_RATED, "c8293b0d942e90e223ea2c0955d969040d1a1be514a978b9af0698940bd13350"),
        SourceFile(_OTHERS[0], "11a9807a0974a2506a2d3b4851eaf69b3d6d20688ce4923adda2312a4f6dd6c2"),
        SourceFile(_OTHERS[1], "7d8fbcce7dde5d716da53e78f4ef4be6b706e9ef1e1d51887e6d0ad4b69cc27e"),
        SourceFile(_OTHERS[2], "dfbe7102e2f92579ed8b19df9a3822491880697c67adf712fb66e520cc05102f"),
    ),
    ways=(
        PythonPackage(
            "vaderSentiment",
            "3.3.2",
            "hutto_ICWSM_2014/{name}",
            unchanged,
            source_sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
            archive="additional_resources/hutto_ICWSM_2014.tar.gz",
        ),
    ),
    install="pip, and a network; or put the four files into $ARMLET_DATA_DIR/movie-sentences",
)


def read(
    folder: Path,
    *,
    vocabulary: int = 4000,
    length: int = 64,
    lower_case: bool = True,
    ratings: bool = False,
) -> Splits:
    """Read the sentences as tokens [N, length], padded with 0, and their numbers of tokens.

    Args:
        folder: of the verified files.
        vocabulary: tokens that the tokenizer may use at most, the special ones included.
        length: tokens of a sentence at most; what is behind is cut off.
        lower_case: whether capitals are told apart no longer.
        ratings: whether training learns how good people find a sentence, and not only whether they do.

    Raises:
        UsageError: a file is missing or malformed.
        MissingDependency: the package tokenizers is not installed.
    """
    import numpy as np

    rated = [(text, rating) for text, rating in _sentences(folder / _RATED) if rating != 0]
    texts = [text for text, _ in rated]
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(texts))
    n_test = round(_TEST_SHARE * len(texts))
    test, train = np.sort(order[:n_test]), np.sort(order[n_test:])
    unlabeled = [text for name in _OTHERS for text, _ in _sentences(folder / name)]
    learned = [texts[i] for i in train]
    tokenizer = train_tokenizer([*learned, *unlabeled], vocabulary, lower_case=lower_case)
    samples = _samples(tokenizer, rated, length, ratings=ratings)
    specs = (
        InputSpec("tokens", (length,), "int32", n_values=tokenizer.get_vocab_size()),
        InputSpec("length", (), "int32", n_values=length + 1),
    )
    return Splits(
        samples.take(train),
        samples.take(slice(0)),
        samples.take(test),
        specs,
        Task("classification", (2,), CLASSES),
        assets=((TOKENIZER_FILE, tokenizer.to_str(pretty=True).encode()),),
        unlabeled=encode(tokenizer, unlabeled, length),
    )


def train_tokenizer(texts: list[str], vocabulary: int, *, lower_case: bool) -> Tokenizer:
    """Train a byte pair encoding on texts; the same texts give the same tokenizer.

    Source: Sennrich, Haddow and Birch 2016, "Neural Machine Translation of Rare Words with Subword Units".
    """
    try:
        from tokenizers import Tokenizer, normalizers, pre_tokenizers
        from tokenizers.models import BPE
        from tokenizers.trainers import BpeTrainer
    except ImportError as error:
        raise MissingDependency("tokenizers", "data sets of text", "pip install 'armlet[train]'") from error
    tokenizer = Tokenizer(BPE(unk_token=UNKNOWN))
    steps = [normalizers.NFKC(), *([normalizers.Lowercase()] if lower_case else [])]
    tokenizer.normalizer = normalizers.Sequence(steps)
    # A comma behind a word makes no other word of it.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()]
    )
    special = [PADDING, UNKNOWN, MASK]
    tokenizer.train_from_iterator(
        texts, BpeTrainer(vocab_size=vocabulary, special_tokens=special, min_frequency=2, show_progress=False)
    )
    return tokenizer


def encode(tokenizer: Tokenizer, texts: list[str], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Return tokens [N, length] int32, padded with 0, and how many there are [N] int32, at least 1."""
    import numpy as np

    tokens = np.zeros((len(texts), length), np.int32)
    lengths = np.ones(len(texts), np.int32)
    for i, found in enumerate(tokenizer.encode_batch(texts, add_special_tokens=False)):
        ids = found.ids[:length]
        tokens[i, : len(ids)] = ids
        lengths[i] = max(1, len(ids))
    return tokens, lengths


def _samples(tokenizer: Tokenizer, rated: list[tuple[str, float]], length: int, *, ratings: bool) -> Samples:
    """Return rated sentences with their class, and with how sure it is where `ratings` are to be learned.

    The mean rating, from -4 to 4, is taken for the logit of being good: what people find so-so weighs less.
    """
    import numpy as np

    means = np.array([rating for _, rating in rated], np.float32)
    labels, good = (means > 0).astype(np.int64), 1 / (1 + np.exp(-means))
    shares = np.stack([1 - good, good], axis=1) if ratings else None
    return Samples(encode(tokenizer, [text for text, _ in rated], length), labels, labels, shares=shares)


def _sentences(path: Path) -> list[tuple[str, float]]:
    """Read lines of number, mean rating and text, divided by tabs."""
    try:
        rows = [line.split("\t", 2) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        return [(text.strip(), float(rating)) for _, rating, text in rows]
    except (OSError, ValueError) as error:
        raise UsageError(Problem(f"is not a file of rated sentences: {error}", file=path)) from error


DATA_SETS.register(SOURCE.kind)(
    DataSet(
        source=SOURCE,
        preprocessing=(
            f"a sentence, split into tokens by assets/{TOKENIZER_FILE} (which the package tokenizers reads), cut or "
            "padded with 0 to a fixed length, and how many tokens there are"
        ),
        read=read,
    )
)
