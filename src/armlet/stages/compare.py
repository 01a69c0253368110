"""Runs programs on this machine, and compares what two programs of one network answer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from armlet import artifact_json
from armlet.artifacts import Compiled, Match
from armlet.errors import VerificationFailed
from armlet.progress import Progress
from armlet.rounding import INTEGER_LEVELS, steps_allowed

if TYPE_CHECKING:
    import numpy as np

    from armlet.data.splits import Samples

    class Runnable(Protocol):
        """A program that takes many samples."""

        def run_batch(self, batches: tuple[np.ndarray, ...], /) -> tuple[np.ndarray, ...]:
            """Run samples [N, ...] of each input; return [N, ...] of each output."""


_AT_A_TIME = 100
FLOAT_TOLERANCE = 1e-4
"""Largest difference allowed between float32 programs, relative to the largest output."""
HALF_TOLERANCE = 1e-2
"""The same for a float16 program beside a float32 one: some 20 roundings to 11 bits."""
HALF_REASON = "values and sums are rounded to float16"


def run_on_host(folder: Path, samples: Samples, progress: Progress) -> np.ndarray:
    """Run every sample through the host program of the `Compiled` in `folder`; returns its first output."""
    from armlet.devices.host import HostProgram

    program = HostProgram.load(folder, artifact_json.load(Compiled, folder))
    return run_in_parts(program, samples, progress, "run the compiled program on this machine")


def run_in_parts(program: Runnable, samples: Samples, progress: Progress, what: str) -> np.ndarray:
    """Run every sample, so many at a time that the progress can be seen; returns the first output."""
    import numpy as np

    progress.start(what, len(samples))
    outputs = []
    for start in range(0, len(samples), _AT_A_TIME):
        part = samples.take(slice(start, start + _AT_A_TIME))
        outputs.append(program.run_batch(part.inputs)[0])
        progress.advance(len(part))
    return np.concatenate(outputs)


def compare(found: np.ndarray, expected: np.ndarray, host: Compiled, board: Compiled) -> Match:
    """Compare the board's outputs with the host's: bit for bit when both are integer programs."""
    import numpy as np

    for name, outputs in ((board.target, found), (host.target, expected)):
        if not np.isfinite(outputs).all():
            raise VerificationFailed(f"the program for {name} answers with values that are not finite")
    exact = host.integer_only and board.integer_only
    identical = (found.view(np.uint8) == expected.view(np.uint8)).reshape(len(found), -1).all(axis=1)
    difference = float(np.max(np.abs(found.astype(np.float64) - expected)))  # INT8 would wrap
    largest = float(np.max(np.abs(expected)))
    if exact and not identical.all():
        raise VerificationFailed(
            f"{int((~identical).sum())} of {len(found)} outputs of the program for {board.target} differ from the"
            f" host program's by up to {difference:g}; integer programs must agree bit for bit"
        )
    tolerance, reason = FLOAT_TOLERANCE * max(1.0, largest), "float sums are added in another order"
    n_rounded = sum(kernel.precision == "int8" for kernel in board.kernels)
    if board.precision == "float16":
        tolerance, reason = HALF_TOLERANCE * max(1.0, largest), HALF_REASON
    elif exact:
        tolerance, reason = 0.0, "integer arithmetic is exact on every CPU"
    elif n_rounded:
        n_steps = steps_allowed(n_rounded)
        tolerance += n_steps * float(np.ptp(expected)) / INTEGER_LEVELS
        reason = (
            f"float layers between integer ones may round a last bit otherwise: {n_steps} steps of 8 bits"
        )
    return Match(len(found), int(identical.sum()), difference, tolerance, reason)
