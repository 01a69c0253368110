"""The stages that make a network, which all targets share: data, training, passes, export."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from armlet.artifacts import Compressed, DataReady, Exported, Pretrained, StreamExported, Trained
from armlet.errors import UnsupportedOperator, UsageError
from armlet.spec.load import load_target
from armlet.spec.model import ModelSpec
from armlet.spec.train import TrainSpec
from armlet.spec.widths import settled
from armlet.stages.context import ASSETS, OUTPUTS_FILE, StageContext
from armlet.stages.names import refuse_unknown_names

if TYPE_CHECKING:
    from armlet.data.splits import Splits
    from armlet.metrics import Scorer
    from armlet.models.network import Network

N_TWIN = 64
"""Training inputs on which the LiteRT file is compared with the ONNX file."""

_ANOTHER_SEED = 7_919
"""From the seed of one teacher to that of the next: seeds that people choose lie nearer to each other."""

N_TRAINING_SCORED = 10_000
"""Training samples that the trained network is scored on, to see how much it learned by heart."""


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
    """Build the recipe's model and train it, or go on from what was pre-trained."""
    import numpy as np
    import torch

    from armlet.models.network import load_network
    from armlet.train import evaluate, predict

    recipe, splits = context.plan.recipe, context.splits()
    scorer, untrained = context.scorer(splits.task), None
    start = _fresh(recipe.model, splits, recipe.seed)
    refuse_unknown_names(recipe, start.module)
    if splits.task.kind == "generation":
        untrained = evaluate(start, splits.test, scorer, "test")
        scorer = replace(scorer, untrained=untrained.value)
    if "pretrain" in context.step.needs:
        start = load_network(context.folder_of("pretrain"))
    elif recipe.model.kind == "module":
        _require_operators(start, context)
    network, trained = _train(context, start, splits, scorer, recipe.train)
    if splits.task.kind == "classification":
        tested = tuple(map(torch.from_numpy, splits.test.inputs))
        np.save(context.folder / OUTPUTS_FILE, predict(network.module, tested).numpy())
    return replace(trained, untrained_score=untrained)


def _require_operators(network: Network, context: StageContext) -> None:
    """Refuse a user's module whose operators can't be compiled before hours of training go into it.

    Raises:
        UnsupportedOperator: names them all.
    """
    from armlet.compile.frontend.load import read_onnx
    from armlet.export.onnx import to_onnx, write_onnx

    context.progress.start("see whether every operator of the module can be compiled")
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "model.onnx"
        write_onnx(to_onnx(network), file)
        read_onnx(file)


def train_teacher(context: StageContext) -> Trained:
    """Train the recipe's model once more, from another seed, for a student to learn from both."""
    from armlet.models.network import load_network

    recipe, splits = context.plan.recipe, context.splits()
    seed = recipe.seed + _ANOTHER_SEED * context.step.position
    start = _fresh(recipe.model, splits, seed)
    if "pretrain" in context.step.needs:
        start = load_network(context.folder_of("pretrain"))
    return _train(context, start, splits, context.scorer(splits.task), recipe.train, seed)[1]


def train_judge(context: StageContext) -> Trained:
    """Train the classifier in whose features generated samples are compared."""
    from armlet.metrics import Scorer

    recipe = context.plan.recipe
    if recipe.judge is None:
        raise UsageError("this recipe has no judge")
    splits = context.splits(recipe.data.judged)
    start = _fresh(recipe.judge.model, splits, recipe.seed)
    return _train(context, start, splits, Scorer(splits.task), recipe.judge.train)[1]


def pretrain(context: StageContext) -> Pretrained:
    """Build the recipe's model and let it learn to fill in hidden parts of its inputs."""
    from armlet.metrics import Scorer
    from armlet.models.network import save_network
    from armlet.train import TrainOptions, train_network

    recipe, splits = context.plan.recipe, context.splits()
    if recipe.pretrain is None:
        raise UsageError("this recipe does not pre-train")
    start = _fresh(recipe.model, splits, recipe.seed)
    refuse_unknown_names(recipe, start.module)
    network, run = train_network(
        start,
        splits,
        TrainOptions(**recipe.pretrain.train.model_dump()),
        Scorer(splits.task),
        seed=recipe.seed,
        work=context.work,
        progress=context.progress,
        mask=recipe.pretrain.mask,
    )
    save_network(network, context.folder)
    return Pretrained(run.history, run.device, run.precision, run.seconds)


def run_one_pass(context: StageContext) -> Compressed:
    """Run one pass of the recipe on the network that the step before it left."""
    from armlet.models.network import load_network, save_network
    from armlet.passes import PassContext, run_pass
    from armlet.stages.device import program_cost

    recipe, splits = context.plan.recipe, context.splits()
    teachers = [context.folder_of(need) for need in context.step.needs if need.startswith("teacher ")]
    trained = load_network(context.folder_of("train"))
    refuse_unknown_names(recipe, trained.module)  # where the trained network was there already
    network, record = run_pass(
        settled(recipe, context.step.position),
        load_network(context.inputs[0]),
        PassContext(
            splits=splits,
            teacher=trained,
            scorer=context.scorer(splits.task),
            seed=recipe.seed,
            work=context.work,
            progress=context.progress,
            other_teachers=tuple(map(load_network, teachers)),
            program_cost=lambda candidate, name: program_cost(
                candidate,
                splits,
                target := load_target(name),
                recipe.symbol,
                context.progress,
                recipe.kernels_on(target),
            ),
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


def export_stream(context: StageContext) -> StreamExported:
    """Export the compressed network's step to ONNX."""
    from armlet.export import export_stream as export_step
    from armlet.models.network import load_network

    stream = context.plan.recipe.stream
    if stream is None:
        raise UsageError("this recipe makes no program for streams")
    network = load_network(context.inputs[0])
    return export_step(network, context.splits().train, stream.frames, context.folder)


def _fresh(model: ModelSpec, splits: Splits, seed: int) -> Network:
    """Build the network that a recipe's `model` section describes, for these splits."""
    from armlet.analysis.graph import trace
    from armlet.models.network import architecture_of, build

    options = model.model_dump(mode="json", exclude={"kind"})
    network = build(architecture_of(model.kind, options, splits.inputs, splits.task.output_shape), seed)
    if model.kind == "module":  # else it would be found out only after it is trained
        trace(network.module, network.architecture.inputs)
    return network


def _train(
    context: StageContext,
    start: Network,
    splits: Splits,
    scorer: Scorer,
    spec: TrainSpec,
    seed: int | None = None,
) -> tuple[Network, Trained]:
    """Train a network, save it, and say how it went."""
    from armlet.analysis.cost import cost_of
    from armlet.models.network import save_network
    from armlet.train import TrainOptions, evaluate, train_network

    network, run = train_network(
        start,
        splits,
        TrainOptions(**spec.model_dump()),
        scorer,
        seed=context.plan.recipe.seed if seed is None else seed,
        work=context.work,
        progress=context.progress,
    )
    save_network(network, context.folder)
    trained = Trained(
        cost=cost_of(network),
        score=evaluate(network, splits.test, scorer, "test"),
        history=run.history,
        device=run.device,
        precision=run.precision,
        seconds=run.seconds,
        stopped_early=run.stopped_early,
        training_score=evaluate(network, splits.train.take(slice(N_TRAINING_SCORED)), scorer, "training"),
    )
    return network, trained
