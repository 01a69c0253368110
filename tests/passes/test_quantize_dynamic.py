"""Dynamic INT8: layers quantise their input while they run, from the recipe to the compiled program."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from pydantic import ValidationError
from tests.passes.conftest import learned
from torch import nn

from armlet.compile.frontend.values import Clamp
from armlet.compile.pipeline import compile_onnx, lower
from armlet.compile.quantized import dynamic as numbers
from armlet.compile.quantized import reference as integers
from armlet.devices.host import HostProgram
from armlet.export import export_onnx
from armlet.models.dynamic import quantized_while_running
from armlet.models.network import architecture_of, build, executable, load_network, save_network
from armlet.models.quantization import quantized_values
from armlet.passes import PreconditionFailed, run_pass
from armlet.spec.load import load_target
from armlet.spec.passes import QuantizeStatic

TRANSFORMER = {"width": 16, "heads": 2, "depth": 1, "patch": 4}


def quantize(network, context, **options: object):
    spec = QuantizeStatic(kind="quantize_static", mode="dynamic", **options)
    return run_pass(spec, network, context(network))


def answers(module: nn.Module, inputs: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return module(torch.from_numpy(inputs)).numpy()


@pytest.fixture(params=["fnn", "cnn", "transformer"])
def trained(request: pytest.FixtureRequest, tiny_network, splits):
    """A network that has learned the task."""
    if request.param in ("fnn", "cnn"):
        network = tiny_network(request.param)
    else:
        network = build(architecture_of("transformer", TRANSFORMER, splits.inputs, (4,)), seed=0)
    return learned(network, splits)


def test_a_trained_network_keeps_its_score_and_its_answers(trained, context, splits, tmp_path):
    quantized, record = quantize(trained, context)
    assert record.score_before.value > 0.9
    assert abs(record.score_after.value - record.score_before.value) < 0.03
    assert record.after.weight_bytes < 0.6 * record.before.weight_bytes
    assert not quantized.quantization.activations
    expected = answers(trained.module, splits.test.inputs[0])
    found = answers(executable(quantized), splits.test.inputs[0])
    assert 0 < np.abs(found - expected).max() < 0.05 * np.ptp(expected)

    exported = export_onnx(quantized, splits.test, tmp_path)
    compiled = compile_onnx(tmp_path / "model.onnx", load_target("host"), "net", tmp_path)
    on_host = HostProgram.load(tmp_path, compiled).run_many(splits.test.inputs[0])
    assert exported.max_abs_difference <= exported.tolerance
    np.testing.assert_allclose(on_host, found, rtol=0, atol=0.02 * np.ptp(found))
    assert np.median(np.abs(on_host - found)) < 1e-5
    dynamic = sum(p.dynamic_input for p in quantized.quantization.parameters)
    kernels = sum(k.op in ("dynamic_dense", "dynamic_conv2d") for k in compiled.kernels)
    assert kernels == dynamic
    assert f"{dynamic} layers quantise their input while they run" in record.notes[0]
    assert "no samples needed" in record.notes[0]


def test_the_torch_simulation_of_one_layer_is_the_reference(tiny_network, context, splits):
    network = tiny_network("fnn", hidden=[])
    quantized, _ = quantize(network, context)
    (parameter,) = quantized.quantization.parameters
    values = dict(network.module.named_parameters())
    weight = quantized_values(values[parameter.parameter].detach().numpy(), parameter)
    bias = next(v for name, v in values.items() if name.endswith("bias")).detach().numpy()
    some = splits.test.inputs[0][:8]
    found = answers(executable(quantized), some)
    scales = np.float32(parameter.scales)
    for x, y in zip(some, found, strict=True):
        expected = numbers.dense(x.reshape(1, -1), weight, scales, bias, Clamp())
        np.testing.assert_allclose(y[None], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("factor", [1.0, -1.0, 0.0, 1e-40, 1e30])
def test_each_sample_has_the_range_of_its_own(factor):
    x = np.random.default_rng(0).normal(0.3, 1, (4, 3, 5)).astype(np.float32) * np.float32(factor)
    x[1] *= 10
    found = quantized_while_running(torch.from_numpy(x)).numpy()
    for sample, rounded in zip(x, found, strict=True):
        origin = numbers.quantization_of(sample)
        np.testing.assert_array_equal(rounded, integers.dequantize(integers.quantize(sample, origin), origin))


def test_depthwise_convolutions_keep_float_arithmetic_and_the_notes_say_so(
    tiny_network, context, splits, tmp_path
):
    quantized, record = quantize(tiny_network("cnn", block="separable"), context)
    convolutions = [m for m in quantized.module.modules() if isinstance(m, nn.Conv2d)]
    depthwise = sum(m.groups > 1 for m in convolutions)
    dynamic = len(convolutions) - depthwise + 1
    assert depthwise
    assert f"{dynamic} layers quantise their input while they run; {depthwise} others" in record.notes[0]
    export_onnx(quantized, splits.test, tmp_path)
    operators = [n.op_type for n in onnx.load(tmp_path / "model.onnx").graph.node]
    assert operators.count("Conv") == depthwise
    assert operators.count("ConvInteger") == dynamic - 1
    assert operators.count("MatMulInteger") == 1
    program = lower(tmp_path / "model.onnx", load_target("raspberry-pi-4"))
    assert [c.op for c in program.calls][-3:] == ["dynamic_range", "dynamic_quantize", "dynamic_dense"]


def test_values_that_several_layers_read_are_quantised_once(splits, context, tmp_path):
    network = build(architecture_of("transformer", TRANSFORMER, splits.inputs, (4,)), seed=0)
    quantized, _ = quantize(network, context)
    export_onnx(quantized, splits.test, tmp_path)
    operators = [n.op_type for n in onnx.load(tmp_path / "model.onnx").graph.node]
    products = operators.count("MatMulInteger") + operators.count("ConvInteger")
    assert products - operators.count("DynamicQuantizeLinear") == 2  # query, key, value


def test_a_stored_network_answers_the_same(tiny_network, context, splits, tmp_path):
    quantized, _ = quantize(tiny_network("fnn"), context, equalize=True, weight_bits=4, weight_range="mse")
    save_network(quantized, tmp_path)
    loaded = load_network(tmp_path)
    assert loaded.quantization == quantized.quantization
    some = splits.test.inputs[0]
    np.testing.assert_array_equal(answers(executable(loaded), some), answers(executable(quantized), some))


def test_excluded_layers_stay_float(tiny_network, context):
    quantized, _ = quantize(tiny_network("fnn"), context, exclude=["classifier"])
    assert not [p for p in quantized.quantization.parameters if p.parameter.startswith("classifier")]
    with pytest.raises(PreconditionFailed, match="nothing can be quantised"):
        quantize(tiny_network("fnn"), context, exclude=["*"])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"observer": "mse"}, "observer"),
        ({"smooth": 0.5}, "smooth"),
        ({"bias_correction": True, "rounding": "gptq"}, "rounding, bias_correction"),
        ({"calibration": "batch_norm", "input_range": (0, 1)}, "calibration, input_range"),
        ({"calibration_samples": 64}, "calibration_samples"),
        ({"activations": "symmetric"}, "activations"),
        ({"keep_float": 1}, "keep_float"),
        ({"max_drop": 0.1}, "max_drop"),
        ({"weight_budget": "4 KiB"}, "weight_budget"),
    ],
)
def test_what_needs_samples_or_fixed_ranges_is_refused(options, named):
    with pytest.raises(ValidationError, match=f"takes no samples: leave out {named}"):
        QuantizeStatic(kind="quantize_static", mode="dynamic", **options)
