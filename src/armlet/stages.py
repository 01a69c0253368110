"""One function for each stage: unpacks specs and artefacts, calls the room that does the work, returns the artefact.

Nothing heavy is imported before a stage runs: a fully cached run loads neither torch nor tvm.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from armlet import artifact_json
from armlet.artifacts import (
    Compiled,
    Compressed,
    DataReady,
    Evaluated,
    Exported,
    Match,
    Measured,
    Trained,
    Verdict,
)
from armlet.errors import UnsupportedOperator, UsageError, VerificationFailed
from armlet.plan import Plan, StageName, Step
from armlet.progress import Progress
from armlet.spec.target import Target

if TYPE_CHECKING:
    import numpy as np

    from armlet.data.splits import Samples, Splits

N_MATCHED = 1000
"""Test inputs run through the program on the emulated board; the test split may have fewer."""

N_TWIN = 64
"""Training inputs on which the LiteRT file is compared with the ONNX file."""

N_TRAINING_SCORED = 10_000
"""Training samples that the trained network is scored on, to see how much it learned by heart."""

OUTPUTS_FILE = "outputs.npy"
ASSETS = "assets"

FLOAT_TOLERANCE = 1e-4
"""Largest difference allowed between float32 programs, relative to the largest output."""


@dataclass(frozen=True)
class StageContext:
    """What a stage may use.

    Attributes:
        plan, step: what is asked for.
        inputs: folders of the artefacts named by `step.needs`, in that order.
        folder: where to write files; becomes the store's entry.
        work: folder that outlives an interruption.
        data_folder: where data sets lie.
    """

    plan: Plan
    step: Step
    inputs: tuple[Path, ...]
    folder: Path
    work: Path
    data_folder: Path
    progress: Progress

    @property
    def target(self) -> Target:
        """The step's target."""
        if self.step.target is None:
            raise UsageError(f"step {self.step.name} has no target")
        return self.step.target

    def splits(self) -> Splits:
        """Load the recipe's data, held out and limited as the recipe says."""
        from armlet import data

        spec = self.plan.recipe.data
        data.ensure(spec.kind, self.data_folder, self.progress)
        return data.prepare(
            data.load(spec.kind, self.data_folder, spec.options()),
            validation=spec.validation,
            limit=spec.limit,
            test_limit=spec.test_limit,
            seed=self.plan.recipe.seed,
        )


def fetch_data(context: StageContext) -> DataReady:
    """Fetch and verify the recipe's data set."""
    from armlet import data

    spec = context.plan.recipe.data
    ready, splits = data.fetch(spec.kind, context.data_folder, context.progress, spec.options())
    for name, content in splits.assets:
        (context.folder / ASSETS).mkdir(exist_ok=True)
        (context.folder / ASSETS / name).write_bytes(content)
    return ready


def train(context: StageContext) -> Trained:
    """Build the recipe's model and train it."""
    import numpy as np
    import torch

    from armlet.analysis.cost import cost_of
    from armlet.metrics import Scorer
    from armlet.models.network import architecture_of, build, save_network
    from armlet.train import TrainOptions, evaluate, predict, train_network

    recipe, splits = context.plan.recipe, context.splits()
    options = recipe.model.model_dump(mode="json", exclude={"kind"})
    architecture = architecture_of(recipe.model.kind, options, splits.inputs, splits.task.output_shape)
    scorer = Scorer(splits.task)
    network, run = train_network(
        build(architecture, recipe.seed),
        splits,
        TrainOptions(**recipe.train.model_dump()),
        scorer,
        seed=recipe.seed,
        work=context.work,
        progress=context.progress,
    )
    save_network(network, context.folder)
    if splits.task.kind == "classification":
        tested = tuple(map(torch.from_numpy, splits.test.inputs))
        np.save(context.folder / OUTPUTS_FILE, predict(network.module, tested).numpy())
    return Trained(
        cost=cost_of(network),
        score=evaluate(network, splits.test, scorer, "test"),
        history=run.history,
        device=run.device,
        precision=run.precision,
        seconds=run.seconds,
        stopped_early=run.stopped_early,
        training_score=evaluate(network, splits.train.take(slice(N_TRAINING_SCORED)), scorer, "training"),
    )


def run_one_pass(context: StageContext) -> Compressed:
    """Run one pass of the recipe on the network that the step before it left."""
    from armlet.metrics import Scorer
    from armlet.models.network import load_network, save_network
    from armlet.passes import PassContext, run_pass

    recipe, splits = context.plan.recipe, context.splits()
    network, record = run_pass(
        recipe.passes[context.step.position],
        load_network(context.inputs[0]),
        PassContext(
            splits=splits,
            teacher=load_network(context.inputs[-1]),
            scorer=Scorer(splits.task),
            seed=recipe.seed,
            work=context.work,
            progress=context.progress,
        ),
    )
    save_network(network, context.folder)
    return Compressed(record)


def export(context: StageContext) -> Exported:
    """Export the compressed network to ONNX and LiteRT."""
    from armlet.export import export_onnx
    from armlet.export.litert import export_litert
    from armlet.models.network import load_network

    samples, folder = context.splits().train, context.folder
    exported = export_onnx(load_network(context.inputs[0]), samples, folder)
    try:
        twin = export_litert(
            folder / "model.onnx", folder / "model.tflite", samples.take(slice(N_TWIN)).inputs
        )
    except UnsupportedOperator as error:  # the program does without; the bundle and its report say so
        return replace(exported, litert_missing=str(error))
    return replace(exported, litert=twin)


def compile_program(context: StageContext) -> Compiled:
    """Compile the exported network for the step's target."""
    from armlet.compile.pipeline import compile_onnx

    recipe = context.plan.recipe
    return compile_onnx(context.inputs[0] / "model.onnx", context.target, recipe.symbol, context.folder)


def evaluate_program(context: StageContext) -> Evaluated:
    """Score the compiled program itself on the whole test split."""
    import numpy as np

    from armlet.metrics import Scorer, find_changes

    begin = time.monotonic()
    splits = context.splits()
    outputs = _run_on_host(context.inputs[0], splits.test, context.progress)
    score, changes = Scorer(splits.task).score(outputs, splits.test, "test"), None
    if splits.task.kind == "classification":
        changes = find_changes(np.load(context.inputs[2] / OUTPUTS_FILE), outputs, splits.test.targets)
    return Evaluated(score, time.monotonic() - begin, changes)


def measure(context: StageContext) -> Measured:
    """Run the program on its device: this machine, or the emulated board."""
    compiled = artifact_json.load(Compiled, context.inputs[0])
    samples = context.splits().test.take(slice(N_MATCHED))
    first = samples.take(slice(1)).inputs
    runner = context.inputs[0] / "bin" / "run"
    if context.target.is_native:
        from armlet.bench.protocol import measure_host

        return Measured(context.target.name, "this machine", None, None, measure_host(runner, *first))
    from armlet.bench.cycles import count_cycles, estimate_latency
    from armlet.devices.emulator import Emulator

    emulator, target = Emulator(context.target), context.target
    context.progress.start(f"run {len(samples)} samples under emulation")
    (found,) = emulator.run_all(runner, samples.inputs, compiled.outputs)
    expected = _run_on_host(context.inputs[1], samples, context.progress)
    match = _compare(found, expected, artifact_json.load(Compiled, context.inputs[1]), compiled)
    if target.core.cost_model is None:  # then a latency budget is "not measured"
        return Measured(target.name, emulator.description, match, None, None)
    context.progress.start("count instructions under emulation")
    counts = count_cycles(emulator.count(runner, *first), runner, target)
    return Measured(target.name, emulator.description, match, counts, estimate_latency(counts, target))


def check(context: StageContext) -> Verdict:
    """Hold the facts against the budgets."""
    from armlet.check import check_budgets

    trained, evaluated, compiled, measured = context.inputs
    return check_budgets(
        context.plan.recipe.budgets,
        artifact_json.load(Trained, trained).score,
        artifact_json.load(Evaluated, evaluated),
        artifact_json.load(Compiled, compiled),
        artifact_json.load(Measured, measured),
    )


def bundle(context: StageContext) -> Verdict:
    """Write the bundle with its report."""
    from armlet.bundle import Provenance, Sources, versions, write_bundle
    from armlet.report import ReportInput

    data, train_, evaluate, compiled, measured, verdict, exported, *passes = context.inputs
    recipe = context.plan.recipe
    facts = ReportInput(
        recipe=recipe,
        target=context.target,
        data=artifact_json.load(DataReady, data),
        trained=artifact_json.load(Trained, train_),
        passes=tuple(artifact_json.load(Compressed, folder) for folder in passes),
        exported=artifact_json.load(Exported, exported),
        compiled=artifact_json.load(Compiled, compiled),
        evaluated=artifact_json.load(Evaluated, evaluate),
        measured=artifact_json.load(Measured, measured),
        verdict=artifact_json.load(Verdict, verdict),
        versions=versions(),
    )
    keys = {step.name: step.key for step in context.plan.steps if step.name in context.step.needs}
    sources = facts.data.source_digests
    provenance = Provenance(recipe, context.plan.profile, recipe.seed, sources, facts.versions, keys)
    write_bundle(facts, provenance, Sources(compiled, exported, data), context.folder)
    return facts.verdict


STAGE_FUNCTIONS: dict[StageName, Callable[[StageContext], object]] = {
    "data": fetch_data,
    "train": train,
    "pass": run_one_pass,
    "export": export,
    "compile": compile_program,
    "evaluate": evaluate_program,
    "measure": measure,
    "check": check,
    "bundle": bundle,
}


def _run_on_host(folder: Path, samples: Samples, progress: Progress) -> np.ndarray:
    """Run every sample through the host program of the `Compiled` in `folder`; returns its first output."""
    import numpy as np

    from armlet.devices.host import HostProgram

    program = HostProgram.load(folder, artifact_json.load(Compiled, folder))
    progress.start("run the compiled program on this machine", len(samples))
    outputs = []
    for start in range(0, len(samples), 500):
        part = samples.take(slice(start, start + 500))
        outputs.append(program.run_batch(part.inputs)[0])
        progress.advance(len(part))
    return np.concatenate(outputs)


def _compare(found: np.ndarray, expected: np.ndarray, host: Compiled, board: Compiled) -> Match:
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
    reason = (
        "integer arithmetic is exact on every CPU"
        if exact
        else "float sums are added in another order on another CPU"
    )
    tolerance = 0.0 if exact else FLOAT_TOLERANCE * max(1.0, largest)
    return Match(len(found), int(identical.sum()), difference, tolerance, reason)
