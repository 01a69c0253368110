"""What a file leaves open is fixed as it is told, and nothing else of the file changes."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.compile.front.test_qoperator import Operator

from armlet.compile.frontend.shapes import fix_shapes
from armlet.errors import UnsupportedOperator, UsageError
from armlet.stages.imported import import_onnx

GENERATOR = np.random.default_rng(5)
TABLE = GENERATOR.standard_normal((50, 16)).astype(np.float32)
MATRIX = GENERATOR.standard_normal((16, 16)).astype(np.float32)


def model(nodes, inputs, outputs, functions=()):
    def value(name, kind, shape):
        return helper.make_tensor_value_info(name, kind, shape)

    weights = [numpy_helper.from_array(TABLE, "table"), numpy_helper.from_array(MATRIX, "matrix")]
    graph = helper.make_graph(
        nodes, "net", [value(*i) for i in inputs], [value(*o) for o in outputs], weights
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9, functions=functions)


def sentence_model():
    nodes = [
        helper.make_node("Gather", ["table", "tokens"], ["rows"], name="embed"),
        helper.make_node("Add", ["rows", "offset"], ["sum"], name="add"),
        helper.make_node("MatMul", ["sum", "matrix"], ["y"], name="mix"),
    ]
    inputs = [
        ("tokens", TensorProto.INT64, ("batch", "time")),
        ("offset", TensorProto.FLOAT, ("batch", "time", 16)),
    ]
    return model(nodes, inputs, [("y", TensorProto.FLOAT, ("batch", "time", 16))])


def shape(value):
    return [d.dim_value for d in value.type.tensor_type.shape.dim]


def test_an_extent_of_one_name_is_given_once_and_tokens_become_int32(tmp_path, reference):
    onnx.save(sentence_model(), tmp_path / "in.onnx")
    fix_shapes(tmp_path / "in.onnx", {"tokens": (1, 7)}, tmp_path / "out.onnx")
    fixed = onnx.load(tmp_path / "out.onnx")
    assert [shape(i) for i in fixed.graph.input] == [[1, 7], [1, 7, 16]]
    assert [shape(o) for o in fixed.graph.output] == [[1, 7, 16]]
    assert fixed.graph.input[0].type.tensor_type.elem_type == TensorProto.INT32
    tokens, offset = (
        GENERATOR.integers(0, 50, (1, 7)),
        GENERATOR.standard_normal((1, 7, 16)).astype(np.float32),
    )
    (before,) = reference(sentence_model())(tokens, offset)
    (after,) = reference(fixed)(tokens.astype(np.int32), offset)
    np.testing.assert_array_equal(before, after)


def test_functions_are_inlined_and_weights_beside_the_file_are_taken_in(tmp_path, reference):
    opsets = [helper.make_opsetid("", 18)]
    twice = helper.make_function(
        "own", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], opset_imports=opsets
    )
    nodes = [
        helper.make_node("MatMul", ["x", "matrix"], ["m"]),
        helper.make_node("Twice", ["m"], ["y"], domain="own"),
    ]
    ends = [("x", TensorProto.FLOAT, (1, 16))], [("y", TensorProto.FLOAT, (1, 16))]
    onnx.save(
        model(nodes, *ends, functions=[twice]), tmp_path / "in.onnx", save_as_external_data=True, location="weights",
        size_threshold=0,
    )  # fmt: skip
    fix_shapes(tmp_path / "in.onnx", {}, tmp_path / "out.onnx")
    (tmp_path / "weights").unlink()
    fixed = onnx.load(tmp_path / "out.onnx")
    assert [node.op_type for node in fixed.graph.node] == ["MatMul", "Add"]
    x = GENERATOR.standard_normal((1, 16)).astype(np.float32)
    np.testing.assert_allclose(reference(fixed)(x)[0], 2 * x @ MATRIX, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("inputs", "given", "message"),
    [
        ((None, 3), {}, r"leaves extents open: \[\?, 3\] \(give it: --shape x=1,3\)"),
        (("n", "t"), {}, r"\[n, t\] \(give it: --shape x=1,t with a number for each name\)"),
        (("n", 3), {"x": (1, 3, 4)}, r"has 2 dimensions, not 3: \[n, 3\]"),
        (("n", 3), {"x": (1, 4)}, r"is \[n, 3\], which \[1, 4\] does not fit"),
        (("n", 3), {"x": (2, 3)}, "the first extent is the batch"),
        (None, {}, "has no shape"),
        ((1, 3), {"z": (1, 3)}, "has no input 'z'"),
    ],
)
def test_what_does_not_fit_is_named_with_what_to_give(inputs, given, message, tmp_path):
    made = model(
        [helper.make_node("Relu", ["x"], ["y"])],
        [("x", TensorProto.FLOAT, inputs)],
        [("y", TensorProto.FLOAT, None)],
    )
    onnx.save(made, tmp_path / "in.onnx")
    with pytest.raises(UsageError, match=message):
        fix_shapes(tmp_path / "in.onnx", given, tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()


def test_types_that_no_program_takes_and_shapes_that_depend_on_values_are_refused(tmp_path):
    half = model(
        [helper.make_node("Relu", ["x"], ["y"])], [("x", TensorProto.FLOAT16, (1, 3))],
        [("y", TensorProto.FLOAT16, (1, 3))],
    )  # fmt: skip
    found = model(
        [helper.make_node("NonZero", ["x"], ["y"])], [("x", TensorProto.FLOAT, (1, 3))],
        [("y", TensorProto.INT64, None)],
    )  # fmt: skip
    for made, message in ((half, "'x' is .* of float16"), (found, "its shape depends on values")):
        onnx.save(made, tmp_path / "in.onnx")
        with pytest.raises(UsageError, match=message):
            fix_shapes(tmp_path / "in.onnx", {}, tmp_path / "out.onnx")


def _joined(op: str) -> Operator:
    """A QLinearAdd of two values whose batch is open, and an operator of ONNX Runtime's behind it."""
    net = Operator("uint8", ("batch", 6, 5), ("batch", 6, 5))
    one, two = net.scale(0.03, 7), net.scale(0.05, -30)
    net.node("QLinearAdd", "a", *one, "b", *two, *one, output="sum")
    net.node(op, "sum", *one, *net.scale(1 / 256, -128))
    return net


def test_shapes_behind_onnx_runtimes_own_operators_are_told_and_those_stay(tmp_path, reference):
    onnx.save(_joined("QLinearSigmoid").model(("batch", 6, 5)), tmp_path / "in.onnx")
    (tmp_path / "made").mkdir()
    found, (a, b) = import_onnx(tmp_path / "in.onnx", {"a": (1, 6, 5)}, None, tmp_path / "made")
    assert found.quantized
    assert [(info.shape, info.dtype) for info in found.outputs] == [((1, 6, 5), "uint8")]
    fixed = onnx.load(tmp_path / "made" / "in.onnx")
    assert [node.op_type for node in fixed.graph.node] == ["QLinearAdd", "QLinearSigmoid"]
    before, after = (reference(m)(a[:1], b[:1])[0] for m in (onnx.load(tmp_path / "in.onnx"), fixed))
    np.testing.assert_array_equal(before, after)


def test_an_operator_of_another_domain_is_named(tmp_path):
    onnx.save(_joined("FastGelu").model(("batch", 6, 5)), tmp_path / "in.onnx")
    with pytest.raises(UnsupportedOperator, match=r"layer.y \(com.microsoft.FastGelu\): no such operator"):
        fix_shapes(tmp_path / "in.onnx", {"a": (1, 6, 5)}, tmp_path / "out.onnx")
