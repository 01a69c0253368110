"""Quantisation-aware training: gradients as in the paper, the graph against the quantised one, and what it gains."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from tests.train import test_generators as generators
from torch import nn

from armlet.analysis.graph import trace
from armlet.artifacts import InputSpec
from armlet.compile.pipeline import lower
from armlet.data.splits import Samples, Splits
from armlet.export import export_onnx
from armlet.metrics import Scorer
from armlet.models.network import Network, architecture_of, build, executable
from armlet.models.quantization import quantized_graph
from armlet.passes import PassContext, PreconditionFailed, run_pass
from armlet.passes.manager import fingerprint
from armlet.passes.quantize.calibrate import NumberFormat, calibrate
from armlet.passes.quantize.common import calibration_samples
from armlet.passes.quantize.fake_quantize import FakeQuantize, fake_quantized, learned_quantization
from armlet.passes.quantize.fold_batch_norm import fold_batch_norm
from armlet.passes.quantize.placement import place
from armlet.progress import Silent
from armlet.spec.load import load_target
from armlet.spec.passes import QuantizeAware, QuantizeStatic
from armlet.train import TrainOptions, train_network

TRAIN = {"epochs": 4, "batch_size": 32, "learning_rate": 0.005}


def aware(network, context, **options: object):
    return run_pass(
        QuantizeAware(kind="quantize_aware", **{"train": TRAIN} | options), network, context(network)
    )


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("axis", "zero_point", "limits"), [(None, -20, (-128, 127)), (0, 0, (-7, 7)), (1, 0, (-7, 7))]
)
def test_values_are_torchs_and_gradients_the_papers(axis, zero_point, limits):
    values = draw(5, 4, 3).requires_grad_(True)
    n = 1 if axis is None else values.shape[axis]
    first = torch.linspace(0.02, 0.3, n)
    module = FakeQuantize(tuple(first.tolist()), zero_point, limits, axis)
    with torch.no_grad():
        module.factor.copy_(torch.linspace(0.9, 1.2, n))
    weights = draw(5, 4, 3, seed=1)
    (module(values) * weights).sum().backward()

    scales, plain = module.scales().detach(), values.detach()
    zeros = torch.full((n,), zero_point, dtype=torch.int32)
    found = (
        torch.fake_quantize_per_tensor_affine(plain, float(scales[0]), zero_point, *limits)
        if axis is None
        else torch.fake_quantize_per_channel_affine(plain, scales, zeros, axis, *limits)
    )
    np.testing.assert_allclose(module(values).detach(), found, atol=1e-6)

    # Equations 2 and 3 and section 2.2 of the paper, with the integers moved by the zero point.
    steps = [1 if axis is None or d != axis else n for d in range(3)]
    v = (plain / scales.reshape(steps)).numpy().astype(np.float64)
    low, high = (limit - zero_point for limit in limits)
    inside = (v > low) & (v < high)
    assert inside.any()
    assert not inside.all()
    by_scale = np.where(inside, np.rint(v) - v, np.where(v <= low, low, high)) * weights.numpy()
    others = tuple(d for d in range(3) if d != axis)
    share = 1 / math.sqrt((12 if axis is None else 60 / n) * limits[1])
    # The factor's gradient is the scale's times the first value.
    expected = by_scale.sum(others).reshape(-1) * share * first.numpy()
    np.testing.assert_allclose(module.factor.grad, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(values.grad, weights.numpy() * inside, rtol=1e-6)


def test_scales_stay_once_frozen():
    module = FakeQuantize((0.1,), 0, (-7, 7), None, frozen_after=2).train()
    gradients = []
    for _ in range(4):
        module.factor.grad = None
        values = draw(8, 4).requires_grad_(True)
        module(values).sum().backward()
        gradients.append(module.factor.grad is not None)
        assert values.grad.abs().sum() > 0
    assert gradients == [True, True, False, False]


def prepared(network: Network, splits, numbers: NumberFormat):
    module = fold_batch_norm(network.module, network.architecture.inputs).module
    traced = trace(module, network.architecture.inputs)
    placement = place(traced, ())
    start = calibrate(traced, placement, calibration_samples(splits.train, 64, 0), numbers=numbers)
    trainable = fake_quantized(traced, placement, start, None, per_channel=numbers.per_channel)
    return traced, placement, start, trainable


@pytest.mark.parametrize("numbers", [NumberFormat(), NumberFormat(True, False, weight_bits=4)], ids=str)
def test_before_training_the_graph_computes_what_the_quantised_one_does(network, splits, numbers):
    traced, placement, start, trainable = prepared(network, splits, numbers)
    inputs = torch.from_numpy(splits.test.inputs[0])
    expected = quantized_graph(traced, start)(inputs).detach()
    found = trainable.module.eval()(inputs).detach()
    # Rounding a product with the scale's inverse or a quotient falls to the other side now and then.
    difference, span = (found - expected).abs(), float(expected.max() - expected.min())
    assert float(difference.max()) <= 0.03 * span
    assert float(difference.median()) <= 1e-6 * span
    # And what is learned from it is what it began with: nothing is lost on the way there and back.
    state = dict(traced.program.state_dict)
    again = learned_quantization(trainable, state, start, placement, numbers)
    assert again.activations == start.activations
    for one, other in zip(again.parameters, start.parameters, strict=True):
        assert (one.parameter, one.bits, one.axis) == (other.parameter, other.bits, other.axis)
        np.testing.assert_allclose(one.scales, other.scales, rtol=1e-6)


def test_parameters_of_the_network_given_are_not_those_that_are_trained(tiny_network, splits):
    traced, _, _, trainable = prepared(tiny_network(), splits, NumberFormat())
    own = dict(trainable.module.named_parameters())
    assert all(own[name] is not value for name, value in traced.program.state_dict.items() if name in own)
    assert set(own) > {"classifier.weight", "quantizer_0.factor", "weight_quantizer_0.factor"}


@pytest.fixture
def trained(tiny_network, splits, tmp_path):
    options = TrainOptions(epochs=12, batch_size=32, learning_rate=0.02)
    start, scorer = tiny_network(), Scorer(splits.task)
    return train_network(start, splits, options, scorer, seed=0, work=tmp_path, progress=Silent())[0]


def test_training_at_four_bits_wins_back_what_rounding_lost(trained, context):
    first, second = trained.module.stage1.block1, trained.module.stage2.block1
    sizes = torch.logspace(-0.7, 0.7, 6)  # channels too different for one scale of four bits
    with torch.no_grad():
        first.norm.weight.mul_(sizes)
        first.norm.bias.mul_(sizes)
        second.conv.weight.div_(sizes.reshape(1, -1, 1, 1))
    options = {"weight_bits": 4, "weights": "per_tensor"}
    _, lost = run_pass(QuantizeStatic(kind="quantize_static", **options), trained, context(trained))
    train = {"epochs": 8, "batch_size": 32, "learning_rate": 0.01}
    quantized, record = aware(trained, context, train=train, **options)
    assert lost.score_before.value > 0.9
    assert lost.score_after.value < 0.8
    assert record.score_after.value > 0.9
    assert len(record.history) == 8
    assert record.after.weight_bytes < 0.5 * record.before.weight_bytes
    assert all(p.bits == 4 for p in quantized.quantization.parameters if p.dtype == "int8")
    assert any(note.startswith("weights of 4 bits") for note in record.notes)


def test_scales_are_learned_and_the_result_computes_what_was_trained(tiny_network, context, splits):
    network = tiny_network()
    before, _ = run_pass(QuantizeStatic(kind="quantize_static", observer="mse"), network, context(network))
    quantized, record = aware(network, context)
    found = {a.node: a for a in quantized.quantization.activations}
    for one in before.quantization.activations:
        assert found[one.node].zero_point == one.zero_point
        assert found[one.node].scale == pytest.approx(one.scale, rel=0.5)
    assert any(found[a.node].scale != a.scale for a in before.quantization.activations)
    # The last epoch's validation score is that of the trained graph, and this is the one that comes out.
    scored = executable(quantized)(torch.from_numpy(splits.validation.inputs[0])).argmax(1).numpy()
    agreed = (scored == splits.validation.targets).mean()
    assert agreed == pytest.approx(record.history[-1].validation_score, abs=0.02)


def test_frozen_from_the_first_epoch_on_scales_move_little_and_then_stay(tiny_network, context):
    network = tiny_network()
    frozen, _ = aware(network, context, freeze_after=1)
    free, _ = aware(network, context)
    pairs = zip(frozen.quantization.activations, free.quantization.activations, strict=True)
    assert any(a.scale != b.scale for a, b in pairs)


def test_a_teacher_changes_what_is_learned(tiny_network, context):
    network = tiny_network()
    alone, taught = (aware(network, context, alpha=alpha)[0] for alpha in (0.0, 0.9))
    assert fingerprint(alone) != fingerprint(taught)


def test_several_teachers_are_heard_as_one_that_says_what_they_say(tiny_network, context):
    network, other = tiny_network(), tiny_network()
    with torch.no_grad():
        other.module.classifier.weight *= -1
    spec = {"alpha": 1.0, "terms": ({"kind": "outputs"},), "train": TRAIN}
    alone, twice, both = (
        run_pass(
            QuantizeAware(kind="quantize_aware", teachers=1 + len(others), **spec),
            network,
            dataclasses.replace(context(network), other_teachers=others),
        )[0]
        for others in ((), (network,), (other,))
    )
    weights = [n.module.classifier.weight.detach() for n in (alone, twice, both)]
    # Sums of two equal halves: the same but for roundings, which four epochs carry on.
    torch.testing.assert_close(weights[1], weights[0], rtol=0, atol=1e-4)
    assert not torch.allclose(weights[2], weights[0], atol=1e-2)


def test_samples_without_labels_are_learned_from_and_counted(tiny_network, context, splits):
    network = tiny_network()
    more = dataclasses.replace(splits, unlabeled=(splits.test.inputs[0],))
    given = dataclasses.replace(context(network), splits=more)

    def trained(**options: object) -> Network:
        spec = QuantizeAware(kind="quantize_aware", alpha=0.9, train=TRAIN, **options)
        return run_pass(
            spec, network, dataclasses.replace(given, work=given.work / str(sorted(options.items())))
        )[0]

    without, learned = trained(), trained(unlabeled=True)
    assert fingerprint(without) != fingerprint(learned)
    # Scales that stay after the last step are learned in all, those of the samples without labels too.
    assert fingerprint(trained(unlabeled=True, freeze_after=TRAIN["epochs"])) == fingerprint(learned)
    assert fingerprint(trained(unlabeled=True, freeze_after=1)) != fingerprint(learned)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"teachers": 2}, "teachers does nothing without alpha above 0 %"),
        (
            {"unlabeled": True, "terms": [{"kind": "logits"}]},
            "unlabeled and terms do nothing without alpha above 0 %",
        ),
        ({"alpha": 0.5, "terms": [{"kind": "features"}]}, "features look at layers, and what is trained"),
        ({"alpha": 0.5, "terms": [{"kind": "own_depth"}]}, "a graph without them: use logits, decoupled or"),
    ],
)
def test_what_a_graph_can_not_be_taught_is_refused(options, said):
    with pytest.raises(ValidationError, match=said):
        QuantizeAware(kind="quantize_aware", **options)


def test_teachers_and_samples_that_are_not_there_are_named(tiny_network, context):
    network = tiny_network()
    with pytest.raises(PreconditionFailed, match="teachers is 2, and there are 1"):
        aware(network, context, alpha=0.5, teachers=2)
    with pytest.raises(PreconditionFailed, match="there are no samples without labels"):
        aware(network, context, alpha=0.5, unlabeled=True)


class Stop(Exception):
    pass


class StopsAfter:
    """Progress that ends the process, as it were, in the second epoch."""

    def __init__(self):
        self.notes = []

    def start(self, name, total):
        pass

    def say(self, text):
        pass

    def advance(self, n, note=""):
        self.notes.append(note)
        if "epoch 1/" in note:
            raise Stop


def test_an_interrupted_training_goes_on_and_gives_the_same_bytes(tiny_network, context):
    network = tiny_network()
    whole, _ = aware(network, context, freeze_after=2)
    given = context(network)
    spec = QuantizeAware(kind="quantize_aware", train=TRAIN, freeze_after=2)
    with pytest.raises(Stop):
        run_pass(spec, network, dataclasses.replace(given, progress=StopsAfter()))
    resumed, record = run_pass(spec, network, given)
    assert len(record.history) == 4
    assert fingerprint(resumed) == fingerprint(whole)


def test_the_result_is_exported_and_verified(tiny_network, context, splits, tmp_path):
    quantized, _ = aware(tiny_network(block="separable"), context, weight_bits=4, weights="per_tensor")
    exported = export_onnx(quantized, splits.validation, tmp_path)
    assert exported.max_abs_difference <= exported.tolerance


def test_excluded_layers_stay_float_but_are_trained(tiny_network, context):
    network = tiny_network()
    quantized, record = aware(network, context, exclude=("classifier",))
    assert not any("classifier" in p.parameter for p in quantized.quantization.parameters)
    assert "classifier (linear) stays float: excluded" in record.notes
    before, after = (n.module.classifier.weight for n in (network, quantized))
    assert not torch.equal(before, after)


def sequences(n: int, seed: int) -> Samples:
    """Frames [8, 3] with a bump in one quarter: the class is which one."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, n)
    frames = rng.normal(0, 0.4, (n, 8, 3)).astype(np.float32)
    for sequence, label in zip(frames, labels, strict=True):
        sequence[2 * label : 2 * label + 2] += 1.0
    return Samples((frames,), labels, labels)


@pytest.mark.parametrize("cell", ["lstm", "gru", "elman"])
def test_recurrent_layers_are_trained_with_their_integers(cell, splits, context, tmp_path):
    inputs = (InputSpec("input", (8, 3)),)
    family, options = ("lstm", {}) if cell == "lstm" else ("rnn", {"cell": cell})
    network = build(architecture_of(family, options | {"hidden": [12]}, inputs, (4,)), seed=0)
    network.module.eval()
    train, test = sequences(256, 0), sequences(64, 1)
    given = dataclasses.replace(context(network), splits=Splits(train, test, test, inputs, splits.task))
    spec = QuantizeAware(
        kind="quantize_aware",
        weight_bits=4,
        calibration_samples=64,
        train={"epochs": 12, "batch_size": 32, "learning_rate": 0.02},
    )
    quantized, record = run_pass(spec, network, given)
    assert record.score_after.value > max(record.score_before.value + 0.2, 0.6)
    parameters = {p.parameter: p for p in quantized.quantization.parameters}
    for name in ("layers.0.0.weight", "layers.0.0.recurrent_weight"):
        weight, before = (n.module.get_parameter(name).detach() for n in (quantized, network))
        assert not torch.equal(weight, before)
        assert (parameters[name].axis, parameters[name].bits) == (1, 4)
        assert len(parameters[name].scales) == weight.shape[1]
    export_onnx(quantized, test, tmp_path)
    program = lower(tmp_path / "model.onnx", load_target("raspberry-pi-4"))
    assert program.fallbacks == ()
    assert {call.precision for call in program.calls[:-1]} == {"int8"}


def test_embeddings_are_trained_with_their_integers(splits, context):
    inputs = (InputSpec("tokens", (8,), "int32", 40),)
    options = {"width": 8, "heads": 2, "depth": 1, "dropout": 0.0}
    network = build(architecture_of("transformer", options, inputs, (4,)), seed=0)
    network.module.eval()
    tokens = np.random.default_rng(0).integers(0, 40, (96, 8)).astype(np.int32)
    labels = (tokens[:, 0] % 4).astype(np.int64)
    samples = Samples((tokens,), labels, labels)
    given = dataclasses.replace(
        context(network), splits=Splits(samples, samples, samples, inputs, splits.task)
    )
    spec = QuantizeAware(kind="quantize_aware", calibration_samples=64, train={"epochs": 1, "batch_size": 32})
    quantized, record = run_pass(spec, network, given)
    (table,) = [p for p in quantized.quantization.parameters if p.parameter == "embedding.embed.weight"]
    (rows,) = [a for a in quantized.quantization.activations if a.node == "embedding"]
    assert set(table.scales) == {rows.scale}
    assert rows.zero_point == 0
    assert record.after.weight_bytes < 0.4 * record.before.weight_bytes


def test_nothing_to_quantise_is_refused(tiny_network, context):
    with pytest.raises(PreconditionFailed, match="no layer can be quantised"):
        aware(tiny_network(), context, exclude=("*",))


def test_dropout_that_does_nothing_is_noted(context):
    network = build(
        architecture_of("cnn", {"channels": [6], "dropout": 0.2}, (InputSpec("input", (1, 12, 12)),), (4,)), 0
    )
    _, record = aware(network, context, train={"epochs": 1, "batch_size": 32})
    assert "dropout does nothing while quantised values are learned" in record.notes
    assert any(isinstance(m, nn.Dropout) for m in network.module.modules())


@pytest.mark.parametrize("alpha", [0.0, 0.7, 1.0])
def test_a_generator_learns_at_four_bits_from_a_critic_and_from_itself(alpha, tmp_path):
    data, (trained, _) = generators.splits(), generators.train(tmp_path / "float")
    scorer = Scorer(data.task, generators.judge())
    context = PassContext(data, trained, scorer, 0, tmp_path / "aware", Silent())
    options = {
        "epochs": 8,
        "batch_size": 32,
        "learning_rate": 5e-4,
        "optimizer": "adam",
        "betas": [0.5, 0.99],
    }
    aware = QuantizeAware(kind="quantize_aware", weight_bits=4, alpha=alpha, freeze_after=6, train=options)
    learned, record = run_pass(aware, trained, context)
    nearest = QuantizeStatic(kind="quantize_static", weight_bits=4, weight_range="mse")
    _, rounded = run_pass(nearest, trained, context)
    assert {p.bits for p in learned.quantization.parameters if p.dtype == "int8"} == {4}
    assert record.score_after.value < rounded.score_after.value
