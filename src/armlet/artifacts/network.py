"""What data and training leave: inputs, tasks, scores, trained and compressed networks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

TaskKind = Literal["classification", "forecast", "anomaly", "denoising", "generation"]


@dataclass(frozen=True, slots=True)
class InputSpec:
    """One input of a network.

    Attributes:
        shape: of one sample, without the batch.
        dtype: "float32", or "int32" for tokens and lengths.
        n_values: integers lie in 0 … n_values - 1; None for float32.
    """

    name: str
    shape: tuple[int, ...]
    dtype: Literal["float32", "int32"] = "float32"
    n_values: int | None = None


@dataclass(frozen=True, slots=True)
class Task:
    """What a network is asked.

    Attributes:
        output_shape: of the answer to one sample, without the batch; [n_classes] logits for classification.
        class_names: empty where the task has no classes.
    """

    kind: TaskKind
    output_shape: tuple[int, ...]
    class_names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Score:
    """How well a network does on a split.

    Attributes:
        metric: the task's main metric, a name of `armlet.scores.METRICS`.
        value: the score; a fraction for accuracy.
        n_samples: samples it was measured on.
        split: "validation" or "test".
        per_class: the score of each class, empty where the task has none.
        others: further metrics of the task by name.
    """

    metric: str
    value: float
    n_samples: int
    split: str
    per_class: tuple[float, ...] = ()
    others: tuple[tuple[str, float], ...] = ()

    def values(self) -> dict[str, float]:
        """Return every metric by name, the main one first."""
        return {self.metric: self.value, **dict(self.others)}


@dataclass(frozen=True, slots=True)
class Cost:
    """What one inference of a batch of one costs on paper.

    Attributes:
        macs: multiply-accumulates of convolutions and linear layers.
        parameters: trainable values.
        weight_bytes: bytes of the parameters in memory (INT8 weights count one byte, INT32 biases and scales of groups
            of weights four).
        stored_bytes: the same after packing without loss: zeros as one bit, few values as their numbers. What a
            download takes; linked and in memory it is weight_bytes.
    """

    macs: int
    parameters: int
    weight_bytes: int
    stored_bytes: int


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One input or output of a program.

    Attributes:
        shape: with the batch, which is 1.
        dtype: of the values that the caller passes or gets.
        scale: for a tensor that the program itself quantises to INT8 on entry, or turns back into float on exit:
            value = scale × (q - zero_point). None where it stays as it is.
        zero_point: see scale.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    scale: float | None = None
    zero_point: int | None = None

    @property
    def n_bytes(self) -> int:
        """Bytes of the tensor."""
        size = {"float32": 4, "float16": 2, "int32": 4, "int64": 8, "int16": 2, "int8": 1, "uint8": 1}[
            self.dtype
        ]
        for extent in self.shape:
            size *= extent
        return size


@dataclass(frozen=True, slots=True)
class DataReady:
    """A data set that lies verified on this machine.

    Attributes:
        preprocessing: how raw values became the network's inputs, in words that an app's author can follow.
        assets: files that an app needs for it, in the folder `assets`.
    """

    kind: str
    source_digests: tuple[str, ...]
    licence: str
    n_train: int
    n_test: int
    inputs: tuple[InputSpec, ...]
    class_names: tuple[str, ...]
    preprocessing: str
    assets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Epoch:
    """One line of a training history; `metric` names what the validation score is."""

    epoch: int
    train_loss: float
    validation_loss: float
    metric: str
    validation_score: float
    learning_rate: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Trained:
    """A trained network (`network.json`, `network.safetensors`) and how it got there.

    Where the task has classes, `outputs.npy` has its logits for the test split, float32 [N, n_classes].

    Attributes:
        training_score: on training samples, without augmentation: far above `score`, it learned them by heart.
        untrained_score: of the freshly built network, for tasks whose score means little by itself.
    """

    cost: Cost
    score: Score
    history: tuple[Epoch, ...]
    device: str
    precision: str
    seconds: float
    stopped_early: bool
    training_score: Score | None = None
    untrained_score: Score | None = None


@dataclass(frozen=True, slots=True)
class Pretrained:
    """A network pre-trained without labels, in the same files as `Trained`."""

    history: tuple[Epoch, ...]
    device: str
    precision: str
    seconds: float


@dataclass(frozen=True, slots=True)
class PassRecord:
    """What one pass did.

    Attributes:
        kind: the pass.
        before, after: cost on paper.
        score_before, score_after: score on the test split.
        seconds: wall time.
        notes: sentences for the report, such as what could not be pruned and why.
        changed: whether the pass changed the network at all.
    """

    kind: str
    before: Cost
    after: Cost
    score_before: Score
    score_after: Score
    seconds: float
    notes: tuple[str, ...]
    changed: bool
    history: tuple[Epoch, ...] = ()


@dataclass(frozen=True, slots=True)
class Compressed:
    """A network after one pass, in the same files as `Trained`."""

    record: PassRecord
