"""A network's step as an ONNX file, proven against the network over whole sequences.

The file takes the next frames and the state, and answers for the frames so far. Fed with a sequence step by step, torch
must end with the answer of the whole network, and ONNX Runtime with torch's.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from armlet.analysis.onnx_info import tensor_info
from armlet.analysis.reference import reference_session
from armlet.artifacts import StreamExported
from armlet.data.splits import Samples
from armlet.data.streams import in_whole_steps, steps_of
from armlet.errors import UsageError, VerificationFailed
from armlet.export.onnx import OUTPUT_NAME, to_onnx, write_onnx
from armlet.export.verify import FloatArray, tolerance_of
from armlet.models.network import Network, executable
from armlet.models.streaming import STATE, StreamForm, stream_form

STREAM_FILE = "stream.onnx"
_N_WHOLE, _N_RUNTIME = 256, 8
"""Sequences that torch takes at once, and ONNX Runtime one by one."""


def export_stream(network: Network, samples: Samples, frames: int, folder: Path) -> StreamExported:
    """Write `stream.onnx`, the step of a network that takes `frames` frames at a time, and prove it.

    Args:
        network: float or quantised, over whole sequences.
        samples: of which the first 256 are compared.
        frames: of each step; tokens, for text.
        folder: is made if missing.

    Raises:
        UsageError: the network can't be run step by step, or there are no samples that long.
        UnsupportedOperator: the step has no ONNX form.
        VerificationFailed: step by step another answer came out.
    """
    form, sequences = stream_form(network, frames), in_whole_steps(samples.take(slice(_N_WHOLE)), frames)
    if len(sequences) == 0:
        raise UsageError(f"no sample is {frames} frames long: there is nothing to verify the stream on")
    model = to_onnx(form.network)
    answer, state = model.graph.outputs
    answer.name, state.name = OUTPUT_NAME, f"{STATE}_after"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / STREAM_FILE
    write_onnx(model, path)
    with torch.no_grad():
        expected = executable(network)(*map(torch.from_numpy, sequences.inputs)).numpy()
    tolerance, reason = tolerance_of(network, expected)
    in_torch = _in_torch(form, sequences)
    in_runtime = _in_runtime(form, path, sequences.take(slice(_N_RUNTIME)))
    differences = (
        _difference("torch, step by step,", in_torch, expected, tolerance),
        _difference("ONNX Runtime, step by step,", in_runtime, in_torch[: len(in_runtime)], tolerance),
    )
    return StreamExported(
        inputs=tuple(map(tensor_info, model.graph.inputs)),
        outputs=tuple(map(tensor_info, model.graph.outputs)),
        frames=frames,
        most_frames=form.most_frames,
        n_verified=len(sequences),
        max_abs_difference=max(differences),
        tolerance=tolerance,
        tolerance_reason=reason,
    )


def _in_torch(form: StreamForm, samples: Samples) -> FloatArray:
    """Return the answers after each sample's last step."""
    step, sequences = executable(form.network), steps_of(samples, form.frames)
    answers = np.empty((len(samples), *form.network.architecture.output_shape), np.float32)
    state = form.start.expand(len(samples), -1)
    with torch.no_grad():
        for t in range(max(map(len, sequences))):
            # Those that are over take their last step again; their answers are kept already.
            frames = np.concatenate([sequence[min(t, len(sequence) - 1)] for sequence in sequences])
            answer, state = step(torch.from_numpy(frames), state)
            ended = [i for i, sequence in enumerate(sequences) if len(sequence) == t + 1]
            answers[ended] = answer[ended].numpy()
    return answers


def _in_runtime(form: StreamForm, path: Path, samples: Samples) -> FloatArray:
    """Return the same from ONNX Runtime."""
    session, answers = reference_session(path), []
    name = session.get_inputs()[0].name
    for sequence in steps_of(samples, form.frames):
        state = form.start.numpy()
        for frames in sequence:
            answer, state = session.run(None, {name: frames, STATE: state})
        answers.append(answer[0])
    return np.stack(answers)


def _difference(what: str, found: FloatArray, expected: FloatArray, tolerance: float) -> float:
    difference = float(np.abs(found - expected).max())
    if not difference <= tolerance:  # which is so for NaN, too
        raise VerificationFailed(
            f"{what} differs by {difference:.3g} from what it should answer; allowed are {tolerance:.3g}"
        )
    return difference
