"""The stages of one target's program: compile, score, measure, check, bundle."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

from armlet import artifact_json
from armlet.artifacts import (
    Compiled,
    Compressed,
    DataReady,
    Evaluated,
    Exported,
    Measured,
    Pretrained,
    ProgramCost,
    StreamExported,
    StreamFacts,
    StreamMeasured,
    Trained,
    Verdict,
)
from armlet.exhibits import EXHIBITS_FILE, Exhibits
from armlet.regression import pack_right
from armlet.stages.compare import compare, run_in_parts, run_on_host
from armlet.stages.context import OUTPUTS_FILE, StageContext
from armlet.stages.device import cost_of_a_call, emulator_of, open_on_gpu, program_cost, variant_of

if TYPE_CHECKING:
    import numpy as np

    from armlet.data.splits import Splits
    from armlet.plan import StageName

A = TypeVar("A")

N_MATCHED = 1000
"""Test inputs run through the program on the emulated board; the test split may have fewer."""


def compile_program(context: StageContext) -> Compiled:
    """Compile the exported network for the step's target."""
    from armlet.compile.pipeline import compile_onnx

    recipe, packed = context.plan.recipe, context.plan.recipe.package == "packed"
    model = context.inputs[0] / "model.onnx"
    return compile_onnx(
        model,
        context.target,
        recipe.symbol,
        context.folder,
        packed=packed,
        small=recipe.small,
        precision=recipe.precision_on(context.target),
        threads=recipe.threads,
    )


def evaluate_program(context: StageContext) -> Evaluated:
    """Score the compiled program itself on the whole test split, and keep what people can look at."""
    from armlet.metrics import find_changes, make_exhibits

    begin = time.monotonic()
    splits = context.splits()
    outputs = run_on_host(context.inputs[0], splits.test, context.progress)
    score, changes, right = context.scorer(splits.task).score(outputs, splits.test, "test"), None, None
    seconds = time.monotonic() - begin
    trained = _trained_answers(context, splits)
    if splits.task.kind == "classification":
        right = pack_right((outputs.argmax(axis=1) == splits.test.targets).astype("uint8").tobytes())
    if splits.task.kind == "classification" and trained is not None:
        changes = find_changes(trained, outputs, splits.test.targets)
    exhibits = make_exhibits(splits.task, splits.test, outputs, trained)
    (context.folder / EXHIBITS_FILE).write_text(artifact_json.to_json(exhibits), encoding="utf-8")
    return Evaluated(score, seconds, changes, right)


def measure(context: StageContext) -> Measured:
    """Run the program on its device: this machine, its OpenCL device, or the emulated board; say if there is none."""
    target = context.target
    if target.compiled_only:
        return Measured(target.name, target.device, None, None, None, ran=False)
    if target.gpu is not None:
        return _measure_on_gpu(context)
    samples = context.splits().test.take(slice(N_MATCHED))
    runner = context.inputs[0] / "bin" / "run"
    match = None
    emulator = emulator_of(target)
    if emulator is not None:
        host, board = (artifact_json.load(Compiled, folder) for folder in reversed(context.inputs))
        context.progress.start(f"run {len(samples)} samples under emulation")
        (found,) = emulator.run_all(runner, samples.inputs, board.outputs)
        match = compare(found, run_on_host(context.inputs[1], samples, context.progress), host, board)
    sample, threads = samples.take(slice(1)).inputs, context.plan.recipe.threads
    cost = cost_of_a_call(runner, sample, target, emulator, context.progress, threads)
    device = "this machine" if emulator is None else emulator.description
    return Measured(target.name, device, match, *cost, variant_of(runner, target, emulator))


def _measure_on_gpu(context: StageContext) -> Measured:
    """Score the program on the whole test split through this machine's OpenCL, and compare it with the host program."""
    host, board = (artifact_json.load(Compiled, folder) for folder in (context.inputs[1], context.inputs[0]))
    program, device = open_on_gpu(context.inputs[0], board)
    if program is None:
        return Measured(context.target.name, device, None, None, None)
    splits = context.splits()
    found = run_in_parts(program, splits.test, context.progress, f"run the program on {device}")
    some = splits.test.take(slice(N_MATCHED))
    match = compare(found[:N_MATCHED], run_on_host(context.inputs[1], some, context.progress), host, board)
    score = context.scorer(splits.task).score(found, splits.test, "test")
    return Measured(context.target.name, device, match, None, None, score=score)


def cost_of_program(context: StageContext) -> ProgramCost:
    """Say what a network on its way through the passes costs on the step's target."""
    from armlet.models.network import load_network

    recipe, target = context.plan.recipe, context.target
    network, kernels = load_network(context.inputs[0]), recipe.kernels_on(target)
    return program_cost(network, context.splits(), target, recipe.symbol, context.progress, kernels)


def check(context: StageContext) -> Verdict:
    """Hold the facts against the budgets."""
    from armlet.check import check_budgets

    trained, evaluated, compiled, measured, *stream = context.inputs
    return check_budgets(
        context.plan.recipe.budgets,
        artifact_json.load(Trained, trained).score,
        artifact_json.load(Evaluated, evaluated),
        artifact_json.load(Compiled, compiled),
        artifact_json.load(Measured, measured),
        artifact_json.load(StreamMeasured, stream[0]) if stream else None,
    )


def bundle(context: StageContext) -> Verdict:
    """Write the bundle with its report."""
    from armlet.bundle import Provenance, Sources, versions, write_bundle
    from armlet.report import ReportInput

    data, train_, evaluate, compiled, measured, verdict, exported, *_ = context.inputs
    recipe = context.plan.recipe
    ready = artifact_json.load(DataReady, data)
    facts = ReportInput(
        name=recipe.name,
        budgets=recipe.budgets,
        recipe=recipe,
        target=context.target,
        data=ready,
        trained=artifact_json.load(Trained, train_),
        passes=_all(context, "pass", Compressed),
        costs=_all(context, "program_cost", ProgramCost),
        exported=artifact_json.load(Exported, exported),
        compiled=artifact_json.load(Compiled, compiled),
        evaluated=artifact_json.load(Evaluated, evaluate),
        measured=artifact_json.load(Measured, measured),
        verdict=artifact_json.load(Verdict, verdict),
        stream=_stream(context),
        versions=versions(),
        exhibits=artifact_json.from_json(Exhibits, (evaluate / EXHIBITS_FILE).read_bytes()),
        judge=_if_needed(context, "judge", Trained),
        pretrained=_if_needed(context, "pretrain", Pretrained),
    )
    keys = {step.name: step.key for step in context.plan.steps if step.name in context.step.needs}
    provenance = Provenance(
        recipe, context.plan.profile, recipe.seed, ready.source_digests, facts.versions, keys
    )
    parts = [context.folder_of(name) for name in _stream_steps(context)[:2]]
    write_bundle(facts, provenance, Sources(compiled, exported, data, *parts), context.folder)
    return facts.verdict


def _all(context: StageContext, stage: StageName, kind: type[A]) -> tuple[A, ...]:
    """Load the artefacts of every step of one stage that this one needs, in order."""
    steps = (step for step in context.plan.steps if step.stage == stage and step.name in context.step.needs)
    return tuple(artifact_json.load(kind, context.folder_of(step.name)) for step in steps)


def _if_needed(context: StageContext, step: str, kind: type[A]) -> A | None:
    """Load the artefact of a step that this one needs in some recipes only."""
    return artifact_json.load(kind, context.folder_of(step)) if step in context.step.needs else None


def _trained_answers(context: StageContext, splits: Splits) -> np.ndarray | None:
    """Return the trained network's answers to the test samples of which changes or exhibits tell, if any."""
    import numpy as np
    import torch

    from armlet.metrics import n_of_trained
    from armlet.models.network import load_network

    folder, n = context.folder_of("train"), n_of_trained(splits.task)
    if splits.task.kind == "classification":
        answers: np.ndarray = np.load(folder / OUTPUTS_FILE)
        return answers
    if n == 0:
        return None
    inputs = tuple(map(torch.from_numpy, splits.test.take(slice(n)).inputs))
    with torch.inference_mode():
        return np.asarray(load_network(folder).module(*inputs).numpy())


def _stream_steps(context: StageContext) -> tuple[str, ...]:
    """Return the names of the steps that made the program for streams: compiled, exported, measured."""
    name = context.target.name
    steps = (f"compile_stream/{name}", "export_stream", f"measure_stream/{name}")
    return steps if context.plan.recipe.stream is not None else ()


def _stream(context: StageContext) -> StreamFacts | None:
    """Return what is known of the program for streams, None where there is none."""
    folders = [context.folder_of(step) for step in _stream_steps(context)]
    if not folders:
        return None
    return StreamFacts(
        artifact_json.load(Compiled, folders[0]),
        artifact_json.load(StreamExported, folders[1]),
        artifact_json.load(StreamMeasured, folders[2]),
    )
