"""What the stage `evaluate` keeps of the compiled program's answers for people to look at, as plain data."""

from __future__ import annotations

from dataclasses import dataclass

EXHIBITS_FILE = "exhibits.json"


@dataclass(frozen=True, slots=True)
class Pictures:
    """Some pictures of one kind.

    Attributes:
        name: what they show, such as "compiled program".
        shape: number of pictures, height, width, channels (1 or 3).
        pixels: their bytes in that order, from 0 to 255, as base64.
    """

    name: str
    shape: tuple[int, int, int, int]
    pixels: str


@dataclass(frozen=True, slots=True)
class ErrorHistogram:
    """How large the reconstruction errors of normal test samples and of anomalies are.

    Attributes:
        edges: borders of the bins, one more than there are bins, evenly spaced on a logarithmic scale.
        normal, anomalies: samples in each bin.
    """

    edges: tuple[float, ...]
    normal: tuple[int, ...]
    anomalies: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Forecasts:
    """The first value of what came and of what was forecast, for the first test samples in their order."""

    came: tuple[float, ...]
    forecast: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class ConfidenceBin:
    """Test samples of like confidence: how sure the answers are on average, and what share of them is right."""

    n_samples: int
    confidence: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class Reliability:
    """Whether the answers are as sure as they should be; bins without samples are left out."""

    trained: tuple[ConfidenceBin, ...]
    compiled: tuple[ConfidenceBin, ...]


@dataclass(frozen=True, slots=True)
class Exhibits:
    """What a task has to show.

    Attributes:
        pictures: in step with each other where they come of the same samples; none where answers are no pictures.
    """

    pictures: tuple[Pictures, ...] = ()
    errors: ErrorHistogram | None = None
    forecasts: Forecasts | None = None
    reliability: Reliability | None = None
