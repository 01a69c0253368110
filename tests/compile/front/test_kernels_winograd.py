"""Winograd convolution equals sums in float64, and is taken where it saves work."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from armlet.compile.emit.kernels import build_kernels
from armlet.compile.kernels import conv2d, winograd
from armlet.compile.kernels.epilogue import FloatClamp, Requantize
from armlet.compile.kernels.loops import Vector, vector_of
from armlet.compile.kernels.select_winograd import tile_for
from armlet.compile.layout.packing import pack_conv2d
from armlet.spec.load import load_target

# (height, width, channels, outputs) with the border: one tile, tiles that overlap, odd counts, several blocks
SHAPES = [(6, 6, 16, 16), (9, 7, 3, 13), (16, 16, 16, 32), (30, 31, 33, 40), (8, 18, 1, 1)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("tile", [2, 4])
def test_equals_a_sum_in_float64(shape, tile, vector: Vector, run_kernel):
    height, width, channels, outputs = shape
    rng = np.random.default_rng(3)
    x = rng.normal(size=(channels, height, width)).astype(np.float32)
    weight = rng.normal(size=(outputs, channels, 3, 3)).astype(np.float32)
    bias = rng.normal(size=outputs).astype(np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(x.astype(np.float64), (3, 3), (1, 2))
    total = np.einsum("cyxhw,ochw->yxo", windows, weight) + bias
    expected = np.clip(total, -4.0, 30.0)
    spec = winograd.Winograd(height, width, channels, outputs, tile, FloatClamp(-4.0, 30.0))
    cut = conv2d.tile_of(spec.products, vector)
    packed = np.concatenate([pack_conv2d(w, spec.products, cut) for w in winograd.transformed(weight, tile)])
    function = winograd.build(spec, vector)
    result = run_kernel(
        function, x.transpose(1, 2, 0), packed, bias, size=expected.size, dtype=np.float32
    ).reshape(expected.shape)
    np.testing.assert_allclose(result, expected, rtol=0, atol=4e-6 * np.abs(total).max())


@pytest.mark.parametrize(
    ("conv", "tile"),
    [
        ((58, 58, 64, 64, (3, 3), (1, 1), 1), 4),
        (
            (9, 9, 512, 512, (3, 3), (1, 1), 1),
            4,
        ),  # four times as many weights, read while others are computed with
        (
            (6, 6, 512, 512, (3, 3), (1, 1), 1),
            2,
        ),  # one tile of 4 × 4: reading its weights takes longer than other ways
        ((5, 9, 64, 64, (3, 3), (1, 1), 1), 2),  # three rows hold no tile of four
        ((30, 30, 1, 16, (3, 3), (1, 1), 1), None),  # one channel: the transforms cost more than they save
        ((58, 58, 64, 64, (3, 3), (2, 2), 1), None),
        ((58, 58, 64, 64, (3, 3), (1, 1), 2), None),
        ((58, 58, 64, 64, (1, 1), (1, 1), 1), None),
    ],
)
def test_it_is_taken_where_it_saves_work(conv, tile):
    whole, half = (vector_of(load_target("raspberry-pi-5"), real) for real in ("float32", "float16"))
    assert tile_for(conv2d.Conv2d(*conv, FloatClamp(None, None)), whole) == tile
    # A tile of four would round too much.
    assert tile_for(conv2d.Conv2d(*conv, FloatClamp(None, None)), half) == (tile and 2)
    assert tile_for(conv2d.Conv2d(*conv, Requantize(32, 0, -128, 127)), whole) is None


@pytest.mark.parametrize("name", ["x86-64-vnni", "raspberry-pi-4", "raspberry-pi-2"])
def test_it_is_emitted_for_vectors_of_every_width(name, tmp_path):
    import tvm

    target = load_target(name)
    spec = winograd.Winograd(16, 16, 32, 64, 4, FloatClamp(0.0, None))
    module = tvm.IRModule({"kernel": winograd.build(spec, vector_of(target))})
    (kernel,) = build_kernels(module, target, "net", tmp_path / "kernels.o")
    assert sum(kernel.scratch_bytes) == 4 * 36 * spec.block * (32 + 64)


def _layer(weight: np.ndarray) -> object:
    """A convolution with a border and a bias, then ReLU, on a picture of 14 × 14."""
    outputs, channels, *_ = weight.shape
    constants = {"w": weight, "b": np.linspace(-1, 1, outputs, dtype=np.float32)}
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w", "b"], ["c"], name="conv", pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["c"], ["y"], name="relu"),
        ],
        "net",
        [value("x", TensorProto.FLOAT, (1, channels, 14, 14))],
        [value("y", TensorProto.FLOAT, (1, outputs, 14, 14))],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def test_a_small_program_keeps_its_weights_as_they_are_and_gives_the_same_answers(lowered, reference):
    rng = np.random.default_rng(5)
    weight = (rng.normal(size=(32, 16, 3, 3)) / 12).astype(np.float32)
    x = rng.normal(size=(1, 16, 14, 14)).astype(np.float32)
    model = _layer(weight)
    fast, run_fast = lowered(model)
    small, run_small = lowered(model, small=True)
    assert [c.schedule for c in fast.calls if c.op == "conv2d"] == ["winograd 4"]
    assert [c.schedule for c in small.calls if c.op == "conv2d"] == ["singles"]
    (expected,) = reference(model)(x)
    # sums of 144 products of both signs: errors of a few units of 6e-8 of the largest, times the transforms' gain
    np.testing.assert_allclose(run_small(x)[0], expected, rtol=0, atol=1e-6 * np.abs(expected).max())
    np.testing.assert_allclose(run_fast(x)[0], expected, rtol=0, atol=4e-6 * np.abs(expected).max())

    weight[3, 2, 1, 1] += 0.1
    changed = np.abs(lowered(_layer(weight))[1](x)[0] - expected).max((0, 2, 3))
    assert changed[3] > 0.05
    assert np.delete(changed, 3).max() < 1e-4
