"""Static INT8: where it computes on integers, which scales it finds, and that it stays close to the float network."""

from __future__ import annotations

import dataclasses
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from armlet.analysis.graph import trace
from armlet.artifacts import InputSpec
from armlet.compile.pipeline import lower
from armlet.data.splits import Samples
from armlet.export import export_onnx
from armlet.models.network import Network, executable
from armlet.models.quantization import (
    ActivationQuantization,
    ParameterQuantization,
    dequantized_values,
    quantized_module,
    quantized_values,
)
from armlet.passes import PreconditionFailed, run_pass
from armlet.passes.quantize.calibrate import calibrate, weight_scales
from armlet.passes.quantize.common import calibration_samples
from armlet.passes.quantize.placement import place
from armlet.passes.quantize.ranges import activation_scale, min_max_ranges
from armlet.spec.load import load_target
from armlet.spec.passes import QuantizeStatic


def quantize(network, context, **options: object):
    spec = QuantizeStatic(kind="quantize_static", **{"calibration_samples": 128} | options)
    return run_pass(spec, network, context(network))


def outputs(module: nn.Module, inputs: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return module(torch.from_numpy(inputs)).numpy()


def test_the_integer_network_stays_close_to_the_float_one(network, context, splits):
    quantized, record = quantize(network, context)
    expected = outputs(network.module, splits.test.inputs[0])
    found = outputs(executable(quantized), splits.test.inputs[0])
    noise = 10 * np.log10(np.mean((expected - expected.mean()) ** 2) / np.mean((found - expected) ** 2))
    # Eight bits give some 40 dB a layer, and these networks have up to nine layers one behind the other.
    assert noise > 22
    assert not np.array_equal(found, expected)
    assert record.after.weight_bytes < 0.5 * record.before.weight_bytes


def test_every_value_between_quantize_and_dequantize_is_an_integer_that_fits(network, context, splits):
    quantized, _ = quantize(network, context)
    module = executable(quantized)
    codes = [n for n in module.graph.nodes if "dequantize_per_tensor" in n.name]
    assert len(codes) == len(quantized.quantization.activations)
    module.graph.output_node().args = (tuple(n.args[0] for n in codes),)
    module.graph.set_codegen(torch.fx.graph.CodeGen())
    module.recompile()
    with torch.no_grad():
        values = module(torch.from_numpy(splits.test.inputs[0]))
    assert all(v.dtype == torch.int8 for v in values)
    # Ranges are used: none of the activations lives on a handful of steps.
    assert all(int(v.max()) - int(v.min()) > 100 for v in values)


def placement_of(module: nn.Module, shape=(1, 12, 12), exclude=()):
    return place(trace(module.eval(), (InputSpec("input", shape),)), exclude)


def test_a_clamp_belongs_to_the_layer_before_it(tiny_network):
    network = tiny_network(block="residual", activation="relu6", downsample="stride", channels=[6])
    module = torch.nn.Sequential(network.module.stem.conv, network.module.stem.activation)
    assert placement_of(module).shared == (("input",), ("hardtanh",))


def test_pooling_and_reshaping_share_the_scale_of_their_input():
    module = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(75, 2))
    assert placement_of(module).shared == (("input",), ("relu", "max_pool2d", "flatten"), ("linear",))


class Concatenated(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(1, 2, 1), nn.Conv2d(1, 2, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        return self.c(torch.cat([self.a(x), 3 * self.b(x)], 1))


def test_concatenation_takes_one_scale_that_holds_all_its_inputs():
    module = Concatenated().eval()
    with torch.no_grad():
        module.a.weight.fill_(1.0)
        module.b.weight.fill_(5.0)
    placement = placement_of(module)
    assert ("conv2d", "mul", "cat") in placement.shared
    traced = trace(module, (InputSpec("input", (1, 12, 12)),))
    samples = (torch.linspace(0, 1, 144).reshape(1, 1, 12, 12),)
    found = calibrate(traced, placement, samples)
    scales = {a.node: a.scale for a in found.activations}
    assert scales["conv2d"] == scales["mul"] == scales["cat"]
    low, high = min_max_ranges(traced, ("cat",), samples)[0]
    np.testing.assert_allclose(scales["cat"], (max(high, 0) - min(low, 0)) / 255, rtol=1e-6)


@pytest.mark.parametrize(
    "activation",
    ["hard_swish", "gelu", "silu", "tanh", "sigmoid", "elu", "mish", "leaky_relu", "prelu", "hard_sigmoid"],
)
def test_functions_of_one_number_are_tables(activation, tiny_network, context, splits, tmp_path):
    network = tiny_network(activation=activation)
    quantized, record = quantize(network, context)
    assert [n for n in record.notes if "stays float" in n] == []
    export_onnx(quantized, splits.validation, tmp_path)
    program = lower(tmp_path / "model.onnx", load_target("host"))
    assert program.fallbacks == ()
    assert [call.op for call in program.calls].count("table") == 2


class Cubed(nn.Module):
    """What no integer form is known for, between two convolutions."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 2, 3), nn.Conv2d(2, 3, 3)

    def forward(self, x):
        return self.b(self.a(x) ** 3)


def test_what_has_no_integer_form_stays_float_and_is_named():
    placement = placement_of(Cubed())
    assert placement.notes == ("pow_1 stays float: pow has no integer form",)
    # The islands stand between integers: their inputs and what they give are quantised.
    assert placement.shared == (("input",), ("conv2d",), ("pow_1",), ("conv2d_1",))


@pytest.mark.parametrize("block", ["plain", "residual"])
def test_one_slope_for_each_channel_is_a_layer_of_integers(block, tiny_network, context, splits, tmp_path):
    network = tiny_network(block=block, activation="prelu")
    slopes = [m for m in network.module.modules() if isinstance(m, nn.PReLU)]
    n_channels = {"plain": [6, 10], "residual": [6, 6, 6, 10, 10]}[block]
    for number, (layer, n) in enumerate(zip(slopes, n_channels, strict=True)):
        layer.weight = nn.Parameter(torch.linspace(-0.3, 0.8 + number, n))
    quantized, record = quantize(network, context)
    assert [n for n in record.notes if "stays float" in n] == []
    exported = export_onnx(quantized, splits.validation, tmp_path)
    assert exported.max_abs_difference <= exported.tolerance
    program = lower(tmp_path / "model.onnx", load_target("host"))
    assert program.fallbacks == ()
    assert [call.op for call in program.calls].count("prelu") == len(slopes)


class Sloped(nn.Module):
    """A PReLU whose slopes depend on the input."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 2, 3), nn.Conv2d(2, 3, 3)

    def forward(self, x):
        x = self.a(x)
        return self.b(nn.functional.prelu(x, x.mean(dim=(0, 2, 3))))


def test_computed_slopes_stay_float():
    assert "prelu stays float: its slopes are computed" in placement_of(Sloped()).notes


def test_a_function_of_float_numbers_or_of_the_last_ones_stays_float(tiny_network, context):
    network = tiny_network(activation="gelu")
    _, record = quantize(network, context, exclude=("stage1.block1.conv",))
    assert [n for n in record.notes if "stays float" in n] == [
        "stage1.block1.conv (conv2d) stays float: excluded",
        "stage1.block1.activation (gelu) stays float: what it takes is float",
    ]
    network = replace(network, module=nn.Sequential(network.module, nn.Sigmoid()).eval())
    _, record = quantize(network, context)
    assert [n for n in record.notes if "stays float" in n] == [
        "1 (sigmoid) stays float: it gives the network's answer"
    ]


def test_excluded_layers_stay_float(tiny_network, context):
    network = tiny_network()
    quantized, record = quantize(network, context, exclude=("stage2.*", "classifier"))
    by_name, _ = quantize(network, context, exclude=("stage2", "classifier"))
    assert by_name.quantization == quantized.quantization
    parameters = {p.parameter for p in quantized.quantization.parameters}
    assert parameters == {"stage1.block1.conv.weight", "stage1.block1.conv.bias"}
    assert "classifier (linear) stays float: excluded" in record.notes


def test_a_pattern_that_fits_nothing_is_refused(tiny_network, context):
    with pytest.raises(PreconditionFailed, match="'head', which fits none of the network's modules"):
        quantize(tiny_network(), context, exclude=("head",))


def test_nothing_to_quantize_is_refused(tiny_network, context):
    with pytest.raises(
        PreconditionFailed, match=r"nothing can be quantised; stage1\.block1\.conv .* excluded"
    ):
        quantize(tiny_network(), context, exclude=("*",))


def test_min_max_ranges_are_those_of_the_values(tiny_network, splits):
    network = tiny_network()
    traced = trace(network.module, (InputSpec("input", (1, 12, 12)),))
    inputs = torch.from_numpy(splits.train.inputs[0])
    ranges = min_max_ranges(traced, ("input", "linear"), (inputs,))
    with torch.no_grad():
        answers = network.module(inputs)
    assert ranges[0] == (inputs.min().item(), inputs.max().item())
    # Batches of another size may be summed in another order.
    np.testing.assert_allclose(ranges[1], (answers.min().item(), answers.max().item()), rtol=1e-5)


def test_the_percentile_observer_is_what_the_pass_uses(tiny_network, context):
    network = tiny_network()
    wide, _ = quantize(network, context)
    narrow, _ = quantize(network, context, observer="percentile", percentile=99.0)
    pairs = zip(wide.quantization.activations, narrow.quantization.activations, strict=True)
    assert all(n.scale < w.scale for w, n in pairs)


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
def test_zero_is_exact_and_the_range_is_held(a, b):
    low, high = min(a, b), max(a, b)
    scale, zero_point = activation_scale(low, high)
    assert scale > 0
    assert scale == np.float32(scale)
    assert -128 <= zero_point <= 127
    if max(high, 0) - min(low, 0) > 1e-30:
        # Half a step of the zero point, and the rounding of the scale to float32.
        assert (-128 - zero_point) * scale <= min(low, 0) + 0.51 * scale
        assert (127 - zero_point) * scale >= max(high, 0) - 0.51 * scale


def test_a_range_of_nothing_but_zero_gets_scale_one():
    assert activation_scale(0.0, 0.0) == (1.0, 0)


def test_weight_scales_are_the_largest_weight_of_each_channel_over_127():
    weight = np.random.default_rng(0).normal(size=(5, 3, 3, 3)).astype(np.float32)
    scales = weight_scales(weight, None, 0.1)
    np.testing.assert_allclose(scales, np.abs(weight).max((1, 2, 3)) / 127, rtol=1e-6)


def test_a_channel_of_zeros_with_a_bias_gets_a_scale_that_can_hold_it():
    weight = np.zeros((3, 4), np.float32)
    weight[0] = 0.5
    bias = np.array([1.0, 1e5, 0.0], np.float32)
    scales = weight_scales(weight, bias, 1e-3)
    assert scales[2] == np.float32(0.5 / 127 * 2.0**-16)
    integers = quantized_values(bias, ParameterQuantization("b", tuple((1e-3 * scales).tolist()), "int32"))
    assert np.abs(integers.astype(np.int64)).max() <= 2**30 + 256  # float32 holds 2^30 to within 128
    np.testing.assert_allclose(integers * (1e-3 * scales.astype(np.float64)), bias, rtol=1e-5)


def test_weights_of_nothing_but_zero_get_scale_one():
    np.testing.assert_array_equal(weight_scales(np.zeros((2, 3), np.float32), None, 0.5), [1.0, 1.0])


def test_integers_round_half_to_even_and_saturate_symmetrically():
    parameter = ParameterQuantization("w", (1.0, 2.0), "int8")
    values = np.array([[0.5, 1.5, -2.5, 200.0, -200.0], [1.0, 3.0, 5.0, 254.0, -254.0]], np.float32)
    integers = quantized_values(values, parameter)
    assert integers.dtype == np.int8
    assert integers.tolist() == [[0, 2, -2, 127, -127], [0, 2, 2, 127, -127]]
    assert dequantized_values(integers, parameter)[1].tolist() == [0.0, 4.0, 4.0, 254.0, -254.0]


def test_a_quantization_of_another_network_is_refused(tiny_network, context):
    quantized, _ = quantize(tiny_network(), context)
    activation = ActivationQuantization("conv2d_99", 0.1, 0)
    other = dataclasses.replace(quantized.quantization, activations=(activation,))
    with pytest.raises(ValueError, match="no nodes conv2d_99"):
        quantized_module(quantized.module, quantized.architecture.inputs, other)


def test_calibration_samples_come_from_the_training_split_by_seed(splits):
    (first,) = calibration_samples(splits.train, 10, seed=3)
    assert first.shape == (10, 1, 12, 12)
    assert torch.equal(first, calibration_samples(splits.train, 10, seed=3)[0])
    assert not torch.equal(first, calibration_samples(splits.train, 10, seed=4)[0])
    known = {picture.tobytes() for picture in splits.train.inputs[0]}
    assert all(picture.numpy().tobytes() in known for picture in first)
    assert len(calibration_samples(splits.train, 10_000, seed=3)[0]) == len(splits.train)


class Text(nn.Module):
    """Tokens [N, 5] to the mean of their embeddings, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(300, 8)
        self.output = nn.Linear(8, 4)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.output(self.embed(tokens).mean(dim=1))


@pytest.mark.parametrize("mode", ["static", "weight_only"])
def test_an_embedding_has_int8_rows(mode, context, splits, tiny_network, tmp_path):
    rng = np.random.default_rng(0)
    inputs = (InputSpec("tokens", (5,), "int32", 300),)
    tokens = rng.integers(0, 300, (64, 5)).astype(np.int32)
    some = Samples((tokens,), np.zeros(64, np.int64), np.zeros(64, np.int64))
    torch.manual_seed(0)
    network = tiny_network("fnn")
    architecture = replace(network.architecture, inputs=inputs)
    network = Network(Text().eval(), architecture)
    own = replace(
        context(network), splits=replace(splits, train=some, validation=some, test=some, inputs=inputs)
    )
    spec = QuantizeStatic(kind="quantize_static", mode=mode, calibration_samples=32)
    quantized, record = run_pass(spec, network, own)
    (table,) = [p for p in quantized.quantization.parameters if p.parameter == "embed.weight"]
    assert len(table.scales) == 300
    assert len(set(table.scales)) == (1 if mode == "static" else 300)
    assert record.after.weight_bytes < 0.3 * record.before.weight_bytes
    with torch.no_grad():
        expected, found = (
            m(torch.from_numpy(tokens)).numpy() for m in (network.module, executable(quantized))
        )
    assert 0 < np.abs(found - expected).max() < 0.03 * np.ptp(expected)
    export_onnx(quantized, some, tmp_path)
    program = lower(tmp_path / "model.onnx", load_target("raspberry-pi-4"))
    assert program.fallbacks == ()
    assert program.calls[0].op == "lookup"
    assert {c.precision for c in program.calls[:-1]} == ({"int8"} if mode == "static" else {"float32"})
    excluded = QuantizeStatic(kind="quantize_static", mode=mode, calibration_samples=32, exclude=["embed"])
    quantized, record = run_pass(excluded, network, own)
    assert "embed.weight" not in [p.parameter for p in quantized.quantization.parameters]
    assert "embed (embedding) stays float: excluded" in record.notes


class Category(nn.Module):
    """A whole number for each sample, which is no length."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.first, self.second = nn.Embedding(7, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, kind: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(self.embed(kind)).relu())


def test_what_follows_the_embedding_of_a_category_computes_on_integers():
    placement = place(trace(Category().eval(), (InputSpec("kind", (), "int32", 7),)), ())
    assert (len(placement.layers), len(placement.tables), placement.notes) == (2, 1, ())
