"""What can't be compiled is refused before anything is lowered, with every node and its reason in one message."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from armlet.compile.pipeline import lower
from armlet.errors import UnsupportedOperator, UsageError
from armlet.spec.load import load_target


def _lower(folder, nodes, constants=None, shape=(1, 4, 8, 8), opset=18, output=TensorProto.FLOAT):
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", output, None)],
        [numpy_helper.from_array(v, n) for n, v in (constants or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.save(model, folder / "net.onnx")
    return lower(folder / "net.onnx", load_target("host"))


def test_every_unknown_operator_is_named_with_its_layer(tmp_path):
    nodes = [
        helper.make_node("Selu", ["x"], ["a"], name="block1.activation"),
        helper.make_node("Relu", ["a"], ["b"], name="block1.relu"),
        helper.make_node("Celu", ["b"], ["y"], name="block2.activation"),
    ]
    with pytest.raises(UnsupportedOperator) as caught:
        _lower(tmp_path, nodes)
    assert str(caught.value) == (
        "net.onnx has nodes that can't be compiled:\n"
        "  block1.activation (Selu): no such operator is known\n"
        "  block2.activation (Celu): no such operator is known"
    )


WEIGHT = {"w": np.ones((4, 4, 3, 3), np.float32)}


@pytest.mark.parametrize(
    ("node", "constants", "reason"),
    [
        (helper.make_node("Conv", ["x", "w"], ["y"], dilations=[2, 2]), WEIGHT, "it is dilated"),
        (helper.make_node("Conv", ["x", "x"], ["y"]), {}, "its input 1 is not a constant"),
        (
            helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
            {},
            "ceil_mode",
        ),
        (
            helper.make_node("AveragePool", ["x"], ["y"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
            {},
            "count_include_pad",
        ),
    ],
)
def test_a_known_operator_in_an_unknown_form_is_refused(node, constants, reason, tmp_path):
    node.name = "layer"
    with pytest.raises(UnsupportedOperator, match=reason):
        _lower(tmp_path, [node], constants)


def test_a_change_of_the_element_type_is_refused(tmp_path):
    node = helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT16)
    with pytest.raises(UnsupportedOperator, match="it turns float32 into float16"):
        _lower(tmp_path, [node], output=TensorProto.FLOAT16)


def test_activations_of_16_bits_are_refused(tmp_path):
    scale = {"s": np.float32(0.1), "z": np.uint16(3)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="q"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], name="d"),
    ]
    with pytest.raises(UnsupportedOperator, match="quantized to uint16, not to 8 bits"):
        _lower(tmp_path, nodes, scale, opset=21)


def test_a_batch_that_is_not_one_is_refused_by_convolutions(tmp_path):
    with pytest.raises(UnsupportedOperator, match=r"shape \[2, 4, 8, 8\], not \[1, C, H, W\]"):
        _lower(tmp_path, [helper.make_node("Conv", ["x", "w"], ["y"])], WEIGHT, (2, 4, 8, 8))


def test_a_shape_that_is_not_static_is_refused(tmp_path):
    with pytest.raises(UnsupportedOperator, match="the shape of x is not static"):
        _lower(tmp_path, [helper.make_node("Relu", ["x"], ["y"])], shape=("batch", 4))


def test_an_unknown_version_of_the_operators_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"operators of version 11 \(13 to 21 are read\)"):
        _lower(tmp_path, [helper.make_node("Relu", ["x"], ["y"])], opset=11)


def test_a_file_that_is_not_onnx_is_refused(tmp_path):
    (tmp_path / "net.onnx").write_bytes(b"no model at all")
    with pytest.raises(UsageError, match="can't be read as ONNX"):
        lower(tmp_path / "net.onnx", load_target("host"))
