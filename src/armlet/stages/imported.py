"""What is done with an ONNX file that armlet did not make: read, given samples, and its program compared with it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from armlet import digest
from armlet.artifacts import Compiled, Imported, Match, Measured, TensorInfo
from armlet.errors import Problem, UsageError, VerificationFailed
from armlet.progress import Progress
from armlet.rounding import steps_allowed
from armlet.spec.target import Target
from armlet.stages.compare import FLOAT_TOLERANCE, HALF_REASON, HALF_TOLERANCE, compare
from armlet.stages.device import cost_of_a_call, emulator_of, open_on_gpu, variant_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike

    Arrays = tuple[np.ndarray, ...]

N_RANDOM = 16
"""Samples that are drawn where none are given."""
ROUNDED = 0.05
"""Largest difference allowed where float layers follow rounded values, relative to the largest output."""

_INTEGER_OPERATORS = frozenset(
    {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "ConvInteger"}
)


def import_onnx(
    file: Path,
    shapes: Mapping[str, tuple[int, ...]],
    inputs: str | Path | Mapping[str, ArrayLike] | None,
    folder: Path,
) -> tuple[Imported, Arrays]:
    """Write the file with static shapes into `folder`, under its name; return what it is, and samples to run it on.

    Args:
        file: the ONNX file.
        shapes: of inputs that it leaves open, with the batch of one.
        inputs: samples by the name of the input, [N, *shape[1:]] each, or an `.npz` file of them; None draws some.
        folder: an existing folder.

    Raises:
        UsageError: the file can't be read or compiled as it stands; or samples are wrong, or must be given.
        UnsupportedOperator: lists every node whose operator is not known.
    """
    import onnx_ir as ir

    from armlet.analysis.onnx_info import tensor_info
    from armlet.compile.frontend.qoperator import DYNAMIC, FORMS
    from armlet.compile.frontend.shapes import fix_shapes
    from armlet.program import fit_samples

    path = folder / file.name
    fix_shapes(file, shapes, path)
    model = ir.load(path)
    infos = tuple(tensor_info(value) for value in model.graph.inputs)
    samples = random_samples(infos) if inputs is None else fit_samples(infos, _given(inputs))[0]
    if len(samples[0]) == 0:
        raise UsageError("there are no samples to run the program on")
    _refuse_not_finite(infos, samples)
    found = Imported(
        file=file.name,
        sha256=digest.of_file(file),
        inputs=infos,
        outputs=tuple(tensor_info(value) for value in model.graph.outputs),
        opset=model.opset_imports.get("", 0),
        quantized=any(node.op_type in {*_INTEGER_OPERATORS, *FORMS, *DYNAMIC} for node in model.graph),
        onnx_bytes=path.stat().st_size,
        fixed=tuple(shapes),
        n_samples=len(samples[0]),
        random=inputs is None,
    )
    return found, samples


def _refuse_not_finite(infos: tuple[TensorInfo, ...], samples: Arrays) -> None:
    from armlet.data.splits import not_finite

    wrong = [(info.name, said) for info, x in zip(infos, samples, strict=True) if (said := not_finite(x))]
    if wrong:
        raise UsageError([Problem(f"samples of input {name!r} are {said}") for name, said in wrong])


def _given(inputs: str | Path | Mapping[str, ArrayLike]) -> Mapping[str, ArrayLike]:
    import zipfile

    import numpy as np

    if isinstance(inputs, Mapping):
        return inputs
    try:
        loaded = np.load(inputs, allow_pickle=False)
        found = loaded if isinstance(loaded, np.ndarray) else dict(loaded)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise UsageError(Problem(f"can't be read as samples: {error}", file=Path(inputs))) from error
    if isinstance(found, np.ndarray):
        hint = "numpy.savez writes arrays by the name of the input"
        raise UsageError(Problem("is one array without a name", file=Path(inputs), hint=hint))
    return found


def random_samples(inputs: tuple[TensorInfo, ...], n: int = N_RANDOM) -> Arrays:
    """Return [n, *shape[1:]] for each input, the same every time.

    Quantised inputs are drawn evenly from what they can say, others from the normal distribution.

    Raises:
        UsageError: an input takes tokens, lengths or other whole numbers, of which nobody can guess which make sense.
    """
    import numpy as np

    if whole := [info.name for info in inputs if info.dtype == "int32"]:
        message, hint = "takes whole numbers, which can't be drawn", "give samples: --inputs FILE.npz"
        raise UsageError([Problem(f"input {name!r} {message}", hint=hint) for name in whole])
    generator, samples = np.random.default_rng(0), []
    values: np.ndarray
    for info in inputs:
        shape = (n, *info.shape[1:])
        if info.dtype != "float32":
            limits = np.iinfo(info.dtype)
            values = generator.integers(limits.min, limits.max, shape, endpoint=True)
        elif info.scale is not None and info.zero_point is not None:
            values = info.scale * (generator.uniform(-128, 127, shape) - info.zero_point)
        else:
            values = generator.standard_normal(shape)
        samples.append(values.astype(info.dtype))
    return tuple(samples)


def measure_imported(
    folders: tuple[Path, Path | None], imported: Imported, samples: Arrays, model: Path, target: Target,
    progress: Progress,
) -> tuple[Measured, Arrays | None]:  # fmt: skip
    """Run a compiled ONNX file on its device; return what came of it, and the program's outputs.

    Where nothing runs the target's programs, the outputs are those of the program for this machine. There are none
    where the program is for a GPU, and this machine has no OpenCL device for it.

    Args:
        folders: of the `Compiled` for the target, and for this machine where that is another program.
        imported: the file.
        samples: [N, *shape[1:]] for each input.
        model: the file with static shapes, for ONNX Runtime.
        target: what the program is compiled for.
        progress: told what is run.

    Raises:
        VerificationFailed: the board's integer program differs from the host's by a bit, or an output is not finite.
    """
    from armlet import artifact_json
    from armlet.devices.host import HostProgram

    board_folder, host_folder = folders
    board, emulator = artifact_json.load(Compiled, board_folder), emulator_of(target)
    n = len(samples[0])
    progress.start(f"run {n} samples on {'this machine' if target.compiled_only else target.device}")
    device = target.device if emulator is None else emulator.description
    match: Match | None = None
    if target.compiled_only:
        assert host_folder is not None  # noqa: S101 - it is compiled for every target that is not this machine
        board_folder, host_folder = host_folder, None
        board = artifact_json.load(Compiled, board_folder)
    if board.gpu:
        program, device = open_on_gpu(board_folder, board)
        if program is None:
            return Measured(target.name, device, None, None, None), None
        found = program.run_batch(samples)
    elif emulator is None:
        found = HostProgram.load(board_folder, board).run_batch(samples)
    else:
        found = emulator.program(board_folder, board).run_batch(samples)
    if host_folder is not None:
        host = artifact_json.load(Compiled, host_folder)
        expected = HostProgram.load(host_folder, host).run_batch(samples)
        match = worst([compare(f, e, host, board) for f, e in zip(found, expected, strict=True)])
    progress.start(f"run {n} samples with ONNX Runtime")
    answers = zip(found, _onnx_runtime(model, samples), imported.outputs, strict=True)
    reference = worst([_compared(f, e, info, board) for f, e, info in answers])
    runner, one = board_folder / "bin" / "run", tuple(x[:1] for x in samples)
    counts, latency = cost_of_a_call(runner, one, target, emulator, progress, board.threads)
    variant = variant_of(runner, target, emulator)
    ran = not target.compiled_only
    return Measured(target.name, device, match, counts, latency, variant, reference, ran), found


def _onnx_runtime(model: Path, samples: Arrays) -> Arrays:
    """Return ONNX Runtime's outputs, computed as the file says, one sample at a time.

    Raises:
        UsageError: it can't run the file on these samples, such as tokens beyond a table.
    """
    import numpy as np
    from onnxruntime.capi import onnxruntime_pybind11_state as errors

    from armlet.analysis.reference import reference_session

    rows = ([x[i : i + 1] for x in samples] for i in range(len(samples[0])))
    try:
        session = reference_session(model)
        names = [i.name for i in session.get_inputs()]
        found = [session.run(None, dict(zip(names, row, strict=True))) for row in rows]
    except (errors.Fail, errors.InvalidArgument, errors.InvalidGraph, errors.NotImplemented) as error:
        raise UsageError(f"ONNX Runtime can't run {model.name} on these samples: {error}") from error
    return tuple(np.concatenate(parts) for parts in zip(*found, strict=True))


def _compared(found: np.ndarray, expected: np.ndarray, info: TensorInfo, compiled: Compiled) -> Match:
    """Compare one output of a program with ONNX Runtime's."""
    import numpy as np

    if not np.isfinite(found).all():
        raise VerificationFailed(f"output {info.name!r} of the program for {compiled.target} is not finite")
    identical = (found == expected).reshape(len(found), -1).all(axis=1)
    difference = float(np.max(np.abs(found.astype(np.float64) - expected)))
    largest = max(1.0, float(np.max(np.abs(expected))))
    n_rounded = sum(kernel.precision == "int8" for kernel in compiled.kernels)
    tolerance, reason = FLOAT_TOLERANCE * largest, "float sums are added in another order"
    if compiled.precision == "float16":
        tolerance, reason = HALF_TOLERANCE * largest, HALF_REASON
    step = info.scale if info.dtype == "float32" else 1.0
    if n_rounded and step is not None:
        n_steps = steps_allowed(n_rounded)
        tolerance += n_steps * step
        reason = f"{n_steps} steps of the output's scale: halves may round either way"
    elif n_rounded:
        # The float layers behind the last rounded value amplify its steps by an unknown factor.
        tolerance, reason = ROUNDED * largest, "5 % of the largest output: float layers follow rounded values"
    return Match(len(found), int(identical.sum()), difference, tolerance, reason)


def worst(matches: list[Match]) -> Match:
    """Return the match of the output that comes nearest to its tolerance, with the fewest identical samples of any."""
    from dataclasses import replace

    worst = max(matches, key=lambda m: (not m.holds, m.max_abs_difference / (m.tolerance or 1.0)))
    return replace(worst, n_identical=min(match.n_identical for match in matches))
