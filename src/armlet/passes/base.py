"""What a pass is: a contract of preconditions, a transformation and postconditions, checked by the manager."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, Protocol

from torch import nn

from armlet.artifacts import Epoch, ProgramCost
from armlet.data.splits import Splits
from armlet.errors import ArmletError, UsageError
from armlet.metrics import Scorer
from armlet.models.network import Network
from armlet.progress import Progress
from armlet.registry import Registry

CostName = Literal["macs", "parameters", "weight_bytes"]


class PreconditionFailed(UsageError):
    """A pass can't run on this network with these options."""


class PostconditionFailed(ArmletError):
    """The result of a pass does not have what the pass promises. Pass developer: the fault is in the pass."""


class PassContractBroken(ArmletError):
    """A pass did something that no pass may do. Pass developer: the fault is in the pass."""


@dataclass(frozen=True, slots=True)
class PassContext:
    """What a pass may use beside the network.

    Attributes:
        splits: calibration and training samples come from `train`, scores from `test`.
        teacher: the trained network before any pass.
        scorer: says how good answers are.
        seed: of everything random.
        work: a folder of this pass's own, for checkpoints.
        other_teachers: networks like the teacher, trained with further seeds.
        program_cost: what a network costs as a program on a target, by its name; None where nothing can compile.
    """

    splits: Splits
    teacher: Network
    scorer: Scorer
    seed: int
    work: Path
    progress: Progress
    other_teachers: tuple[Network, ...] = ()
    program_cost: Callable[[Network, str], ProgramCost] | None = None


@dataclass(frozen=True, slots=True)
class PassResult:
    """What a pass returns.

    Attributes:
        notes: sentences for the report.
        history: of the training that the pass did.
    """

    network: Network
    notes: tuple[str, ...] = ()
    history: tuple[Epoch, ...] = ()


class Pass(Protocol):
    """One transformation of a network. Passes hold options only, so that one can run any number of times."""

    @property
    def never_raises(self) -> tuple[CostName, ...]:
        """Which costs the result never exceeds the input in."""

    def requires(self, network: Network, context: PassContext) -> tuple[str, ...]:
        """Return every reason why the pass can't run; empty when it can."""

    def run(self, network: Network, context: PassContext) -> PassResult:
        """Return the transformed network; `network` is a copy that is the pass's own."""

    def ensures(self, before: Network, after: Network) -> tuple[str, ...]:
        """Return everything that the result lacks of what the pass promises; empty when it lacks nothing."""


# The argument is the options' own class, one for each kind, which no common type but Any can say.
PASSES: Registry[Callable[[Any], Pass]] = Registry("pass")
"""Builds a pass from its options, by the kind that users write."""


def is_named(name: str, patterns: Sequence[str]) -> bool:
    """Whether a pattern fits a module's dotted name, or that of a module around it: `stage1` names all in it."""
    parts = name.split(".")
    around = [".".join(parts[:n]) for n in range(1, len(parts) + 1)]
    return any(fnmatchcase(module, pattern) for module in around for pattern in patterns)


def unmatched(patterns: Iterable[str], module: nn.Module) -> tuple[str, ...]:
    """Return a problem for each name pattern that fits no module: it is a slip of the pen."""
    names = [name for name, _ in module.named_modules() if name]
    return tuple(
        f"exclude has {pattern!r}, which fits none of the network's modules"
        for pattern in patterns
        if not any(fnmatchcase(name, pattern) for name in names)
    )


def estimated_ms(network: Network, target: str, context: PassContext, kind: str) -> float:
    """Return the upper bound of what an inference takes on a target, which is what budgets are held against, in ms.

    Args:
        network: that is compiled.
        target: its name, or that of a YAML file.
        context: says what programs take.
        kind: of the pass that asks.

    Raises:
        PreconditionFailed: nothing says what a network takes on the target.
    """
    if context.program_cost is None:
        raise PreconditionFailed(f"{kind}: latency needs a context that can compile programs")
    latency = context.program_cost(network, target).latency
    if latency is None:
        raise PreconditionFailed(
            f"{kind}: what a network takes on {target} can't be said: the target has no core.cost_model, "
            "core.clock_mhz or calibration"
        )
    return latency.high_ms


def float_only(network: Network, kind: str) -> tuple[str, ...]:
    """Return the problem that a network is already quantised, if it is."""
    return (f"{kind} needs a float network, this one is quantised",) if network.quantization else ()
