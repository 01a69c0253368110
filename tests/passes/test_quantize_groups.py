"""Scales for groups of inputs, from the recipe to the compiled program."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from tests.passes.conftest import learned
from torch import nn

from armlet.analysis.cost import cost_of
from armlet.analysis.graph import trace
from armlet.compile.pipeline import compile_onnx
from armlet.devices.host import HostProgram
from armlet.export import export_onnx
from armlet.models.constraints import WeightConstraint
from armlet.models.network import architecture_of, build, executable, load_network, save_network
from armlet.models.quantization import ParameterQuantization, dequantized_values, quantized_values
from armlet.passes import run_pass
from armlet.passes.quantize.calibrate import NumberFormat, weights_alone
from armlet.passes.quantize.placement import place
from armlet.spec.load import load_target
from armlet.spec.passes import QuantizeStatic

TRANSFORMER = {"width": 16, "heads": 2, "depth": 1, "patch": 4}


def quantize(network, context, **options: object):
    given = {"mode": "weight_only", "weights": "per_group", "weight_bits": 4} | options
    if given["weights"] == "per_group":
        given.setdefault("group_size", 8)
    return run_pass(QuantizeStatic(kind="quantize_static", **given), network, context(network))


def answers(module: nn.Module, inputs: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return module(torch.from_numpy(inputs)).numpy()


def network_of(kind: str, tiny_network, splits):
    if kind == "fnn":
        return tiny_network("fnn", hidden=[32, 24])
    return build(architecture_of("transformer", TRANSFORMER, splits.inputs, (4,)), seed=0)


@pytest.fixture(params=["fnn", "transformer"])
def trained(request: pytest.FixtureRequest, tiny_network, splits):
    """A network that has learned the task."""
    network = network_of(request.param, tiny_network, splits)
    return learned(network, splits)


@pytest.mark.parametrize("bits", [8, 4])
def test_each_group_uses_its_own_range(bits, tiny_network):
    network = tiny_network("fnn", hidden=[32, 24])
    with torch.no_grad():  # a group of zeros, and one that is tiny beside the others
        network.module.classifier.weight[1, 8:16] = 0.0
        network.module.classifier.weight[2, :8] *= 1e-9
    traced = trace(network.module, network.architecture.inputs)
    found = weights_alone(traced, place(traced, ()), NumberFormat(weight_bits=bits, group=8))
    (parameter,) = [p for p in found.parameters if p.parameter == "classifier.weight"]
    weight = network.module.classifier.weight.detach().numpy()
    limit = 2 ** (bits - 1) - 1
    scales = np.zeros((4, 3))
    for o in range(4):
        for group in range(3):
            scales[o, group] = np.abs(weight[o, 8 * group : 8 * group + 8].astype(np.float64)).max() / limit
    scales = np.maximum(scales, scales.max() * 2.0**-16).astype(np.float32)
    np.testing.assert_array_equal(np.array(parameter.scales, np.float32).reshape(4, 3), scales)
    by_weight = np.repeat(scales, 8, axis=1)
    integers = quantized_values(weight, parameter)
    np.testing.assert_array_equal(integers, np.rint(weight.astype(np.float64) / by_weight).astype(np.int8))
    np.testing.assert_array_equal(dequantized_values(integers, parameter), integers * by_weight)
    assert np.abs(integers[0]).reshape(3, 8).max(axis=1).tolist() == [limit] * 3
    assert not integers[1, 8:16].any()


@pytest.mark.parametrize(
    ("shape", "scales", "group"), [((4, 12), 5, 8), ((4, 16), 4, 8), ((4, 2, 8), 8, 8), ((4, 16), 16, 8)]
)
def test_scales_that_do_not_fit_a_weight_are_refused(shape, scales, group):
    parameter = ParameterQuantization("w", (1.0,) * scales, "int8", group=group)
    with pytest.raises(ValueError, match=rf"w has shape .*, but {scales} scales of groups of 8"):
        quantized_values(np.ones(shape, np.float32), parameter)


def test_groups_bear_heavy_tails_that_a_channel_does_not(tiny_network, context):
    network = tiny_network("fnn", hidden=[64])
    generator = np.random.default_rng(0)
    with torch.no_grad():
        for layer in (network.module.layer1.linear, network.module.classifier):
            layer.weight.copy_(
                torch.from_numpy(generator.standard_t(2, layer.weight.shape).astype(np.float32))
            )
    errors = {}
    for weights, size in (("per_channel", 16), ("per_group", 16), ("per_group", 4)):
        for weight_range in ("max", "mse"):
            grouped = {"group_size": size} if weights == "per_group" else {}
            spec = {"weights": weights, "weight_range": weight_range, **grouped}
            quantized, _ = quantize(network, context, **spec)
            first = quantized.quantization.parameters[0]
            weight = quantized.module.get_parameter(first.parameter).detach().numpy()
            found = dequantized_values(quantized_values(weight, first), first)
            errors[weights, size, weight_range] = float(((found - weight) ** 2).mean())
    for weight_range in ("max", "mse"):
        channel, large, small = (
            errors[*key, weight_range] for key in (("per_channel", 16), ("per_group", 16), ("per_group", 4))
        )
        assert small < 0.5 * large < 0.5 * 0.5 * channel
    assert errors["per_group", 16, "mse"] < errors["per_group", 16, "max"]


def test_a_trained_network_goes_the_whole_way(trained, context, splits, tmp_path):
    quantized, record = quantize(trained, context)
    assert record.score_before.value > 0.9
    assert record.score_after.value > record.score_before.value - 0.05
    inputs = splits.test.inputs[0]
    expected, found = answers(trained.module, inputs), answers(executable(quantized), inputs)
    assert 0 < np.abs(found - expected).max() < 0.2 * np.ptp(expected)
    exported = export_onnx(quantized, splits.test, tmp_path)
    assert exported.max_abs_difference <= exported.tolerance < 1e-3

    compiled = compile_onnx(tmp_path / "model.onnx", load_target("host"), "net", tmp_path)
    on_host = HostProgram.load(tmp_path, compiled).run_many(inputs)
    np.testing.assert_allclose(on_host, found, rtol=0, atol=1e-5 * np.ptp(found))
    groups = [p for p in quantized.quantization.parameters if p.group]
    assert sum(k.op == "grouped_dense" for k in compiled.kernels) == len(groups) >= 3
    assert compiled.fallbacks == ()
    # A byte for each weight and four for each scale; besides, those of channels, places that are aligned, and 16 bytes
    # for each of some twenty coefficients of the activation's formula.
    weights = record.after.weight_bytes
    assert weights < compiled.constant_bytes < 1.1 * weights + 16 * 20
    assert compiled.constant_bytes < 0.5 * record.before.weight_bytes
    assert f"weights of {len(groups)} linear layers have a scale for each 8 inputs" in record.notes


def test_scales_of_groups_count_in_memory_and_packed(tiny_network, context):
    network = tiny_network("fnn", hidden=[32, 24])
    grouped, _ = quantize(network, context)
    channels, _ = quantize(network, context, weights="per_channel")
    n_scales = 32 * 144 // 8 + 24 * 32 // 8 + 4 * 24 // 8
    assert sum(len(p.scales) for p in grouped.quantization.parameters) == n_scales
    assert cost_of(grouped).weight_bytes == cost_of(channels).weight_bytes + 4 * n_scales
    without = replace(
        grouped.quantization,
        parameters=tuple(
            ParameterQuantization(p.parameter, (max(p.scales),) * n, "int8", bits=4)
            for p, n in zip(grouped.quantization.parameters, (32, 24, 4), strict=True)
        ),
    )
    # Of 15 different integers each weight is a number of 4 bits either way; few of them make shorter numbers.
    least = cost_of(replace(grouped, quantization=without)).stored_bytes
    assert 4 * n_scales <= cost_of(grouped).stored_bytes - least < 4 * n_scales + 1000


@pytest.mark.parametrize("rounding", ["gptq", "adaround"])
def test_rounding_for_the_outputs_beats_the_nearest(rounding, trained, context, splits):
    nearest, _ = quantize(trained, context)
    steps = {"rounding_steps": 500} if rounding == "adaround" else {}
    adjusted, record = quantize(trained, context, rounding=rounding, **steps)
    assert [p.scales for p in adjusted.quantization.parameters] == [
        p.scales for p in nearest.quantization.parameters
    ]
    inputs = splits.test.inputs[0]
    wanted = answers(trained.module, inputs)
    before, after = (
        float(((answers(executable(n), inputs) - wanted) ** 2).mean()) for n in (nearest, adjusted)
    )
    assert after < 0.8 * before
    assert any(note.startswith(f"{rounding} chose the rounding of") for note in record.notes)
    for parameter in adjusted.quantization.parameters:
        chosen = adjusted.module.get_parameter(parameter.parameter).detach().numpy()
        again = dequantized_values(quantized_values(chosen, parameter), parameter)
        np.testing.assert_allclose(again, chosen, atol=1e-6 * np.abs(chosen).max())


def test_a_layer_of_no_whole_groups_keeps_a_scale_for_each_channel(tiny_network, context, splits, tmp_path):
    network = tiny_network("fnn", hidden=[14, 16])
    quantized, record = quantize(network, context)
    assert [(p.group, len(p.scales)) for p in quantized.quantization.parameters] == [
        (8, 14 * 18),
        (0, 16),
        (8, 4 * 2),
    ]
    text = "weights of 2 linear layers have a scale for each 8 inputs; without groups are layer2.linear (14 inputs)"
    assert text in record.notes
    export_onnx(quantized, splits.test, tmp_path)
    compiled = compile_onnx(tmp_path / "model.onnx", load_target("host"), "net", tmp_path)
    assert [k.op for k in compiled.kernels] == ["grouped_dense", "dense", "grouped_dense"]


def test_shared_values_keep_one_scale(tiny_network, context):
    network = tiny_network("fnn", hidden=[16])
    with torch.no_grad():
        network.module.layer1.linear.weight.copy_(network.module.layer1.linear.weight.sign() * 0.1)
    network = replace(network, constraints=(WeightConstraint("layer1.linear.weight", "values"),))
    quantized, record = quantize(network, context)
    assert [p.group for p in quantized.quantization.parameters] == [0, 8]
    assert any("without groups are layer1.linear (it has few values)" in note for note in record.notes)


def test_convolutions_and_a_budget_of_bits_go_with_groups(tiny_network, context):
    quantized, record = quantize(tiny_network(), context, weight_bits=8, weight_budget="700 B", group_size=2)
    by_name = {p.parameter: p for p in quantized.quantization.parameters}
    assert by_name["classifier.weight"].group == 2
    assert {p.group for name, p in by_name.items() if name != "classifier.weight"} == {0}
    assert {p.bits for p in by_name.values()} == {4, 8}
    assert any("weights have 4 bits for the budget" in note for note in record.notes)


def test_a_stored_network_answers_the_same(tiny_network, context, splits, tmp_path):
    quantized, _ = quantize(
        tiny_network("fnn", hidden=[32, 24]), context, equalize=True, bias_correction=True
    )
    save_network(quantized, tmp_path)
    loaded = load_network(tmp_path)
    assert loaded.quantization == quantized.quantization
    assert {p.group for p in loaded.quantization.parameters} == {8}
    some = splits.test.inputs[0]
    np.testing.assert_array_equal(answers(executable(loaded), some), answers(executable(quantized), some))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "static"}, "per_group needs mode: weight_only"),
        ({"mode": "dynamic"}, "per_group needs mode: weight_only"),
        ({"mode": "weight_only", "group_size": 1}, "greater than or equal to 2"),
    ],
)
def test_what_groups_do_not_go_with_is_refused(options, message):
    with pytest.raises(ValidationError, match=message):
        QuantizeStatic(kind="quantize_static", weights="per_group", **options)
