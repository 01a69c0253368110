"""What running a program leaves: its score, its cost on a device, and whether the budgets hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from armlet.artifacts.network import Score
from armlet.artifacts.program import Compiled, StreamExported

Outcome = Literal["pass", "fail", "not measured", "no budget"]
"""What became of a budget; "not measured" is never a pass."""


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
        right: which answers are right, as `armlet.regression.pack_right` writes it; None where there are no classes.
    """

    score: Score
    seconds: float
    changes: Changes | None = None
    right: str | None = None


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
    """How the outputs of a program compare with those of another form of the same network."""

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
    """What came of running a compiled program on a device; what was not measured is None.

    Attributes:
        device: what ran it, "no device" where nothing did.
        match: agreement with the host program.
        reference: agreement with ONNX Runtime, where the network came as an ONNX file; that of the program for this
            machine where `ran` is false.
        variant: which build of the kernels ran, where the program has several.
        ran: false for a target that programs are compiled for and not run.
        score: of a program for a GPU, by what this machine has for one.
    """

    target: str
    device: str
    match: Match | None
    counts: Counts | None
    latency: Latency | None
    variant: str | None = None
    reference: Match | None = None
    ran: bool = True
    score: Score | None = None


@dataclass(frozen=True, slots=True)
class ProgramCost:
    """What a network on its way through the passes would cost as a program; the program itself is not kept.

    Attributes:
        target: name of the target that it was compiled for.
        size_bytes: code and constants that an app would link.
        memory_bytes: working memory.
        latency: of one inference, None where it can't be said.
    """

    target: str
    size_bytes: int
    memory_bytes: int
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
