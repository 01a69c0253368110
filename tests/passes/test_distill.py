"""The distillation pass: whom a student learns from, where it starts, and that it goes with other passes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.families.conftest import Case
from tests.families.test_whole_way import FRAMES, LATENT, PICTURE, ROW, SPEECH

from armlet import artifact_json
from armlet.artifacts import Compressed, InputSpec, Task, Trained
from armlet.data.splits import Samples, Splits
from armlet.flow import run_steps
from armlet.metrics import Scorer
from armlet.models.network import architecture_of, build, load_network
from armlet.passes import PassContext, PreconditionFailed, run_pass
from armlet.passes.manager import fingerprint
from armlet.plan import make_plan
from armlet.progress import Silent
from armlet.spec.load import load_recipe, load_target
from armlet.spec.passes import Distill, Factorize, PruneChannels
from armlet.store import Store

TRAIN = {"epochs": 2, "batch_size": 16}


def distill(**options) -> Distill:
    return Distill.model_validate({"kind": "distill", "train": TRAIN, **options})


TEXT = (InputSpec("tokens", (10,), "int32", 20), SPEECH[1])
FAMILIES = [
    (Case("fnn", {"hidden": [16, 12]}, ROW), "classification", "relations"),
    (Case("cnn", {"channels": [8, 12]}, PICTURE), "classification", "attention"),
    (Case("rnn", {"cell": "gru", "hidden": [6, 5]}, SPEECH), "classification", "hidden_states"),
    (Case("lstm", {"hidden": [9, 8]}, FRAMES), "forecast", "hidden_states"),
    (Case("transformer", {"width": 16, "heads": 2, "depth": 1}, TEXT), "classification", "hidden_states"),
    (Case("autoencoder", {"channels": [4, 8], "code": 6}, PICTURE, (1, 12, 12)), "denoising", "features"),
    (
        Case("gan", {"channels": [8, 4], "critic_channels": [4, 8]}, LATENT, (1, 12, 12)),
        "generation",
        "features",
    ),
]


def of(case: Case, task: str, work: Path) -> tuple:
    """Return a network of a family and the context of one run of a pass, with data that mean nothing."""
    rng = np.random.default_rng(3)

    def samples(seed: int) -> Samples:
        drawn = case.samples(seed, n=48)
        if task == "classification":
            labels = rng.integers(0, case.output_shape[0], 48)
            return Samples(drawn.inputs, labels, labels.copy())
        return Samples(drawn.inputs, rng.uniform(-0.9, 0.9, drawn.targets.shape).astype("float32"))

    names = tuple("abcd") if task == "classification" else ()
    splits = Splits(samples(0), samples(1), samples(2), case.inputs, Task(task, case.output_shape, names))
    judge = None
    if task == "generation":
        judge = build(
            architecture_of("fnn", {"hidden": [8]}, (InputSpec("input", case.output_shape),), (3,)), 0
        )
    network = case.build()
    return network, PassContext(splits, network, Scorer(splits.task, judge), 0, work, Silent())


@pytest.mark.parametrize(("case", "task", "kind"), FAMILIES, ids=[str(f[0]) for f in FAMILIES])
def test_every_family_is_pruned_factorised_and_distilled(case, task, kind, tmp_path) -> None:
    network, context = of(case, task, tmp_path)
    answers = "logits" if task == "classification" else "outputs"
    taught = {"terms": [{"kind": answers}, {"kind": kind, "weight": 0.5}]}
    pruned, _ = run_pass(
        PruneChannels.model_validate(
            {"kind": "prune_channels", "ratio": 0.3, "finetune": {**TRAIN, "distill": taught}}
        ),
        network,
        context,
    )
    context = replace(context, work=tmp_path / "factorize")
    low, record = run_pass(
        Factorize.model_validate(
            {"kind": "factorize", "ratio": 0.6, "finetune": TRAIN | {"distill": taught}}
        ),
        pruned,
        context,
    )
    assert record.after.parameters < record.before.parameters
    context = replace(context, work=tmp_path / "distill")
    student, record = run_pass(distill(**taught), low, context)
    assert record.changed
    assert len(record.history) == 2
    assert str(student.module) == str(low.module)


def test_the_teacher_may_be_the_network_that_comes_in(tiny_network, context) -> None:
    other, network = tiny_network("fnn", hidden=[8, 8]), tiny_network("fnn")
    untrained = replace(network, module=build(network.architecture, 5).module)
    by_trained, _ = run_pass(distill(alpha=1.0), network, context(untrained))
    by_itself, _ = run_pass(distill(alpha=1.0, teacher="current"), network, context(untrained))
    again, _ = run_pass(distill(alpha=1.0, teacher="current"), network, context(other))
    assert fingerprint(by_trained) != fingerprint(by_itself) == fingerprint(again)


def test_a_fresh_start_has_new_weights_and_is_refused_where_the_structure_changed(
    tiny_network, context
) -> None:
    network = tiny_network("fnn")
    fresh = distill(start="fresh", train=TRAIN | {"epochs": 1, "learning_rate": 1e-9})
    born_again, _ = run_pass(fresh, network, context(network))
    weight = "classifier.weight"
    gap = born_again.module.state_dict()[weight] - network.module.state_dict()[weight]
    assert float(gap.abs().mean()) > 0.05
    pruned, _ = run_pass(PruneChannels(kind="prune_channels", ratio=0.5), network, context(network))
    with pytest.raises(PreconditionFailed, match="start is fresh, and an earlier pass changed the structure"):
        run_pass(fresh, pruned, context(network))


def test_several_teachers_come_from_the_context_or_are_refused(tiny_network, context) -> None:
    network, second = tiny_network("fnn"), tiny_network("fnn", hidden=[10, 10])
    given = context(network)
    with pytest.raises(PreconditionFailed, match="teachers is 2, and there are 1"):
        run_pass(distill(teachers=2), network, given)
    both, _ = run_pass(distill(teachers=2), network, replace(given, other_teachers=(second,)))
    single, _ = run_pass(distill(), network, replace(context(network), other_teachers=(second,)))
    assert fingerprint(both) != fingerprint(single)
    with pytest.raises(ValueError, match="teachers does nothing without teacher: trained"):
        distill(teachers=2, teacher="current")


def test_a_term_that_does_not_fit_is_refused_with_the_reason(tiny_network, context) -> None:
    network = tiny_network("fnn")
    with pytest.raises(
        PreconditionFailed, match="attention: no layer of the network fits: layer1 has no places"
    ):
        run_pass(distill(terms=[{"kind": "attention"}]), network, context(network))
    with pytest.raises(PreconditionFailed, match="there are no samples without labels"):
        run_pass(distill(unlabeled=True), network, context(network))


def test_a_recipe_trains_its_further_teachers(cache, tmp_path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "name: teachers\ndata: {kind: letter-recognition, limit: 300, test_limit: 104}\n"
        "model: {kind: fnn, hidden: [8]}\ntrain: {epochs: 1}\n"
        "passes: [{kind: distill, teachers: 2, train: {epochs: 1}, terms: [{kind: logits}, {kind: features}]}]\n"
    )
    plan = make_plan(load_recipe(recipe), [load_target("host")])
    steps = [step for step in plan.network_steps if step.stage != "export"]
    done = run_steps(plan, steps, store=Store(cache), progress=Silent())
    first, second = (load_network(done[name].folder) for name in ("train", "teacher 2"))
    assert fingerprint(first) != fingerprint(second)
    assert artifact_json.load(Trained, done["teacher 2"].folder).score.value > 0
    record = artifact_json.load(Compressed, done["pass 1 distill"].folder).record
    assert record.changed
    with torch.no_grad():
        student = load_network(done["pass 1 distill"].folder).module(torch.zeros(1, 16))
    assert torch.isfinite(student).all()
