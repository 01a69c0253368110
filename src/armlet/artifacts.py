"""The typed, immutable artefacts that flow down the pipeline.

Each artefact is one frozen dataclass with the numbers that a later stage or a report needs; its files, if it has any,
lie in the folder of its `artifact.json` (see `armlet.artifact_json`). No torch and no tvm here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Outcome = Literal["pass", "fail", "not measured", "no budget"]
"""What became of a budget; "not measured" is never a pass."""


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
        weight_bytes: bytes of the parameters as stored (INT8 weights count one byte, INT32 biases four).
    """

    macs: int
    parameters: int
    weight_bytes: int


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
        size = {"float32": 4, "int32": 4, "int64": 8, "int8": 1, "uint8": 1}[self.dtype]
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


@dataclass(frozen=True, slots=True)
class LitertTwin:
    """The same network as a LiteRT file (`model.tflite`), verified against the ONNX file.

    Attributes:
        n_bytes: size of the file.
        n_verified: inputs compared.
        max_difference: largest difference of any output from ONNX Runtime's.
        unit: "quantisation steps" or "absolute".
        float_layers: layers of a quantised network that LiteRT computes on float32.
    """

    n_bytes: int
    n_verified: int
    max_difference: float
    unit: str
    float_layers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Exported:
    """An ONNX file (`model.onnx`) verified against torch.

    Attributes:
        quantized: whether it has QDQ nodes.
        n_verified: inputs compared.
        max_abs_difference: largest difference of any output between torch and ONNX Runtime.
        tolerance: what was allowed.
        tolerance_reason: why that much.
        litert_missing: why there is no LiteRT file, empty where there is one.
    """

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    opset: int
    quantized: bool
    n_verified: int
    max_abs_difference: float
    tolerance: float
    tolerance_reason: str
    onnx_bytes: int
    litert: LitertTwin | None = None
    litert_missing: str = ""


@dataclass(frozen=True, slots=True)
class StreamExported:
    """A network's step (`stream.onnx`): the next frames and the state in, the answer so far and the state out.

    Attributes:
        inputs, outputs: frames and state; answer and state. The state is zeros before the first frame.
        frames: of each step; tokens, for text.
        most_frames: after which a stream must begin anew, None where it may go on for ever.
        n_verified: sequences whose answer, step by step, was compared with that of the whole network.
        max_abs_difference: the largest between torch's whole network, torch's step and ONNX Runtime.
        tolerance: what was allowed.
        tolerance_reason: why that much.
    """

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    frames: int
    most_frames: int | None
    n_verified: int
    max_abs_difference: float
    tolerance: float
    tolerance_reason: str


@dataclass(frozen=True, slots=True)
class Kernel:
    """One call of a compiled program.

    Attributes:
        symbol: C symbol of the kernel.
        op: what it computes ("conv2d", "dense", "max_pool2d", "quantize", ...).
        layer: name of the layer it comes from, as in the ONNX graph.
        schedule: name of the schedule, "generic" for the fallback.
        precision: "int8" or "float32".
        macs: multiply-accumulates.
    """

    symbol: str
    op: str
    layer: str
    schedule: str
    precision: str
    macs: int


@dataclass(frozen=True, slots=True)
class Fallback:
    """Something that was not lowered as asked: stays float, or has no schedule of its own."""

    layer: str
    op: str
    reason: str


@dataclass(frozen=True, slots=True)
class Compiled:
    """A compiled program.

    Files: `lib/lib<symbol>.a`, `lib/lib<symbol>.so`, `lib/<symbol>.h`, `src/`, and `bin/run` (the runner program
    linked for the target).

    Attributes:
        target: name of the target.
        symbol: C prefix of the entry, `<symbol>_run`.
        code_bytes, constant_bytes: what an app links, as laid out in memory (text, read-only data).
        arena_bytes: working memory that the caller provides.
        arena_lower_bound: most bytes alive at any one call, below which no plan can go.
        kernels: in order of execution.
    """

    target: str
    triple: str
    cpu: str
    features: tuple[str, ...]
    symbol: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    code_bytes: int
    constant_bytes: int
    arena_bytes: int
    arena_lower_bound: int
    kernels: tuple[Kernel, ...]
    fallbacks: tuple[Fallback, ...]
    integer_only: bool
    tool_versions: tuple[str, ...]

    @property
    def size_bytes(self) -> int:
        """What an app grows by: code and constants."""
        return self.code_bytes + self.constant_bytes


@dataclass(frozen=True, slots=True)
class ChangedClass:
    """What compression changed in one class.

    Attributes:
        n_changed: samples of the class that are now answered otherwise.
        n_lost, n_gained: those of them that were right before, and that are right now.
    """

    n_samples: int
    n_changed: int
    n_lost: int
    n_gained: int


@dataclass(frozen=True, slots=True)
class ChangedInput:
    """One sample that is now answered otherwise; classes by number.

    Attributes:
        index: position in the test split.
        confidence_before, confidence_after: share of the softmax that the answer had.
    """

    index: int
    label: int
    before: int
    after: int
    confidence_before: float
    confidence_after: float


@dataclass(frozen=True, slots=True)
class Changes:
    """Which answers of the trained network the compiled program gives otherwise.

    Attributes:
        inputs: those first of which the trained network was surest; not all where there are many.
    """

    n_samples: int
    n_changed: int
    n_lost: int
    n_gained: int
    classes: tuple[ChangedClass, ...]
    inputs: tuple[ChangedInput, ...]


@dataclass(frozen=True, slots=True)
class Evaluated:
    """The score of the compiled program itself, run on this machine over the whole test split.

    Attributes:
        changes: None where the task has no classes.
    """

    score: Score
    seconds: float
    changes: Changes | None = None


@dataclass(frozen=True, slots=True)
class Latency:
    """Time for one inference, with how it came about.

    Attributes:
        label: one of the plan's names for a number.
        low_ms, high_ms: the interval; for a measurement its 5th and 95th percentile.
        typical_ms: median of a measurement, centre of an estimate.
        how: a sentence: n, device, model, versions.
    """

    label: Literal["measured (host)", "measured (device)", "estimated"]
    low_ms: float
    typical_ms: float
    high_ms: float
    how: str


@dataclass(frozen=True, slots=True)
class Match:
    """How the outputs of the program for the target compare with the host program's."""

    n_samples: int
    n_identical: int
    max_abs_difference: float
    tolerance: float
    reason: str

    @property
    def holds(self) -> bool:
        """Whether every output is within the tolerance."""
        return self.max_abs_difference <= self.tolerance


@dataclass(frozen=True, slots=True)
class KernelCount:
    """What one kernel costs in one inference, counted under emulation."""

    symbol: str
    instructions: int
    cycles: float


@dataclass(frozen=True, slots=True)
class Counts:
    """Exact counts of one inference under emulation, and the modelled cycles.

    Attributes:
        instructions: executed between start and end of the entry.
        memory_accesses, l1_misses, l2_misses: from the cache simulation; -1 where not simulated.
        cycles: by the core model, before calibration.
        kernels: share of each kernel, in the order of first execution.
        core_model: the model's name and its tool's version.
        coverage: share of the instructions that the core model costed.
    """

    instructions: int
    memory_accesses: int
    l1_misses: int
    l2_misses: int
    cycles: float
    kernels: tuple[KernelCount, ...]
    core_model: str
    coverage: float
    emulator: str


@dataclass(frozen=True, slots=True)
class Measured:
    """What came of running a compiled program on a device; what was not measured is None."""

    target: str
    device: str
    match: Match | None
    counts: Counts | None
    latency: Latency | None


@dataclass(frozen=True, slots=True)
class StreamMeasured:
    """What came of running a compiled step on a device, one after the other over whole sequences.

    Attributes:
        n_sequences: that were run.
        whole: the answers behind the last steps, against those of the program for whole sequences.
        answers, states: of every step on the board, against this machine's; None where the board is this machine.
        counts, latency: of one step.
    """

    target: str
    n_sequences: int
    whole: Match
    answers: Match | None
    states: Match | None
    counts: Counts | None
    latency: Latency | None


@dataclass(frozen=True, slots=True)
class StreamFacts:
    """Everything that is known of a program for streams."""

    compiled: Compiled
    exported: StreamExported
    measured: StreamMeasured


@dataclass(frozen=True, slots=True)
class Check:
    """One line of a verdict.

    Attributes:
        what: "accuracy", "accuracy drop", "worst class drop", "latency", "size", "memory", "same outputs".
        budget: as printed, empty when no budget is set.
        measured: as printed.
        margin: share of the budget left; negative when it fails; None when it can't be said.
        outcome: "not measured" is never a pass.
    """

    what: str
    budget: str
    measured: str
    margin: float | None
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether every budget holds."""

    target: str
    checks: tuple[Check, ...]

    @property
    def passes(self) -> bool:
        """Whether no budget failed and none that was set is unmeasured."""
        return all(c.outcome in ("pass", "no budget") for c in self.checks)
