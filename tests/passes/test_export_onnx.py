"""The ONNX file: what is in it, that it is the same each time, and that a wrong one is found."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from armlet.errors import UnsupportedOperator, UsageError, VerificationFailed
from armlet.export import export_onnx
from armlet.export.onnx import to_onnx, write_onnx
from armlet.export.verify import verify
from armlet.models.network import Network
from armlet.passes import run_pass
from armlet.spec.passes import QuantizeStatic


def exported(network: Network, splits, folder) -> onnx.ModelProto:
    export_onnx(network, splits.validation, folder)
    return onnx.load(folder / "model.onnx")


def initializers(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


def test_a_float_network_is_exported_as_it_computes(network, splits, tmp_path):
    record = export_onnx(network, splits.validation, tmp_path)
    assert not record.quantized
    assert record.n_verified == 64
    assert 0 <= record.max_abs_difference <= record.tolerance < 1e-4
    assert record.inputs[0].name == "input"
    assert record.inputs[0].shape == (1, 1, 12, 12)
    assert record.outputs[0].name == "output"
    assert record.outputs[0].shape == (1, 4)
    assert record.onnx_bytes == (tmp_path / "model.onnx").stat().st_size


def test_the_file_is_valid_and_of_a_fixed_shape(quantized, splits, tmp_path):
    model = exported(quantized, splits, tmp_path)
    onnx.checker.check_model(model, full_check=True)
    for value in (*model.graph.input, *model.graph.output):
        assert all(d.HasField("dim_value") for d in value.type.tensor_type.shape.dim)


def test_weights_are_stored_as_integers_of_their_layers_names(quantized, splits, tmp_path):
    stored = initializers(exported(quantized, splits, tmp_path))
    for parameter in quantized.quantization.parameters:
        integers = stored[f"{parameter.parameter}.quantized"]
        assert integers.dtype == parameter.dtype
        np.testing.assert_array_equal(stored[f"{parameter.parameter}.scale"], np.float32(parameter.scales))
        assert not stored[f"{parameter.parameter}.zero_point"].any()
        values = quantized.module.get_parameter(parameter.parameter).detach().numpy()
        steps = np.float32(parameter.scales).reshape(-1, *[1] * (values.ndim - 1))
        assert np.abs(integers * steps - values).max() <= 0.51 * steps.max()
    # No float copy of a quantised weight is left.
    assert not {p.parameter for p in quantized.quantization.parameters} & set(stored)


def test_a_bias_of_zeros_is_exported_as_none(tiny_network, context, splits, tmp_path):
    network = tiny_network()
    classifier = next(m for m in reversed(list(network.module.modules())) if isinstance(m, nn.Linear))
    with torch.no_grad():
        classifier.bias.zero_()
    network, _ = run_pass(QuantizeStatic(kind="quantize_static"), network, context(network))
    record = export_onnx(network, splits.validation, tmp_path)
    assert record.quantized
    assert record.max_abs_difference <= record.tolerance


def test_every_layer_takes_and_gives_dequantized_values(tiny_network, context, splits, tmp_path):
    network = tiny_network(block="residual")
    spec = QuantizeStatic(kind="quantize_static", calibration_samples=64)
    model = exported(run_pass(spec, network, context(network))[0], splits, tmp_path)
    made_by = {value: node for node in model.graph.node for value in node.output}
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm", "Add", "MaxPool", "ReduceMean", "Reshape"):
            values = [v for v in node.input if v in made_by]
            assert values
            assert {made_by[v].op_type for v in values} == {"DequantizeLinear"}, node.name
    bias = next(n for n in model.graph.node if n.output[0] == "stem.conv.bias")
    stored = initializers(model)
    expected = stored[made_by["input.dequantize"].input[1]] * stored["stem.conv.weight.scale"]
    np.testing.assert_array_equal(stored[bias.input[1]], expected)


def test_nodes_are_named_after_their_layers(tiny_network, splits, tmp_path):
    model = exported(tiny_network(block="residual"), splits, tmp_path)
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)
    assert {"stem.conv", "stage1.block1.branch.conv1", "stage1.block1.add", "classifier"} <= set(names)


def test_the_same_network_gives_the_same_bytes(quantized, tmp_path):
    for name in ("a.onnx", "b.onnx"):
        write_onnx(to_onnx(quantized), tmp_path / name)
    first = (tmp_path / "a.onnx").read_bytes()
    assert first == (tmp_path / "b.onnx").read_bytes()
    model = onnx.load_from_string(first)
    assert not model.doc_string
    assert not model.metadata_props
    assert not any(n.doc_string or n.metadata_props for n in model.graph.node)
    assert b".py" not in first  # no path of a source file


def test_onnx_runtimes_own_integer_kernels_agree_but_for_a_step(tiny_network, context, splits, tmp_path):
    network = tiny_network()
    spec = QuantizeStatic(kind="quantize_static", calibration_samples=64)
    result, _ = run_pass(spec, network, context(network))
    record = export_onnx(result, splits.validation, tmp_path)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")  # else it saturates without VNNI
    session = onnxruntime.InferenceSession(
        tmp_path / "model.onnx", options, providers=["CPUExecutionProvider"]
    )
    plain = onnxruntime.SessionOptions()
    plain.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    reference = onnxruntime.InferenceSession(
        tmp_path / "model.onnx", plain, providers=["CPUExecutionProvider"]
    )
    feeds = [{"input": picture[None]} for picture in splits.test.inputs[0]]
    found = np.concatenate([session.run(None, feed)[0] for feed in feeds])
    expected = np.concatenate([reference.run(None, feed)[0] for feed in feeds])
    assert np.abs(found - expected).max() <= record.tolerance


def test_a_changed_weight_is_found(quantized, splits, tmp_path):
    path = tmp_path / "model.onnx"
    model = to_onnx(quantized)
    weight = model.graph.initializers["classifier.weight.quantized"]
    values = weight.const_value.numpy().copy()
    values[0] = -values[0]
    weight.const_value = ir.tensor(values, name=weight.name)
    write_onnx(model, path)
    with pytest.raises(VerificationFailed, match=r"model\.onnx differs from torch by .* on 64 samples"):
        verify(quantized, path, splits.validation)


def test_an_output_that_is_not_a_number_is_found(tiny_network, splits, tmp_path):
    network = tiny_network()
    path = tmp_path / "model.onnx"
    with torch.no_grad():
        network.module.classifier.bias[0] = torch.nan
    write_onnx(to_onnx(network), path)
    with pytest.raises(VerificationFailed):
        verify(network, path, splits.validation)


def test_no_samples_is_an_error(tiny_network, splits, tmp_path):
    none = splits.test.take(slice(0))
    with pytest.raises(UsageError, match="no samples to verify"):
        export_onnx(tiny_network(), none, tmp_path)


class Lookup(nn.Module):
    """Depends on the values, which no graph can say."""

    def forward(self, x):
        return x[:, :, 0, :4].squeeze(1) if x.sum() > 0 else x[:, :, 1, :4].squeeze(1)


def test_a_network_without_a_graph_is_refused(tiny_network, tmp_path):
    network = Network(Lookup().eval(), tiny_network().architecture)
    with pytest.raises(UnsupportedOperator, match="has no ONNX form"):
        to_onnx(network)
