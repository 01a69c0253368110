"""Normalisations of groups and of instances become rows of layer normalisation, as ONNX Runtime and torch answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from tests.boards import requires_board
from tests.unit.test_own_module import built

from armlet.compile.pipeline import compile_onnx
from armlet.data.splits import Samples
from armlet.devices.emulator import Emulator
from armlet.devices.host import HostProgram
from armlet.errors import UnsupportedOperator
from armlet.export import export_onnx
from armlet.spec.load import load_target

GROUPS = """
from torch import nn

def Net():
    return nn.Sequential(
        nn.Conv2d(1, 12, 3), nn.GroupNorm(3, 12), nn.ReLU(), nn.Conv2d(12, 6, 3, stride=2),
        nn.InstanceNorm2d(6, affine=True), nn.ReLU(), nn.Flatten(), nn.Linear(96, 4),
    )
"""


def model(
    op: str, shape: tuple[int, ...], n_scales: int, opset: int, **attributes: object
) -> onnx.ModelProto:
    rng = np.random.default_rng(n_scales)
    constants = [numpy_helper.from_array(rng.normal(1, 1, n_scales).astype(np.float32), n) for n in "sb"]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy"]
    node = helper.make_node(op, ["x", "s", "b"], ["y"], name="norm", **attributes)
    graph = helper.make_graph([node], "net", ends[:1], ends[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


@pytest.mark.parametrize(
    "shape", [(1, 12, 5, 7), (1, 12, 1, 1), (1, 12, 9), (1, 12, 2, 3, 4), (1, 24, 16, 16)]
)
@pytest.mark.parametrize(("groups", "opset"), [(1, 21), (4, 21), (None, 21), (None, 13)])
def test_they_equal_onnx_runtime(shape, groups, opset, lowered, reference):
    """Without a number of groups: InstanceNormalization."""
    if groups is None:
        made = model("InstanceNormalization", shape, shape[1], opset, epsilon=1e-3)
    else:
        made = model("GroupNormalization", shape, shape[1], opset, num_groups=groups, epsilon=1e-3)
    program, run = lowered(made)
    assert program.fallbacks == ()
    assert [(c.op, c.layer) for c in program.calls if c.op == "layer_norm"] == [("layer_norm", "norm")]
    x = (3 + np.random.default_rng(0).normal(0, 2, shape)).astype(np.float32)
    expected = reference(made)(x)[0]
    np.testing.assert_allclose(run(x)[0], expected, rtol=2e-5, atol=2e-5)
    assert shape[2:] == (1, 1) or np.ptp(expected) > 1


def test_what_can_not_be_is_refused(lowered):
    two = model("InstanceNormalization", (2, 4, 3), 4, 18)
    with pytest.raises(
        UnsupportedOperator, match=r"norm \(InstanceNormalization\): its input is float32 \[2, 4, 3\]"
    ):
        lowered(two)


@requires_board
def test_a_module_of_ones_own_with_both_answers_as_in_torch_here_and_on_a_board(tmp_path: Path):
    network = built(GROUPS)
    with torch.no_grad():
        for parameter in network.module.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    x = np.random.default_rng(1).normal(0.5, 1, (6, 1, 12, 12)).astype(np.float32)
    export_onnx(network, Samples((x,), np.zeros(6, np.int64)), tmp_path)
    with torch.no_grad():
        expected = network.module(torch.from_numpy(x)).numpy()
    for name in ("host", "raspberry-pi-4", "raspberry-pi-2"):
        target, folder = load_target(name), tmp_path / name
        compiled = compile_onnx(tmp_path / "model.onnx", target, "net", folder)
        assert compiled.fallbacks == ()
        if name == "host":
            found = HostProgram.load(folder, compiled).run_many(x)
        else:
            found = Emulator(target).run(folder / "bin" / "run", x, compiled.outputs)
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)
