"""Attention and recurrent layers in integers: the same bits on this machine and on boards with and without sdot."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
from tests.boards import BOARDS
from tests.compile.front.test_attention import attention
from tests.compile.front.test_integer_patterns import Qdq
from tests.compile.front.test_integer_recurrent import CELLS, layer_model

from armlet.compile.pipeline import compile_onnx
from armlet.devices.host import HostProgram
from armlet.spec.load import load_target
from armlet.spec.target import Target


def attention_model() -> onnx.ModelProto:
    net = Qdq(1, 10, 12)
    return net.model(attention(net))


MODELS = {"attention": attention_model} | {
    cell: lambda cell=cell: layer_model(cell, (10, 12, 21), "bidirectional", parts="y", batch_first=True)
    for cell in CELLS
}


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    onnx.save(MODELS[request.param](), path)
    return path


@pytest.fixture(scope="module")
def samples() -> np.ndarray:
    """Ordinary values, tokens that are all alike, and values far outside the range."""
    generator = np.random.default_rng(31)
    ordinary = generator.normal(0, 1, (40, 10, 12))
    alike = np.broadcast_to(generator.normal(0, 1, (10, 1, 12)), (10, 10, 12))
    extreme = generator.choice([-1e30, -np.inf, 0, np.inf, 1e30], (10, 10, 12))
    return np.concatenate([ordinary, alike, extreme]).astype(np.float32)


@pytest.fixture(scope="module")
def on_host(model: Path, samples: np.ndarray, host: Target, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("host-parts")
    return HostProgram.load(folder, compile_onnx(model, host, "net", folder)).run_many(samples)


@pytest.mark.parametrize("name", BOARDS)
def test_a_board_computes_the_same_bits(
    name: str, model: Path, samples: np.ndarray, on_host, board: Target, tmp_path: Path
):
    target = load_target(name)
    compiled = compile_onnx(model, target, "net", tmp_path)
    samples.tofile(tmp_path / "inputs")
    command = [target.emulator.program, "-cpu", target.emulator.cpu, str(tmp_path / "bin" / "run")]
    subprocess.run(
        [*command, str(tmp_path / "inputs"), str(tmp_path / "outputs"), str(len(samples))], check=True
    )
    outputs = np.fromfile(tmp_path / "outputs", np.float32).reshape(on_host.shape)
    np.testing.assert_array_equal(outputs.view(np.uint32), on_host.view(np.uint32))
    assert len(np.unique(outputs)) > 100
    assert compiled.integer_only


def test_32_bit_code_loads_vectors_at_once(model: Path, board32: Target, tmp_path: Path):
    """What went through the stack would be loaded from there by instructions that state an alignment."""
    compile_onnx(model, board32, "net", tmp_path)
    command = ["arm-linux-gnueabihf-objdump", "-d", str(tmp_path / "src" / "net_kernels.o")]
    code = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    loads = re.findall(r"vld1\.(?:8|16)\s.*", code)
    assert len(loads) > 10
    assert not [load for load in loads if ":64]" in load or ":128]" in load]
    assert "vmovl.s8" in code or "vmull.s8" in code
