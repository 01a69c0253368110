"""The stages of one target's program for streams: compile the step, run it over whole sequences, compare."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from armlet import artifact_json
from armlet.artifacts import Compiled, Match, StreamMeasured
from armlet.errors import UsageError
from armlet.stages.compare import compare, run_on_host
from armlet.stages.context import StageContext
from armlet.stages.device import cost_of_a_call, emulator_of

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

    recipe, step = context.plan.recipe, context.inputs[0] / STREAM_FILE
    return compile_onnx(
        step,
        context.target,
        recipe.stream_symbol,
        context.folder,
        small=recipe.small,
        precision=recipe.precision_on(context.target),
        threads=recipe.threads,
    )


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
    whole_program, host, board = (artifact_json.load(Compiled, folder) for folder in (whole, reference, ours))
    emulator, runner = emulator_of(context.target), ours / "bin" / "run"
    same_answers: Match | None = None
    same_states: Match | None = None
    if emulator is not None:
        some = steps.take(_N_STEPS)
        context.progress.start(f"run {len(some.frames)} steps under emulation")
        answers, after = emulator.run_all(runner, (some.frames, some.before), board.outputs)
        same_answers = compare(answers, some.answers, host, board)
        same_states = compare(after, some.after, host, board)
    first = steps.take(1)
    sample, threads = (first.frames, first.before), context.plan.recipe.threads
    cost = cost_of_a_call(runner, sample, context.target, emulator, context.progress, threads)
    matched = compare(steps.answers[steps.last], expected, whole_program, host)
    return StreamMeasured(context.target.name, len(samples), matched, same_answers, same_states, *cost)


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

    def take(self, n: int) -> _Steps:
        """Return the first `n` steps, or all where there are fewer."""
        last = [position for position in self.last if position < n]
        return _Steps(self.frames[:n], self.before[:n], self.answers[:n], self.after[:n], last)


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
