"""A bundle's program as a Python callable: natively where this machine fits the target, else under emulation."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from armlet.artifacts import Compiled, TensorInfo
from armlet.bundle import STREAM_FOLDER, Bundle
from armlet.errors import UsageError, nearest
from armlet.spec.target import Target

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike

    Arrays = tuple[np.ndarray, ...]
    Route = Callable[[Arrays], Arrays]


class Program:
    """A compiled network that can be called.

    Args:
        bundle: an opened bundle.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        manifest = bundle.manifest
        self._route = open_route(bundle.folder, manifest.compiled, manifest.target)

    @property
    def inputs(self) -> tuple[TensorInfo, ...]:
        """What the program takes; the first extent of each shape is the batch, 1."""
        return self.bundle.manifest.inputs

    @property
    def outputs(self) -> tuple[TensorInfo, ...]:
        """What the program answers."""
        return self.bundle.manifest.outputs

    def __call__(self, x: ArrayLike | Mapping[str, ArrayLike]) -> np.ndarray | dict[str, np.ndarray]:
        """Run the program.

        Args:
            x: one array, or a dict of arrays by input name. Each has the input's shape, the shape without the
                batch, or any batch of it: [N, *shape[1:]].

        Returns:
            An array, or a dict by output name when there are several outputs; with the batch of the input, and
            without one where the input had none.

        Raises:
            UsageError: a wrong name, shape or dtype.
        """
        samples, batched = fit_samples(self.inputs, x)
        answers = self._route(samples)
        if not batched:
            answers = tuple(answer[0] for answer in answers)
        if len(answers) == 1:
            return answers[0]
        return {info.name: answer for info, answer in zip(self.outputs, answers, strict=True)}

    def stream(self) -> Stream:
        """Begin a stream, which takes a sequence step by step.

        Raises:
            UsageError: the bundle has no program for streams.
        """
        return Stream(self.bundle)


class Stream:
    """A sequence that is under way: each call takes the next frames and answers for all so far.

    Args:
        bundle: an opened bundle that has a program for streams.

    Raises:
        UsageError: it has none.
    """

    def __init__(self, bundle: Bundle) -> None:
        facts = bundle.manifest.stream
        if facts is None:
            raise UsageError("the bundle has no program for streams: give the recipe a section `stream`")
        self._facts = facts.exported
        self._route = open_route(bundle.folder / STREAM_FOLDER, facts.compiled, bundle.manifest.target)
        self.reset()

    @property
    def frames(self) -> TensorInfo:
        """What each call takes; the first extent of the shape is the batch, 1."""
        return self._facts.inputs[0]

    def reset(self) -> None:
        """Begin anew."""
        import numpy as np

        state = self._facts.inputs[1]
        self._state, self.n_frames = np.zeros(state.shape, state.dtype), 0

    def __call__(self, frames: ArrayLike) -> np.ndarray:
        """Take the next frames [F, ...], or [1, F, ...]; answer for all frames so far, without the batch.

        Raises:
            UsageError: a wrong shape or dtype, or the stream is as long as the network can take.
        """
        most = self._facts.most_frames
        if most is not None and self.n_frames + self._facts.frames > most:
            raise UsageError(f"the network takes {most} frames at most: call reset() to begin a new stream")
        array, _ = _fit(self.frames, frames)
        if len(array) != 1:
            raise UsageError(f"a stream takes one step at a time, not {len(array)}")
        answer, self._state = self._route((array, self._state))
        self.n_frames += self._facts.frames
        found: np.ndarray = answer[0]
        return found


def load(path: str | Path) -> Program:
    """Open a bundle and make its program callable.

    Args:
        path: the bundle's folder.

    Raises:
        UsageError: not a bundle, a file of it is corrupted, or nothing here runs programs for its target.
        MissingDependency: the target needs an emulator that is not installed.
        NoOpenClDevice: the program is for a GPU, and this machine has no OpenCL device for it.
    """
    return Program(Bundle.open(path))


def fit_samples(
    inputs: Sequence[TensorInfo], x: ArrayLike | Mapping[str, ArrayLike]
) -> tuple[tuple[np.ndarray, ...], bool]:
    """Return one array [N, *shape[1:]] for each input, and whether the caller gave a batch.

    Args:
        inputs: of a program.
        x: as a `Program` takes it.

    Raises:
        UsageError: a wrong name, shape or dtype.
    """
    given = x if isinstance(x, Mapping) else {inputs[0].name: x}
    if not isinstance(x, Mapping) and len(inputs) > 1:
        names = ", ".join(info.name for info in inputs)
        raise UsageError(f"the program has {len(inputs)} inputs: give a dict with {names}")
    for name in given:
        if name not in [info.name for info in inputs]:
            raise UsageError(f"no input {name!r} ({nearest(name, [i.name for i in inputs])})")
    arrays = []
    ranks = set()
    for info in inputs:
        if info.name not in given:
            raise UsageError(f"input {info.name!r} is missing")
        array, batched = _fit(info, given[info.name])
        arrays.append(array)
        ranks.add((batched, len(array)))
    if len(ranks) > 1:
        raise UsageError("the inputs have different batch sizes")
    return tuple(arrays), ranks.pop()[0]


def open_route(folder: Path, compiled: Compiled, target: Target) -> Route:
    """Return what runs the program in `folder`, here or on the emulated board: samples in, an array for each output.

    Raises:
        UsageError: nothing here runs the target's programs.
        NoOpenClDevice: the program is for a GPU, and this machine has no OpenCL device for it.
    """
    if compiled.gpu:
        from armlet.devices.opencl import OpenClProgram

        return OpenClProgram(folder, compiled).run_batch
    if not target.compiled_only and compiled.triple.split("-")[0] == platform.machine():
        from armlet.devices.host import HostProgram, this_machine_has

        if this_machine_has(compiled.features):
            return HostProgram.load(folder, compiled).run_batch
    from armlet.devices.emulator import Emulator

    return Emulator(target).program(folder, compiled).run_batch


def _fit(info: TensorInfo, value: ArrayLike) -> tuple[np.ndarray, bool]:
    """Return `value` as [N, *shape[1:]] of the input's dtype, and whether it had a batch."""
    import numpy as np

    array = np.asarray(value)
    shape = info.shape[1:]
    if not np.can_cast(array.dtype, info.dtype, casting="same_kind"):
        raise UsageError(f"input {info.name!r} is {info.dtype}, not {array.dtype}")
    array = array.astype(info.dtype)
    if array.shape == shape:
        return array[None], False
    if array.shape[1:] == shape and array.ndim == len(info.shape):
        return array, True
    raise UsageError(
        f"input {info.name!r} has shape {list(array.shape)}; expected {list(shape)} or [N, {str(list(shape))[1:]}"
    )
