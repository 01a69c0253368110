"""Files that onnxruntime.quantization writes of a trained network, in all its forms and types, on host and boards."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from armlet.compile.pipeline import compile_onnx
from armlet.devices.host import HostProgram
from armlet.devices.samples import unpack
from armlet.spec.load import load_target

SIDE = 12
TYPES = ["int8 int8", "uint8 int8", "uint8 uint8"]  # activations, weights; the tool refuses int8 with uint8


class Net(nn.Module):
    """What the tool quantises: batch norms to fold, a residual, two branches, a gate, both poolings, activations."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU())
        self.pool = nn.MaxPool2d(2)
        self.depth = nn.Sequential(
            nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False), nn.BatchNorm2d(12), nn.ReLU()
        )
        self.point = nn.Sequential(nn.Conv2d(12, 12, 1, bias=False), nn.BatchNorm2d(12))
        self.left = nn.Sequential(nn.Conv2d(12, 7, 1), nn.LeakyReLU(0.1))
        self.right, self.gate = nn.Conv2d(12, 9, 3, padding=1), nn.Conv2d(16, 16, 1)
        self.mean, self.classes = nn.AvgPool2d(3), nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(self.stem(x))
        x = torch.relu(x + self.point(self.depth(x)))
        x = torch.cat([self.left(x), torch.sigmoid(self.right(x))], 1)
        x = self.mean(x * torch.sigmoid(self.gate(x)))
        return torch.softmax(self.classes(x.mean((2, 3))), 1)


def _data(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 10, (n,), generator=generator)
    centres = torch.randn(10, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(7))
    return 2 * centres[labels] + torch.randn(n, 3, SIDE, SIDE, generator=generator), labels


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the network, trained, as float.onnx."""
    torch.manual_seed(0)
    net, folder = Net(), tmp_path_factory.mktemp("onnxruntime")
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for seed in range(100):
        x, labels = _data(32, seed)
        loss = nn.functional.nll_loss(torch.log(net(x) + 1e-9), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    net.eval()
    x, labels = _data(300, 999)
    assert (net(x).argmax(1) == labels).float().mean() > 0.5
    plain = folder / "float.onnx"
    torch.onnx.export(net, (x[:1],), plain, dynamo=False, opset_version=17, input_names=["x"])
    return folder


def _quantized(trained: Path, form: str, types: str, *, by_channel: bool, reduced: bool = False) -> Path:
    """Write the network in a form, and return the file."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_dynamic,
        quantize_static,
    )

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.samples = iter([{"x": x[None]} for x in _data(32, 5)[0].numpy()])

        def get_next(self):
            return next(self.samples, None)

    given = {"int8": QuantType.QInt8, "uint8": QuantType.QUInt8}
    activations, weights = (given[t] for t in types.split())
    file = trained / f"{form}-{types.replace(' ', '-')}-{by_channel:d}{reduced:d}.onnx"
    shared = {"weight_type": weights, "per_channel": by_channel, "reduce_range": reduced}
    if form == "dynamic":
        quantize_dynamic(trained / "float.onnx", file, **shared)
    else:
        quantize_static(
            *(trained / "float.onnx", file, Reader()),
            **{"quant_format": QuantFormat[form], "activation_type": activations, **shared},
        )
    return file


def _with_all_quantized_values_as_outputs(file: Path) -> tuple[onnx.ModelProto, list[str]]:
    """Return a file's network that gives every 8-bit value that a node computes, and their names."""
    model, names = onnx.load(file), []
    stored = {i.name: i.data_type for i in model.graph.initializer}
    places = {"QLinearConcat": 1, "QLinearConv": 7}  # of the result's zero point, elsewhere the last input
    for node in model.graph.node:
        if node.op_type.startswith(("QLinear", "QGemm", "QuantizeLinear")):
            kind = stored[node.input[places.get(node.op_type, -1)]]
            model.graph.output.append(onnx.helper.make_tensor_value_info(node.output[0], kind, None))
            names.append(node.output[0])
    return model, names


@pytest.mark.parametrize("by_channel", [False, True])
@pytest.mark.parametrize("types", TYPES)
@pytest.mark.parametrize("form", ["QDQ", "QOperator"])
def test_static_files_are_integer_programs_within_one_step_of_onnx_runtime(
    form, types, by_channel, trained, lowered, reference
):
    file = _quantized(trained, form, types, by_channel=by_channel, reduced=form == "QDQ" and by_channel)
    plain, _ = lowered(onnx.load(file))
    assert plain.fallbacks == ()
    assert [call.op for call in plain.calls if call.precision != "int8"] == ["dequantize"]
    assert sum(call.op in ("conv2d", "depthwise_conv2d", "dense") for call in plain.calls) == 7
    model, names = _with_all_quantized_values_as_outputs(file)
    assert len(names) >= 16
    _, run = lowered(model)
    expected, seen = reference(model), {name: set() for name in names}
    for x in _data(12, 77)[0].numpy():
        for name, ours, theirs in zip(names, run(x[None])[1:], expected(x[None])[1:], strict=True):
            assert ours.dtype == theirs.dtype == types.split()[0]
            assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 1, name
            seen[name].update(ours.reshape(-1).tolist())
    assert min(map(len, seen.values())) > 10


@pytest.mark.parametrize("by_channel", [False, True])
@pytest.mark.parametrize("weights", ["int8", "uint8"])
def test_dynamic_files_multiply_integers_as_onnx_runtime_does(
    weights, by_channel, trained, lowered, reference
):
    # 7 bits: with 8, ONNX Runtime's products of uint8 with int8 saturate on CPUs without VNNI
    reduced = weights == "int8"
    model = onnx.load(
        _quantized(trained, "dynamic", f"uint8 {weights}", by_channel=by_channel, reduced=reduced)
    )
    program, run = lowered(model)
    assert sum(call.op.startswith("dynamic_") and call.macs > 0 for call in program.calls) == 7
    assert program.fallbacks == ()
    for x in _data(12, 77)[0].numpy():
        # sigmoids and softmax are of another library
        np.testing.assert_allclose(run(x[None])[0], reference(model)(x[None])[0], rtol=1e-4, atol=1e-6)


def _with_integers_at_both_ends(file: Path) -> Path:
    """Return the file of a QOperator network without its first and last node, so that it takes and gives uint8."""
    model = onnx.load(file)
    nodes, graph = model.graph.node, model.graph
    given, result = nodes[0].output[0], nodes[-1].input[0]
    assert (nodes[0].op_type, nodes[-1].op_type) == ("QuantizeLinear", "DequantizeLinear")
    nodes.remove(nodes[-1])
    nodes.remove(nodes[0])
    for ends, name in ((graph.input, given), (graph.output, result)):
        ends[0].name = name
        ends[0].type.tensor_type.elem_type = onnx.TensorProto.UINT8
    onnx.save(model, file.with_stem(f"{file.stem}-integers"))
    return file.with_stem(f"{file.stem}-integers")


@pytest.mark.parametrize("name", ["raspberry-pi-4", "raspberry-pi-5"])
@pytest.mark.parametrize("form", ["QOperator", "dynamic", "uint8 at both ends"])
def test_a_board_computes_the_same_bits(form, name, trained, board, reference, tmp_path: Path):
    del board  # skips where nothing can be built for boards
    kind = form if form == "dynamic" else "QOperator"
    file, target = _quantized(trained, kind, "uint8 uint8", by_channel=False), load_target(name)
    samples = _data(8, 78)[0].numpy()
    if form == "uint8 at both ends":
        file = _with_integers_at_both_ends(file)
        samples = np.clip(np.rint(40 * samples + 128), 0, 255).astype(np.uint8)
    here = compile_onnx(file, load_target("host"), "net", tmp_path / "host")
    compile_onnx(file, target, "net", tmp_path / "board")
    (tmp_path / "in").write_bytes(samples.tobytes())
    command = ["qemu-aarch64", "-cpu", target.emulator.cpu, str(tmp_path / "board" / "bin" / "run")]
    subprocess.run([*command, str(tmp_path / "in"), str(tmp_path / "out"), str(len(samples))], check=True)
    (found,) = unpack((tmp_path / "out").read_bytes(), len(samples), here.outputs)
    on_host = HostProgram.load(tmp_path / "host", here).run_many(samples)
    if form != "dynamic":  # where sigmoids and softmax are of the board's C library
        np.testing.assert_array_equal(found, on_host.reshape(found.shape))
        assert here.integer_only
    model = onnx.load(file)
    expected = np.concatenate([reference(model)(x[None])[0] for x in samples]).reshape(found.shape)
    step = {"QOperator": 1.01 / 256, "dynamic": 1e-4, "uint8 at both ends": 1}[form]
    for ours in (found, on_host.reshape(found.shape)):
        assert ours.dtype == expected.dtype
        np.testing.assert_allclose(ours.astype(float), expected.astype(float), rtol=0, atol=step)
    assert len(np.unique(found)) > 10
