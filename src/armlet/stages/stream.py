"""The stages of one target's program for streams: compile the step, run it over whole sequences, compare."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from armlet import artifact_json
from armlet.artifacts import Compiled, StreamMeasured
from armlet.errors import UsageError
from armlet.stages.compare import compare, run_on_host
from armlet.stages.context import StageContext

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from armlet.data.splits import Samples

N_STREAMED = 100
"""Test sequences that are run step by step; the test split may have fewer."""

_N_STEPS = 5000
"""Steps of them that the emulated board repeats at most."""


def compile_stream(context: StageContext) -> Compiled:
    """Compile the network's step for the stage's target."""
    from armlet.compile.pipeline import compile_onnx
    from armlet.export import STREAM_FILE

    symbol = context.plan.recipe.stream_symbol
    return compile_onnx(context.inputs[0] / STREAM_FILE, context.target, symbol, context.folder)


def measure_stream(context: StageContext) -> StreamMeasured:
    """Run the step over whole sequences on this machine, and every step of theirs on the target's device."""
    from armlet.data.streams import in_whole_steps

    stream = context.plan.recipe.stream
    if stream is None:
        raise UsageError("this recipe makes no program for streams")
    ours, reference, whole = context.inputs
    samples = in_whole_steps(context.splits().test.take(slice(N_STREAMED)), stream.frames)
    if len(samples) == 0:
        raise UsageError(f"no test sequence is {stream.frames} frames long")
    context.progress.start(f"run {len(samples)} sequences step by step on this machine", len(samples))
    steps = _run_steps(reference, samples, stream.frames, context)
    expected = run_on_host(whole, samples, context.progress)
    programs = [artifact_json.load(Compiled, folder) for folder in (whole, reference, ours)]
    measured = StreamMeasured(
        target=context.target.name,
        n_sequences=len(samples),
        whole=compare(steps.answers[steps.last], expected, programs[0], programs[1]),
        answers=None,
        states=None,
        counts=None,
        latency=None,
    )
    return _on_device(context, measured, steps, programs[1:])


@dataclass(frozen=True, slots=True, eq=False)
class _Steps:
    """Every step of some sequences: what went in and what came out.

    Attributes:
        last: positions of the sequences' last steps.
    """

    frames: np.ndarray
    before: np.ndarray
    answers: np.ndarray
    after: np.ndarray
    last: list[int]


def _run_steps(folder: Path, samples: Samples, frames: int, context: StageContext) -> _Steps:
    import numpy as np

    from armlet.data.streams import steps_of
    from armlet.devices.host import HostProgram

    program = HostProgram.load(folder, artifact_json.load(Compiled, folder))
    found: list[tuple[np.ndarray, ...]] = []
    last: list[int] = []
    for sequence in steps_of(samples, frames):
        state: np.ndarray = np.zeros(program.inputs[1].shape, np.float32)
        for step in sequence:
            answer, after = program.run(step, state)
            found.append((step, state, answer, after))
            state = after
        last.append(len(found) - 1)
        context.progress.advance(1)
    frames_in, before, answers, after = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return _Steps(frames_in, before, answers, after, last)


def _on_device(
    context: StageContext, measured: StreamMeasured, steps: _Steps, programs: list[Compiled]
) -> StreamMeasured:
    """Add what the target's device says: its answers, the cost of a step."""
    runner, target = context.inputs[0] / "bin" / "run", context.target
    first = (steps.frames[:1], steps.before[:1])
    if target.is_native:
        from armlet.bench.protocol import measure_host

        return replace(measured, latency=measure_host(runner, *first))
    from armlet.bench.cycles import count_cycles, estimate_latency
    from armlet.devices.emulator import Emulator

    emulator, host, board = Emulator(target), *programs
    n = min(_N_STEPS, len(steps.frames))
    context.progress.start(f"run {n} steps under emulation")
    answers, after = emulator.run_all(runner, (steps.frames[:n], steps.before[:n]), board.outputs)
    measured = replace(
        measured,
        answers=compare(answers, steps.answers[:n], host, board),
        states=compare(after, steps.after[:n], host, board),
    )
    if target.core.cost_model is None:  # then a latency budget is "not measured"
        return measured
    context.progress.start("count instructions of a step under emulation")
    counts = count_cycles(emulator.count(runner, *first), runner, target)
    return replace(measured, counts=counts, latency=estimate_latency(counts, target))
