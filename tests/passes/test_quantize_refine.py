"""What is done beside finding scales: each method against a plain reference, and what it gains."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from armlet.analysis.cost import cost_of
from armlet.analysis.graph import module_name, trace
from armlet.artifacts import InputSpec
from armlet.export import export_onnx
from armlet.models.network import Network, architecture_of, build, executable
from armlet.models.quantization import Quantization, dequantized_values, quantized_graph, quantized_values
from armlet.passes import PreconditionFailed, run_pass
from armlet.passes.quantize.adaround import adaround
from armlet.passes.quantize.bias_correction import correct_biases, correct_biases_by_means
from armlet.passes.quantize.bits import solve
from armlet.passes.quantize.calibrate import NumberFormat, calibrate
from armlet.passes.quantize.common import calibration_samples, four_bit_bytes
from armlet.passes.quantize.equalize import equalize
from armlet.passes.quantize.fold_batch_norm import fold_batch_norm
from armlet.passes.quantize.gptq import _rows, gptq, round_columns
from armlet.passes.quantize.joints import input_ranges, joints, scale_inputs, scale_outputs
from armlet.passes.quantize.placement import place
from armlet.passes.quantize.ranges import values_of
from armlet.passes.quantize.sensitivity import sensitivities
from armlet.passes.quantize.simulation import Simulation
from armlet.passes.quantize.smooth import smooth
from armlet.spec.passes import QuantizeStatic

FOUR_BITS = NumberFormat(weight_bits=4)


def quantize(network, context, **options: object):
    spec = QuantizeStatic(kind="quantize_static", **{"calibration_samples": 128} | options)
    return run_pass(spec, network, context(network))


def folded(network: Network):
    module = fold_batch_norm(network.module, network.architecture.inputs).module
    return module, trace(module, network.architecture.inputs)


def skew(module: nn.Module, seed: int = 0) -> None:
    """Let the channels of each convolution differ a hundredfold in size."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                sizes = 10 ** (2 * torch.rand(len(layer.weight), generator=generator) - 1)
                layer.weight.mul_(sizes.reshape(-1, *[1] * (layer.weight.dim() - 1)))


def simulated(module: nn.Module, inputs, samples, numbers: NumberFormat = FOUR_BITS):
    traced = trace(module, inputs)
    placement = place(traced, ())
    return Simulation(traced, placement, calibrate(traced, placement, samples, numbers=numbers)), traced


def answers(module: nn.Module, *inputs: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        return module(*inputs).numpy()


def noise(expected: np.ndarray, found: np.ndarray) -> float:
    return 10 * np.log10(np.mean((expected - expected.mean()) ** 2) / np.mean((found - expected) ** 2))


# Equalisation


@pytest.mark.parametrize("options", [{}, {"block": "separable"}], ids=str)
def test_equalising_changes_ranges_and_no_answers(options, tiny_network, splits):
    module, _ = folded(tiny_network(**options))
    skew(module)
    traced = trace(module, (InputSpec("input", (1, 12, 12)),))
    inputs = torch.from_numpy(splits.test.inputs[0])
    before = answers(module, inputs)
    found = equalize(traced, {})
    assert found.n_pairs == len(joints(traced)[0]) > 0
    np.testing.assert_allclose(answers(module, inputs), before, rtol=1e-4, atol=1e-4 * np.abs(before).max())
    for pair in joints(traced)[0]:
        first, second = (
            traced.program.state_dict[traced.tensor_name(n.args[1])] for n in (pair.first, pair.second)
        )
        ranges = first.detach().abs().flatten(1).amax(1), input_ranges(pair.second, second.detach())
        np.testing.assert_allclose(
            *ranges, rtol=5e-3
        )  # pairs share layers, and the rounds end when little moves


def test_one_pair_takes_the_square_root_of_both_ranges():
    module = nn.Sequential(nn.Linear(3, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False)).eval()
    with torch.no_grad():
        module[0].weight.copy_(torch.tensor([[8.0, -1, 0], [0.5, 0.25, 0]]))
        module[2].weight.copy_(torch.tensor([[0.5, 2.0]]))
    equalize(trace(module, (InputSpec("input", (3,)),)), {})
    np.testing.assert_allclose(module[0].weight.detach(), [[2, -0.25, 0], [1, 0.5, 0]])
    np.testing.assert_allclose(module[2].weight.detach(), [[2, 1]])


def test_there_is_no_joint_across_relu6(tiny_network):
    _, traced = folded(tiny_network(block="separable", activation="relu6"))
    found = equalize(traced, {})
    assert "conv2d is not rescaled: hardtanh cuts at a fixed value" in found.notes
    assert found.n_pairs == 0


def test_behind_a_flattening_every_place_of_a_channel_takes_its_factor():
    module = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(75, 2)
    ).eval()
    skew(module)
    inputs = torch.randn(5, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    before = answers(module, inputs)
    assert equalize(trace(module, (InputSpec("input", (1, 12, 12)),)), {}).n_pairs == 1
    np.testing.assert_allclose(answers(module, inputs), before, rtol=1e-4, atol=1e-5)


def test_equalising_pays_where_all_channels_have_one_scale():
    parts = [
        nn.Conv2d(1, 8, 3),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(12 * 64, 4),
    ]
    module, inputs = nn.Sequential(*parts).eval(), (InputSpec("input", (1, 12, 12)),)
    for pair in joints(trace(module, inputs))[0]:  # sizes that the next layer takes back
        first, second = (module.get_submodule(module_name(node)) for node in (pair.first, pair.second))
        sizes = torch.logspace(-1, 1, len(first.weight))
        scale_outputs(first.weight, first.bias, sizes)
        scale_inputs(pair.second, second.weight, (1 / sizes).repeat_interleave(pair.copies))
    samples = (torch.randn(64, 1, 12, 12, generator=torch.Generator().manual_seed(0)),)
    expected, found = answers(module, *samples), []
    for equalized in (False, True):
        traced = trace(module, inputs)
        if equalized:
            equalize(traced, {})
        quantization = calibrate(traced, place(traced, ()), samples, numbers=NumberFormat(per_channel=False))
        found.append(noise(expected, answers(quantized_graph(traced, quantization), *samples)))
    assert found[1] > found[0] + 10


# SmoothQuant


def transformer() -> Network:
    inputs = (InputSpec("input", (6, 4)),)
    architecture = architecture_of(
        "transformer", {"width": 16, "heads": 2, "patch": 1, "activation": "relu"}, inputs, (4,)
    )
    network = build(architecture, seed=0)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for layer in network.module.modules():
            if isinstance(layer, nn.LayerNorm):  # channels of very different sizes, as in large models
                layer.weight.copy_(10 ** (2 * torch.rand(16, generator=generator) - 1))
                layer.bias.copy_(layer.weight * torch.randn(16, generator=generator))
        for block in network.module.blocks:  # and what reads them takes the small ones as seriously
            attention, expand = block.attention, block.feed_forward.expand
            for reader in (attention.query, attention.key, attention.value):
                reader.weight.div_(block.norm1.weight)
            expand.weight.div_(block.norm2.weight)
    return network


def test_smoothing_balances_activations_and_weights_and_changes_no_answers():
    network = transformer()
    traced = trace(network.module, network.architecture.inputs)
    samples = (torch.randn(40, 6, 4, generator=torch.Generator().manual_seed(0)),)
    before = answers(network.module, *samples)
    n, notes = smooth(traced, samples, 0.5)
    np.testing.assert_allclose(answers(network.module, *samples), before, rtol=1e-3, atol=1e-4)
    # Two normalisations a block, and the hidden layer behind relu; what reads the last normalisation is a mean.
    assert n == 6
    assert notes == ("norm (layer_norm_4) is not smoothed: not only linear layers read it",)
    # What reads the second of a block is itself divided afterwards, for the layer behind it.
    norms = tuple(node for node in traced.nodes if node.name in ("layer_norm", "layer_norm_2"))
    values = next(values_of(traced, tuple(n.name for n in norms), samples))
    for norm, value in zip(norms, values, strict=True):
        readers = [traced.program.state_dict[traced.tensor_name(r.args[1])] for r in norm.users]
        read = torch.stack([w.detach().abs().amax(0) for w in readers]).amax(0)
        np.testing.assert_allclose(value.abs().amax((0, 1)), read, rtol=1e-4)


def test_smoothing_pays_where_channels_of_an_activation_differ():
    network = transformer()
    samples = (torch.randn(64, 6, 4, generator=torch.Generator().manual_seed(0)),)
    expected = answers(network.module, *samples)
    found = []
    for alpha in (None, 0.5):
        traced = trace(network.module, network.architecture.inputs)
        if alpha is not None:
            smooth(traced, samples, alpha)
        quantization = calibrate(traced, place(traced, ()), samples)
        # Only what the normalisations put out, and weights: other values are as coarse with smoothing as without.
        norms = tuple(a for a in quantization.activations if a.node in ("layer_norm", "layer_norm_1"))
        assert len(norms) == 2
        quantized = quantized_graph(traced, Quantization(norms, quantization.parameters))
        found.append(noise(expected, answers(quantized, *samples)))
    assert found[1] > found[0] + 6


# Bias correction


def test_measured_correction_leaves_no_shift(tiny_network, splits):
    module, _ = folded(tiny_network(block="separable"))
    samples = calibration_samples(splits.train, 100, seed=0)
    simulation, _ = simulated(module, (InputSpec("input", (1, 12, 12)),), samples)

    def shifts() -> list[float]:
        found = []
        for layer in simulation.layers:
            pairs = [(q - f) for f, q in simulation.sums(layer, samples)]
            difference = torch.cat(pairs).transpose(0, 1).flatten(1).mean(1)
            steps = torch.tensor(layer.bias.scales)
            found.append(float((difference.abs() / steps).max()))
        return found

    before = shifts()
    assert correct_biases(simulation, samples) == ()
    # Half a step of the bias is what rounding it leaves; float32 sums add to that.
    assert max(shifts()) < 1.0
    assert min(before) > 1.0


def test_computed_correction_is_the_weights_error_times_the_mean():
    module = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.Flatten(), nn.Linear(24, 3)).eval()
    samples = (torch.rand(50, 4, 4, 4, generator=torch.Generator().manual_seed(0)) + 0.5,)
    simulation, traced = simulated(module, (InputSpec("input", (4, 4, 4)),), samples)
    conv, linear = simulation.layers
    means = {
        "input": torch.arange(4).double(),
        "flatten": torch.linspace(-1, 1, 24).double(),
    }
    expected = []
    for layer in (conv, linear):
        weight = simulation.weight(layer).numpy()
        error = dequantized_values(quantized_values(weight, layer.weight), layer.weight) - weight
        bias = traced.program.state_dict[layer.bias.parameter].detach().numpy().copy()
        if layer is conv:
            groups = np.repeat([[0, 1], [2, 3]], 3, axis=0)  # which inputs each of the six outputs reads
            shift = (error.sum((2, 3)) * means["input"].numpy()[groups]).sum(1)
        else:
            shift = error @ means["flatten"].numpy()
        expected.append(bias - shift)
    assert correct_biases_by_means(simulation, means) == ()
    for layer, wanted in zip((conv, linear), expected, strict=True):
        found = traced.program.state_dict[layer.bias.parameter].detach().numpy()
        np.testing.assert_allclose(found, wanted, atol=1.01 * max(layer.bias.scales))
        assert np.abs(found - wanted).max() < 0.1 * np.abs(wanted).max()


# Rounding


def test_learned_rounding_finds_what_trying_all_roundings_finds():
    module = nn.Sequential(nn.Linear(7, 1, bias=False)).eval()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        module[0].weight.copy_(torch.randn(1, 7, generator=generator))
    # Inputs that are alike: what one weight does wrong another can make good.
    samples = (torch.randn(200, 1, generator=generator) + 0.3 * torch.randn(200, 7, generator=generator),)
    simulation, _ = simulated(module, (InputSpec("input", (7,)),), samples)
    (layer,) = simulation.layers
    weight, scale = simulation.weight(layer), layer.weight.scales[0]
    inputs = simulation.inputs(layer, samples)
    wanted = samples[0] @ weight.T

    def error(candidate: torch.Tensor) -> float:
        return float(((inputs @ candidate.T - wanted) ** 2).mean())

    floor = torch.floor(weight / scale)
    every = [
        torch.clamp(floor + torch.tensor([ups]), -7, 7) * scale for ups in itertools.product((0, 1), repeat=7)
    ]
    best = min(error(candidate) for candidate in every)
    (rounded,) = adaround(simulation, samples, 1500, torch.Generator().manual_seed(0))
    np.testing.assert_allclose(rounded.before, error(torch.round(weight / scale) * scale), rtol=1e-4)
    assert rounded.after <= 1.2 * best
    assert rounded.after < 0.5 * rounded.before
    np.testing.assert_allclose(error(module[0].weight.detach()), rounded.after, rtol=1e-4)


@pytest.mark.parametrize("method", ["adaround", "gptq"])
def test_chosen_integers_are_recovered_exactly_from_the_float_weights(method, tiny_network, context):
    network = tiny_network(block="separable")
    original = fold_batch_norm(network.module, network.architecture.inputs).module
    options = {"weight_bits": 4, "rounding": method} | (
        {"rounding_steps": 60} if method == "adaround" else {}
    )
    quantized, record = quantize(network, context, **options)
    again, _ = quantize(network, context, **options)
    changed = 0
    for parameter in quantized.quantization.parameters:
        if parameter.dtype != "int8":
            continue
        before, after, second = (
            m.get_parameter(parameter.parameter).detach().numpy()
            for m in (original, quantized.module, again.module)
        )
        np.testing.assert_array_equal(after, second)
        integers = quantized_values(after, parameter)
        assert np.abs(integers).max() <= 7
        scales = np.array(parameter.scales).reshape(-1, *[1] * (after.ndim - 1))
        exact = after.astype(np.float64) / scales
        moved = np.abs(exact - before / scales) > 1e-6
        # What was chosen is an integer times the scale, up to float32's rounding of the product.
        np.testing.assert_allclose(exact[moved], integers[moved], atol=1e-6)
        if method == "adaround":
            assert np.abs(integers - before / scales).max() < 1 + 1e-5
        changed += int((integers != quantized_values(before, parameter)).sum())
    assert changed > 0
    assert any(note.startswith(f"{method} chose the rounding of") for note in record.notes)


@pytest.mark.parametrize(
    "options", [{"rounding": "adaround", "rounding_steps": 300}, {"rounding": "gptq"}], ids=str
)
def test_chosen_rounding_pays_at_four_bits(options, tiny_network, context, splits):
    network = tiny_network("fnn", hidden=[40, 30]) if options["rounding"] == "gptq" else tiny_network()
    inputs = torch.from_numpy(splits.test.inputs[0])
    expected = answers(network.module, inputs)
    nearest, _ = quantize(network, context, weight_bits=4)
    chosen, _ = quantize(network, context, weight_bits=4, **options)
    found = [noise(expected, answers(executable(n), inputs)) for n in (nearest, chosen)]
    assert found[1] > found[0] + 1


def reference_obq(weight: np.ndarray, moments: np.ndarray, scales: np.ndarray, limit: int) -> np.ndarray:
    """Optimal brain quantisation of one row, in the order of its columns, each inverse computed anew."""
    damped = moments + 0.01 * np.diag(moments).mean() * np.eye(len(weight))
    left, rounded = weight.copy(), np.zeros_like(weight)
    for k in range(len(weight)):
        inverse = np.linalg.inv(damped[k:, k:])
        rounded[k] = np.clip(np.rint(left[k] / scales[k]), -limit, limit) * scales[k]
        left[k:] -= (left[k] - rounded[k]) / inverse[0, 0] * inverse[0]
    return rounded


@pytest.mark.parametrize("group", [12, 4])
def test_rounding_by_columns_is_optimal_brain_quantisation(group):
    rng = np.random.default_rng(0)
    weight, inputs = rng.normal(size=(5, 12)), rng.normal(size=(60, 12)) @ rng.normal(size=(12, 12))
    moments = inputs.T @ inputs / 60
    scales = np.repeat(np.abs(weight.reshape(5, -1, group)).max(2) / 7, group, axis=1)
    found = round_columns(*map(torch.from_numpy, (weight, moments, scales)), 7).numpy()
    for row, own, wanted in zip(weight, scales, found, strict=True):
        np.testing.assert_allclose(reference_obq(row, moments, own, 7), wanted, atol=1e-9)
    nearest = np.clip(np.rint(weight / scales), -7, 7) * scales
    assert np.linalg.norm((found - weight) @ inputs.T) < 0.8 * np.linalg.norm((nearest - weight) @ inputs.T)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(3, 4, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2)),
        nn.Conv2d(3, 4, 4, padding="same"),
        nn.Conv2d(3, 4, 3, padding="valid"),
        nn.Conv2d(3, 4, 1),
    ],
    ids=str,
)
def test_the_windows_of_a_convolution_times_its_weight_are_its_sums(conv):
    samples = (torch.randn(3, 3, 9, 8, generator=torch.Generator().manual_seed(0)),)
    simulation, _ = simulated(nn.Sequential(conv).eval(), (InputSpec("input", (3, 9, 8)),), samples)
    (layer,) = simulation.layers
    weight = simulation.weight(layer)
    rows = _rows(layer, samples[0], weight)
    found = (rows @ weight.flatten(1).T).reshape(3, -1, 4).transpose(1, 2)
    np.testing.assert_allclose(found, layer.sums(samples[0], weight, None).flatten(2), atol=1e-5)


def test_layers_that_are_no_one_product_are_rounded_to_the_nearest(tiny_network, context):
    _, record = quantize(tiny_network(block="separable"), context, rounding="gptq")
    (note,) = [n for n in record.notes if n.startswith("gptq")]
    assert (
        note.endswith("; 2 layers are rounded to the nearest, on average") or "2 layers are rounded" in note
    )


def test_an_input_that_is_always_zero_has_no_say():
    module = nn.Sequential(nn.Linear(5, 2)).eval()
    samples = (torch.zeros(10, 5),)
    simulation, _ = simulated(module, (InputSpec("input", (5,)),), samples)
    assert gptq(simulation, samples)[0].after == 0.0


# Four bits


def test_weights_of_four_bits_are_counted_packed_and_linked(tiny_network, context):
    network = tiny_network()
    eight, _ = quantize(network, context)
    four, record = quantize(network, context, weight_bits=4)
    weights = [p for p in four.quantization.parameters if p.dtype == "int8"]
    assert all(p.bits == 4 for p in weights)
    for parameter in weights:
        values = quantized_values(four.module.get_parameter(parameter.parameter).detach().numpy(), parameter)
        assert (np.abs(values).max(), values.dtype) == (7, np.int8)
    assert cost_of(four).weight_bytes == cost_of(eight).weight_bytes == four_bit_bytes(eight)
    n_weights = sum(four.module.get_parameter(p.parameter).numel() for p in weights)
    assert four_bit_bytes(four) == cost_of(four).weight_bytes - n_weights // 2
    note = f"weights of 4 bits: {four_bit_bytes(four)} bytes of parameters when packed, {cost_of(four).weight_bytes} in"
    assert any(n.startswith(note) for n in record.notes)


@pytest.mark.parametrize("seed", range(5))
def test_the_integer_program_finds_what_trying_all_choices_finds(seed):
    rng = np.random.default_rng(seed)
    costs, saved = rng.exponential(size=9) * 1e-6, rng.integers(5, 400, 9)
    least = int(saved.sum() * 0.6)
    every = np.array(list(itertools.product((False, True), repeat=9)))
    allowed = every[every @ saved >= least]
    chosen = solve(costs, saved, least)
    assert chosen @ saved >= least
    assert chosen @ costs == pytest.approx((allowed @ costs).min())


def test_a_budget_is_met_by_the_layers_that_change_the_answers_least(tiny_network, context, splits):
    network = tiny_network(channels=[6, 8, 10])
    inputs = torch.from_numpy(splits.test.inputs[0])
    expected = answers(network.module, inputs)
    eight, _ = quantize(network, context)
    four, _ = quantize(network, context, weight_bits=4)
    budget = (four_bit_bytes(eight) + four_bit_bytes(four)) // 2
    mixed, record = quantize(network, context, weight_budget=f"{budget} B")
    assert four_bit_bytes(four) < four_bit_bytes(mixed) <= budget
    bits = {p.parameter: p.bits for p in mixed.quantization.parameters if p.dtype == "int8"}
    assert set(bits.values()) == {4, 8}
    n_four = sum(b == 4 for b in bits.values())
    assert any(
        note.startswith(f"{n_four} of 4 weights have 4 bits for the budget: ") for note in record.notes
    )
    found = [noise(expected, answers(executable(n), inputs)) for n in (four, mixed, eight)]
    assert found == sorted(found)
    roomy, record = quantize(network, context, weight_budget="1 MiB")
    assert roomy.quantization == eight.quantization
    with pytest.raises(
        PreconditionFailed, match=r"of 4 bits everywhere are still .* bytes more than weight_budget"
    ):
        quantize(network, context, weight_budget="64 B")


def test_all_of_it_together_survives_the_export(tiny_network, context, splits, tmp_path):
    network = tiny_network(block="separable")
    quantized, _ = quantize(
        network,
        context,
        weight_bits=4,
        weight_range="mse",
        equalize=True,
        smooth=0.5,
        rounding="adaround",
        rounding_steps=50,
        bias_correction=True,
        observer="mse",
    )
    exported = export_onnx(quantized, splits.validation, tmp_path)
    assert exported.max_abs_difference <= exported.tolerance


# Weights alone


@pytest.mark.parametrize("rounding", ["nearest", "adaround", "gptq"])
def test_weights_alone_are_integers(rounding, tiny_network, context, splits, tmp_path):
    network = tiny_network(activation="silu")
    quantized, record = quantize(
        network,
        context,
        mode="weight_only",
        weight_bits=4,
        rounding=rounding,
        **({"rounding_steps": 100} if rounding == "adaround" else {}),
        bias_correction=True,
    )
    assert quantized.quantization.activations == ()
    assert {p.dtype for p in quantized.quantization.parameters} == {"int8"}
    assert record.notes[0].startswith(
        "2 batch normalisations folded; 3 layers have integer weights and compute in float"
    )
    assert not any("has no integer form" in note for note in record.notes)
    n_weights = sum(
        quantized.module.get_parameter(p.parameter).numel() for p in quantized.quantization.parameters
    )
    floats = sum(p.numel() for p in quantized.module.parameters()) - n_weights
    assert record.after.weight_bytes == n_weights + 4 * floats
    inputs = torch.from_numpy(splits.test.inputs[0])
    assert noise(answers(network.module, inputs), answers(executable(quantized), inputs)) > 8
    # Nothing between the weights is rounded, so torch and ONNX Runtime agree as float networks do.
    exported = export_onnx(quantized, splits.validation, tmp_path)
    assert exported.max_abs_difference <= exported.tolerance < 1e-4


# What stays float


def test_the_layer_that_suffers_most_is_found_and_left_float(tiny_network, context, splits):
    network = tiny_network(channels=[6, 8, 10])
    with torch.no_grad():  # one huge weight leaves no steps to the others
        network.module.stage2.block1.conv.weight[:, 0, 0, 0] = 20.0
    _, traced = folded(network)
    placement = place(traced, ())
    samples = calibration_samples(splits.train, 64, seed=0)
    found = sensitivities(traced, placement, calibrate(traced, placement, samples), samples)
    assert found[0].layer == "stage2.block1.conv"
    assert len(found) == 4
    assert [s.error for s in found] == sorted((s.error for s in found), reverse=True)
    _, record = quantize(network, context, keep_float=1)
    assert any(n.startswith("stage2.block1.conv") and "stays float: excluded" in n for n in record.notes)
    assert sum(n.startswith("sensitivity of ") for n in record.notes) == 4


def test_a_drop_that_holds_keeps_no_layer_float_and_one_that_cannot_hold_is_refused(tiny_network, context):
    network = tiny_network()
    _, record = quantize(network, context, max_drop=0.5)
    assert any(
        n.startswith("with 0 layers float, accuracy on validation samples changes by") for n in record.notes
    )
    with pytest.raises(
        PreconditionFailed, match=r"falls by more than max_drop 1e-09 even with 2 of 3 layers"
    ):
        quantize(
            sharp(network), context, max_drop=1e-9, weight_bits=4, observer="percentile", percentile=51.0
        )


def sharp(network: Network) -> Network:
    """Let answers depend on small differences, so that coarse steps show."""
    with torch.no_grad():
        network.module.classifier.weight.mul_(50)
    return network


def test_types_that_stay_float(tiny_network, context):
    quantized, _ = quantize(tiny_network(), context, exclude_types=("Linear",))
    assert not any("classifier" in p.parameter for p in quantized.quantization.parameters)
    with pytest.raises(
        PreconditionFailed, match=r"'Conv3d', which none of the modules is; there are .*Conv2d"
    ):
        quantize(tiny_network(), context, exclude_types=("Conv3d",))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"calibration": "batch_norm"}, "needs input_range"),
        ({"input_range": (0, 1)}, "input_range is for calibration: batch_norm"),
        ({"calibration": "batch_norm", "input_range": (1, 0)}, "not a lower and a higher end"),
        (
            {"calibration": "batch_norm", "input_range": (0, 1), "rounding": "gptq", "smooth": 0.5},
            "smooth, rounding can't do without data",
        ),
        ({"keep_float": 1, "max_drop": 0.1}, "exclude each other"),
        ({"weight_bits": 4, "weight_budget": "1 KiB"}, "leave weight_bits at 8"),
        ({"mode": "dynamic", "observer": "mse"}, "mode: dynamic finds ranges while the program runs"),
        (
            {"mode": "weight_only", "calibration": "batch_norm", "input_range": (0, 1)},
            "weight_only has no ranges to calibrate",
        ),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        QuantizeStatic(kind="quantize_static", **options)
