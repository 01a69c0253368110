"""Distillation: each term is its paper's formula, fits the networks it is for, and makes a student better or nearer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.families.conftest import Case
from tests.families.test_whole_way import COLOUR, FRAMES, LATENT, PICTURE, ROW, SPEECH
from torch.nn import functional

from armlet.artifacts import InputSpec, Task
from armlet.data.splits import Samples, Splits
from armlet.errors import UsageError
from armlet.metrics import Scorer
from armlet.models.network import Network, architecture_of, build
from armlet.progress import Silent
from armlet.train import DistillationOptions, Term, TrainOptions, evaluate, train_network
from armlet.train.distillation.layers import shapes_of, stages_of, valid_frames
from armlet.train.distillation.losses import (
    attention_loss,
    decoupled_loss,
    hidden_states_loss,
    hint_loss,
    relations_loss,
)
from armlet.train.distillation.teaching import Teaching, curriculum

TEXT = (InputSpec("tokens", (10,), "int32", 20), SPEECH[1])
RNG = np.random.default_rng(0)


def drawn(*shape: int) -> torch.Tensor:
    return torch.from_numpy(RNG.normal(size=shape).astype("float32"))


# Formulas


def test_decoupled_is_equation_7_of_zhao_2022_and_with_the_papers_weights_the_whole_divergence() -> None:
    logits, teacher, classes, t = drawn(5, 4), drawn(5, 4), torch.tensor([0, 3, 1, 2, 2]), 3.0

    def softmax(x):
        return np.exp(x) / np.exp(x).sum()

    first = second = whole = 0.0
    for ours, theirs, right in zip(logits.double().numpy(), teacher.double().numpy(), classes, strict=True):
        p, q = softmax(theirs / t), softmax(ours / t)
        others = np.arange(4) != int(right)
        sides = [np.array([x[int(right)], x[others].sum()]) for x in (p, q)]
        among = [x[others] / x[others].sum() for x in (p, q)]
        tckd = (sides[0] * np.log(sides[0] / sides[1])).sum()
        nckd = (among[0] * np.log(among[0] / among[1])).sum()
        first, second = first + tckd * t * t / 5, second + nckd * t * t / 5
        # Equation 6: the divergence weights the second by how unsure the teacher is.
        whole += (tckd + sides[0][1] * nckd) * t * t / 5
    found = decoupled_loss(logits, teacher, classes, t, (1.5, 8.0))
    assert float(found) == pytest.approx(1.5 * first + 8 * second, rel=1e-5)
    divergence = functional.kl_div(
        functional.log_softmax(logits / t, 1), functional.softmax(teacher / t, 1), reduction="batchmean"
    )
    assert float(divergence) * t * t == pytest.approx(whole, rel=1e-5)


def test_a_hint_is_the_mean_square_and_leaves_out_frames_behind_the_length() -> None:
    ours, theirs = drawn(3, 4, 5), drawn(3, 4, 5)
    assert float(hint_loss(ours, theirs, None)) == pytest.approx(float(functional.mse_loss(ours, theirs)))
    valid = torch.tensor([[True] * 4, [True, True, False, False], [True, False, False, False]])
    expected = (ours - theirs)[valid].square().mean()
    assert float(hint_loss(ours, theirs, valid)) == pytest.approx(float(expected))


def test_attention_is_equation_2_of_zagoruyko_2017() -> None:
    ours, theirs = drawn(2, 3, 4, 4), drawn(2, 6, 4, 4)
    expected = 0.0
    for a, b in zip(ours.double().numpy(), theirs.double().numpy(), strict=True):
        q, r = (a**2).sum(0).ravel(), (b**2).sum(0).ravel()
        expected += np.linalg.norm(q / np.linalg.norm(q) - r / np.linalg.norm(r)) / 2
    assert float(attention_loss(ours, theirs, None)) == pytest.approx(expected, rel=1e-5)
    same = ours.clone().requires_grad_()
    attention_loss(same, ours, None).backward()
    assert torch.isfinite(same.grad).all()


def test_relations_are_equations_6_to_10_of_park_2019() -> None:
    ours, theirs = drawn(5, 3), drawn(5, 7)
    distances, angles = [], []
    for rows in (ours.double().numpy(), theirs.double().numpy()):
        n = len(rows)
        pairs = {(i, j): np.linalg.norm(rows[i] - rows[j]) for i in range(n) for j in range(n) if i != j}
        mean = np.mean(list(pairs.values()))
        distances.append({key: value / mean for key, value in pairs.items()})
        angles.append(
            {
                (i, j, k): (rows[i] - rows[j]) @ (rows[k] - rows[j]) / pairs[i, j] / pairs[k, j]
                for i in range(n) for j in range(n) for k in range(n) if len({i, j, k}) == 3
            }
        )  # fmt: skip

    def huber(a, b):
        gaps = np.array([abs(a[key] - b[key]) for key in a])
        return np.where(gaps <= 1, gaps**2 / 2, gaps - 0.5).mean()

    expected = 3 * huber(*distances) + 5 * huber(*angles)
    assert float(relations_loss(ours, theirs, None, (3, 5))) == pytest.approx(expected, rel=1e-4)
    equal = ours[[0, 0, 1]].clone().requires_grad_()  # two samples in one place have no direction
    relations_loss(equal, theirs[:3], None, (1, 2)).backward()
    assert torch.isfinite(equal.grad).all()


def test_hidden_states_are_equation_7_of_sun_2019_of_every_valid_frame() -> None:
    ours, theirs = drawn(2, 3, 4), drawn(2, 3, 4)
    valid = torch.tensor([[True, True, True], [True, False, False]])
    gaps = [
        np.linalg.norm(a / np.linalg.norm(a) - b / np.linalg.norm(b)) ** 2
        for a, b in zip(ours[valid].double().numpy(), theirs[valid].double().numpy(), strict=True)
    ]
    assert float(hidden_states_loss(ours, theirs, valid)) == pytest.approx(np.mean(gaps), rel=1e-5)


def test_tokens_of_several_frames_are_valid_while_one_of_them_is() -> None:
    frames, lengths = torch.zeros(3, 10, 2), torch.tensor([10, 5, 6], dtype=torch.int32)
    valid = valid_frames(torch.zeros(3, 2, 4), (frames, lengths))
    assert valid.tolist() == [[True, True], [True, False], [True, True]]


# Layers

CASES = [
    Case("fnn", {"hidden": [16, 12]}, ROW),
    Case("cnn", {"channels": [8, 12]}, PICTURE),
    Case("resnet", {"depth": 8, "width": 0.5}, COLOUR),
    Case("mobilenet", {"version": "v3_small", "width": 0.25}, COLOUR),
    Case("rnn", {"cell": "gru", "hidden": [6, 5], "bidirectional": True}, SPEECH),
    Case("lstm", {"hidden": [8], "projection": 4}, FRAMES),
    Case("transformer", {"width": 16, "heads": 2, "depth": 2, "patch": 5}, FRAMES),
    Case("transformer", {"width": 16, "heads": 2, "depth": 1}, TEXT),
    Case("autoencoder", {"hidden": [12], "code": 3}, ROW, (9,)),
    Case("autoencoder", {"channels": [4, 8], "code": 0, "shortcuts": True}, PICTURE, (1, 12, 12)),
    Case("autoencoder", {"channels": [4, 8], "code": 6, "variational": True}, PICTURE, (1, 12, 12)),
    Case("gan", {"channels": [8, 4], "critic_channels": [4, 8]}, LATENT, (1, 12, 12)),
]


def stages(case: Case) -> list[str]:
    return list(stages_of(case.build().module, case.inputs))


def test_the_layers_compared_are_the_parts_that_a_network_is_made_of() -> None:
    assert stages(CASES[0]) == ["layer1", "layer2"]
    assert stages(CASES[1]) == ["stage1", "stage2"]
    assert stages(CASES[3]) == ["stem", "blocks", "head", "hidden"]
    assert stages(CASES[4]) == ["layers.0.0", "layers.1.0"]
    assert stages(CASES[6]) == ["embedding", "blocks.0", "blocks.1", "norm"]
    assert stages(CASES[8]) == ["encoder", "bottleneck", "expand"]
    assert stages(CASES[11]) == ["project", "stage1"]


def smaller(case: Case) -> Case:
    """The same family, narrower, so that values are mapped to the teacher's width."""
    options = dict(case.options)
    for key in ("hidden", "channels"):
        if key in options:
            options[key] = [n - 1 for n in options[key]]
    if case.family == "transformer":
        options["width"] = 12
    if case.family == "mobilenet":
        options["width"] = 0.15
    return replace(case, options=options)


TASKS = {"autoencoder": "denoising", "gan": "generation"}
TERMS = ["outputs", "features", "attention", "relations", "hidden_states"]
MISFITS = {
    "attention": ("fnn",),
    "hidden_states": ("fnn", "cnn", "resnet", "mobilenet", "autoencoder", "gan"),
}


@pytest.mark.parametrize("kind", TERMS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_each_term_falls_when_only_it_is_learned_or_is_refused_with_the_reason(case: Case, kind: str) -> None:
    student, teacher = smaller(case).build(), case.build()
    task = Task(TASKS.get(case.family, "forecast"), case.output_shape)
    options = DistillationOptions(alpha=1.0, terms=(Term(kind),))
    problems = curriculum(options, task.kind, case.inputs, student.module, [teacher.module]).problems
    only_rows = all(len(shape) == 1 for shape in stages_of(student.module, case.inputs).values())
    if case.family in MISFITS.get(kind, ()) or (kind == "attention" and only_rows):
        assert any(problem.startswith(f"{kind}: no layer of the network fits") for problem in problems)
        return
    assert problems == ()
    torch.manual_seed(0)
    teaching = Teaching(student.module, [teacher.module], options, task, case.inputs)
    inputs = tuple(map(torch.from_numpy, case.samples(n=32).inputs))
    learner = teaching.student.train()
    optimizer = torch.optim.Adam(learner.parameters(), 0.003)
    history = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = teaching.loss(learner(*inputs), torch.zeros(()), inputs, None, None)
        loss.backward()
        optimizer.step()
        history.append(float(loss.detach()))
    assert np.isfinite(history).all()
    assert history[0] > 0
    assert np.mean(history[-5:]) < 0.9 * history[0]


def test_what_does_not_fit_is_named() -> None:
    case = CASES[0]
    module, wider = case.build().module, case.build().module

    def problems(term: Term, task="classification", teachers=(wider,), **others):
        options = DistillationOptions(terms=(term,), **others)
        return curriculum(options, task, case.inputs, module, teachers).problems

    assert problems(Term("features")) == ()
    assert problems(Term("features", layers=("layer3",))) == (
        "layers has 'layer3', and the network has no such module",
        "features: layer3 does not run by itself",
    )
    assert "is of classes, and the task is forecast" in problems(Term("logits"), "forecast")[0]
    assert "needs the class of every sample" in problems(Term("decoupled"), unlabeled=True)[0]
    assert "layer1 has no places to attend to" in problems(Term("attention", layers=("layer1",)))[0]
    two = problems(Term("outputs"), "generation", teachers=(wider, wider))
    assert two == ("several generators make different pictures of the same numbers: use one teacher",)


# Training

SQUARES = (InputSpec("input", (8,)),)
TASK = Task("classification", (4,), tuple("abcd"))
SCORER = Scorer(TASK)
QUICK = TrainOptions(epochs=4, batch_size=32, learning_rate=0.01)


def clouds(n: int, seed: int, noise: float = 1.0) -> Samples:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, n)
    centres = np.random.default_rng(9).normal(0, 1.2, (4, 8))
    inputs = (centres[labels] + rng.normal(0, noise, (n, 8))).astype("float32")
    return Samples((inputs,), labels, labels.copy())


def splits(n: int = 256) -> Splits:
    return Splits(clouds(n, 0), clouds(96, 1), clouds(512, 2), SQUARES, TASK)


def fnn(*hidden: int, seed: int = 0) -> Network:
    return build(architecture_of("fnn", {"hidden": list(hidden)}, SQUARES, (4,)), seed)


def train(work: Path, network: Network, data: Splits, options: TrainOptions = QUICK, **others) -> Network:
    return train_network(
        network, data, options, SCORER, seed=1, work=work, progress=Silent(), **others
    )[0]  # fmt: skip


@pytest.fixture(scope="module")
def teachers(tmp_path_factory) -> tuple[Network, ...]:
    folder = tmp_path_factory.mktemp("teachers")
    return tuple(
        train(folder / str(seed), fnn(32, 24, seed=seed), splits(2048), replace(QUICK, epochs=6))
        for seed in (0, 1)
    )


@pytest.mark.parametrize("kind", ["logits", "decoupled", "outputs", "features", "relations"])
def test_a_student_with_few_samples_is_better_with_a_teacher(kind: str, teachers, tmp_path: Path) -> None:
    """Of forty samples with half of the labels wrong; what the teacher says of them is not."""
    data = splits(40)
    rng = np.random.default_rng(5)
    wrong = np.where(rng.random(40) < 0.5, rng.integers(0, 4, 40), data.train.targets)
    data = replace(data, train=replace(data.train, targets=wrong))
    options = TrainOptions(epochs=60, batch_size=20, learning_rate=0.01)
    plain = evaluate(train(tmp_path / "plain", fnn(16, 12), data, options), data.test, SCORER, "test").value
    taught = train(
        tmp_path / "taught", fnn(16, 12), data, options,
        teachers=teachers[:1], distillation=DistillationOptions(alpha=0.9, terms=(Term(kind, weight=3.0),)),
    )  # fmt: skip
    score = evaluate(taught, data.test, SCORER, "test").value
    margin = 0.1 if kind in ("logits", "decoupled", "outputs") else -0.02
    assert score > plain + margin


def test_classifiers_behind_inner_layers_come_to_say_what_the_network_says(teachers) -> None:
    network, samples = fnn(32, 24), splits().train
    network.module.load_state_dict(teachers[0].module.state_dict())
    options = DistillationOptions(temperature=2.0, alpha=1.0, terms=(Term("own_depth"),))
    torch.manual_seed(0)
    teaching = Teaching(network.module, [], options, TASK, SQUARES)
    inputs = (torch.from_numpy(samples.inputs[0]),)
    optimizer = torch.optim.Adam(teaching.student.parameters(), 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        said = teaching.student(*inputs)
        teaching.loss(said, torch.zeros(()), inputs, None, None).backward()
        assert network.module.classifier.weight.grad is None  # its answer is what the others learn
        optimizer.step()
    agree = [(own.argmax(1) == said.answer.argmax(1)).float().mean() for own in said.own]
    assert len(agree) == 2
    assert min(agree) > 0.9


def test_terms_are_added_with_their_weights(teachers) -> None:
    student = fnn(16, 12)
    samples = splits().train.take(slice(32))
    inputs = tuple(map(torch.from_numpy, samples.inputs))
    classes = torch.from_numpy(samples.targets)
    modules = [teacher.module for teacher in teachers]

    def loss(*terms: Term, alpha: float) -> float:
        torch.manual_seed(3)
        options = DistillationOptions(alpha=alpha, terms=terms)
        teaching = Teaching(student.module, modules, options, TASK, SQUARES)
        return float(teaching.loss(teaching.student(*inputs), torch.tensor(7.0), inputs, classes, None))

    single = [loss(Term(kind), alpha=1.0) for kind in ("logits", "decoupled", "relations")]
    together = loss(Term("logits", 2.0), Term("decoupled", 0.5), Term("relations", 3.0), alpha=0.6)
    assert together == pytest.approx(
        0.4 * 7 + 0.6 * (2 * single[0] + 0.5 * single[1] + 3 * single[2]), rel=1e-5
    )


def test_several_teachers_are_heard_alike_whether_asked_once_or_in_each_step(teachers) -> None:
    samples = splits().train.take(slice(16))
    inputs = tuple(map(torch.from_numpy, samples.inputs))
    options = DistillationOptions(alpha=1.0)
    modules = [teacher.module for teacher in teachers]
    student = fnn(16, 12)

    def loss(chosen, outputs):
        teaching = Teaching(student.module, chosen, options, TASK, SQUARES)
        return float(teaching.loss(teaching.student(*inputs), torch.zeros(()), inputs, None, outputs))

    with torch.no_grad():
        asked = torch.stack([module(*inputs) for module in modules], dim=1)
    single = [loss([module], None) for module in modules]
    assert loss(modules, None) == pytest.approx(np.mean(single), rel=1e-5)
    assert loss([], asked) == pytest.approx(np.mean(single), rel=1e-5)


def test_an_ensembles_student_agrees_with_the_ensemble(teachers, tmp_path: Path) -> None:
    options = DistillationOptions(temperature=2.0, alpha=1.0)
    data = splits()
    student = train(tmp_path, fnn(16, 12), data, teachers=teachers, distillation=options)
    inputs = torch.from_numpy(data.test.inputs[0])
    with torch.no_grad():
        said = sum(functional.softmax(t.module(inputs), 1) for t in teachers).argmax(1)
        agrees = (student.module(inputs).argmax(1) == said).float().mean()
    assert agrees > 0.85


@pytest.mark.parametrize("kind", ["logits", "features", "own_depth"])
def test_an_interrupted_distillation_ends_with_the_same_bytes(kind: str, teachers, tmp_path: Path) -> None:
    class Interrupts(Silent):
        left = 10

        def advance(self, parts: int = 1, note: str = "") -> None:
            self.left -= parts
            if self.left <= 0:
                raise KeyboardInterrupt

    def run(work: Path, progress) -> Network:
        options = replace(QUICK, augment=("noise",), ema=0.9)
        return train_network(
            fnn(16, 12), splits(), options, SCORER, seed=2, work=work, progress=progress,
            teachers=teachers, distillation=DistillationOptions(terms=(Term(kind),)),
        )[0]  # fmt: skip

    whole = run(tmp_path / "whole", Silent())
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", Interrupts())
    resumed = run(tmp_path / "cut", Silent()).module.state_dict()
    assert str(whole.module) == str(fnn(16, 12).module)  # maps and classifiers are gone
    for name, value in whole.module.state_dict().items():
        assert torch.equal(value, resumed[name]), name


def test_samples_that_are_mixed_are_mixed_for_the_teacher_too(teachers, tmp_path: Path) -> None:
    """A student that is its teacher has nothing to learn of it, whatever the inputs become."""
    teacher = teachers[0]
    options = replace(QUICK, epochs=1, mixup=1.0, learning_rate=1e-9)
    distillation = DistillationOptions(alpha=1.0, terms=(Term("features"),))
    _, run = train_network(
        teacher, splits(), options, SCORER, seed=0, work=tmp_path, progress=Silent(),
        teachers=(teacher,), distillation=distillation,
    )  # fmt: skip
    wrong = train_network(
        fnn(32, 24, seed=5), splits(), options, SCORER, seed=0, work=tmp_path, progress=Silent(),
        teachers=(teacher,), distillation=distillation,
    )[1]  # fmt: skip
    # Its batch normalisations use the batch's statistics in training: nearly the same, not quite.
    assert run.history[0].train_loss < 0.3 * wrong.history[0].train_loss


def test_a_distillation_in_two_processes_needs_its_teachers_there(teachers, tmp_path: Path) -> None:
    options = replace(QUICK, epochs=2, processes=2)
    taught = train(
        tmp_path, fnn(16, 12), splits(), options,
        teachers=teachers, distillation=DistillationOptions(terms=(Term("features"), Term("logits"))),
    )  # fmt: skip
    assert evaluate(taught, splits().test, SCORER, "test").value > 0.5


def test_what_can_not_be_taught_is_refused_before_training(teachers, tmp_path: Path) -> None:
    def refused(match: str, options: TrainOptions = QUICK, *terms: Term, others=teachers) -> None:
        with pytest.raises(UsageError, match=match):
            train(
                tmp_path, fnn(16, 12), splits(), options,
                teachers=others, distillation=DistillationOptions(terms=terms),
            )  # fmt: skip

    refused("torch.compile can't follow", replace(QUICK, compile=True), Term("features"))
    refused("three samples or more", replace(QUICK, batch_size=2), Term("relations"))
    refused("no such module", QUICK, Term("features", layers=("nowhere",)))
    three = build(architecture_of("fnn", {"hidden": [8]}, SQUARES, (3,)), 0)
    refused(r"a teacher maps .* to \(3,\), the student .* to \(4,\)", QUICK, others=(three,))


# Generators

PICTURES = (1, 8, 8)
NUMBERS = (InputSpec("input", (4,)),)
MADE = Task("generation", PICTURES)


def generated(n: int, seed: int) -> Samples:
    rng = np.random.default_rng(seed)
    pictures = np.full((n, *PICTURES), -0.9, "float32")
    for picture, side in zip(pictures, rng.integers(2, 7, n), strict=True):
        picture[0, 4 - side // 2 : 4 + side // 2, 4 - side // 2 : 4 + side // 2] = 0.9
    return Samples((rng.standard_normal((n, 4), "float32"),), pictures)


def generator(*channels: int, seed: int = 0) -> Network:
    options = {"channels": list(channels), "critic_channels": [8, 16]}
    return build(architecture_of("gan", options, NUMBERS, PICTURES), seed)


@pytest.mark.parametrize("alpha", [1.0, 0.7])
def test_a_generator_learns_its_teachers_pictures_of_the_same_numbers(alpha: float, tmp_path: Path) -> None:
    data = Splits(generated(256, 1), generated(64, 2), generated(128, 3), NUMBERS, MADE)
    judge = build(
        architecture_of("fnn", {"hidden": [12], "norm": "none"}, (InputSpec("input", PICTURES),), (3,)), 3
    )
    scorer = Scorer(MADE, judge)
    options = TrainOptions(epochs=15, batch_size=32, learning_rate=5e-3, optimizer="adam", schedule="linear")

    def run(name: str, network: Network, **others) -> Network:
        return train_network(
            network, data, options, scorer, seed=1, work=tmp_path / name, progress=Silent(), **others
        )[0]  # fmt: skip

    teacher = run("teacher", generator(16, 8))
    distillation = DistillationOptions(alpha=alpha, terms=(Term("outputs", 10.0), Term("features", 0.1)))
    taught = run("taught", generator(8, 4, seed=2), teachers=(teacher,), distillation=distillation)
    alone = run("alone", generator(8, 4, seed=2))
    inputs = torch.from_numpy(data.test.inputs[0])
    with torch.no_grad():
        apart = [float((n.module(inputs) - teacher.module(inputs)).square().mean()) for n in (taught, alone)]
    assert apart[0] < 0.5 * apart[1]


def test_shapes_are_of_the_layers_that_ran() -> None:
    module = CASES[10].build().module  # variational: the spread does not run in evaluation
    found = shapes_of(module, CASES[10].inputs, ["spread", "bottleneck"])
    assert found == {"bottleneck": (6,)}
