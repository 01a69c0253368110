"""PReLU on integers: a table for one slope, a kernel of its own for one slope for each channel, bit for bit."""

from __future__ import annotations

import subprocess
from fractions import Fraction
from math import floor
from pathlib import Path

import numpy as np
import onnx
import pytest
from tests.boards import BOARDS
from tests.compile.front.test_integer_patterns import Qdq

from armlet.compile.frontend.graph import PRelu
from armlet.compile.frontend.values import QuantizedTensor
from armlet.compile.kernels import elementwise
from armlet.compile.pipeline import compile_onnx
from armlet.compile.quantized import arithmetic
from armlet.compile.quantized import reference as definition
from armlet.devices.host import HostProgram
from armlet.spec.load import load_target

BEFORE = QuantizedTensor(float(np.float32(0.047)), -11)
AFTER = QuantizedTensor(float(np.float32(0.031)), -40)


def slopes_of(n: int) -> np.ndarray:
    """Small, zero, negative and large ones, as many as there are channels."""
    slopes = np.random.default_rng(n).normal(0.2, 0.4, n).astype(np.float32)
    slopes[: min(n, 4)] = np.float32([0.25, 0, -0.3, 1.7])[:n]
    return slopes


def integers(*shape: int) -> np.ndarray:
    """All numbers, where there is room for them."""
    rng, size = np.random.default_rng(sum(shape)), int(np.prod(shape))
    return rng.permutation(np.arange(size) % 256 - 128).astype(np.int8).reshape(shape)


def defined(q: np.ndarray, op: PRelu) -> np.ndarray:
    """What the written arithmetic gives for q as it lies in ONNX's order."""
    positive, negative = arithmetic.slopes(op, BEFORE, AFTER)
    channels_first = np.moveaxis(q.astype(np.int64) - BEFORE.zero, op.axis, 0)
    return np.moveaxis(definition.prelu(channels_first, positive, negative, AFTER.zero), 0, op.axis)


def test_the_definition_is_the_exact_product_rounded_half_up():
    q, op = integers(5, 256), PRelu(slopes_of(5), 0)
    positive, negative = arithmetic.slopes(op, BEFORE, AFTER)
    found = defined(q, op)
    for channel, slope in enumerate(op.slopes):
        for x, y in zip(q[channel].tolist(), found[channel].tolist(), strict=True):
            steps = x - BEFORE.zero
            multiplier = positive if steps >= 0 else int(negative.multipliers[channel])
            exact = floor(Fraction(steps * multiplier, 2**negative.shift) + Fraction(1, 2))
            assert y == min(max(exact + AFTER.zero, -128), 127)
            real = steps * BEFORE.scale * (1.0 if steps >= 0 else float(slope))
            assert abs(y - min(max(real / AFTER.scale + AFTER.zero, -128), 127)) < 0.501


@pytest.mark.parametrize("sizes", [(3, 1, 7), (1, 2, 1), (9, 3, 1), (2, 5, 40), (64, 21, 1), (1, 64, 33)])
def test_the_kernel_gives_every_bit_of_the_definition(sizes, run_kernel, vector):
    q, op = integers(*sizes), PRelu(slopes_of(sizes[1]), 1)
    positive, negative = arithmetic.slopes(op, BEFORE, AFTER)
    spec = elementwise.PRelu(*sizes, BEFORE.zero, AFTER.zero, positive, negative.shift)
    kernel = elementwise.build_prelu(spec, vector)
    found = run_kernel(kernel, q, negative.multipliers, size=q.size, dtype=np.int8)
    np.testing.assert_array_equal(found.reshape(sizes), defined(q, op))


def model_of(shape: tuple[int, ...], slopes: np.ndarray) -> onnx.ModelProto:
    net = Qdq(*shape)
    x = net.qdq("x", BEFORE.scale, BEFORE.zero)
    return net.model(net.qdq(net.node("PRelu", x, net.constant(slopes)), AFTER.scale, AFTER.zero))


FORMS = [
    ((1, 24), (24,)),
    ((1, 7, 24), (7, 1)),
    ((1, 7, 24), (24,)),
    ((1, 21, 6, 5), (1, 21, 1, 1)),
    ((1, 3, 5, 21), (21,)),
]


@pytest.mark.parametrize(("shape", "form"), FORMS)
def test_a_network_computes_on_integers_whichever_dimension_the_slopes_are_along(
    shape, form, lowered, reference
):
    slopes = slopes_of(max(form))
    model = model_of(shape, slopes.reshape(form))
    program, run = lowered(model)
    assert program.fallbacks == ()
    assert [c.precision for c in program.calls if c.op == "prelu"] == ["int8"]
    axis = len(shape) - len(form) + int(np.argmax(form))
    x = definition.dequantize(integers(*shape), BEFORE)
    wanted = definition.dequantize(defined(integers(*shape), PRelu(slopes, axis)), AFTER)
    np.testing.assert_array_equal(run(x)[0], wanted)
    np.testing.assert_allclose(wanted, reference(model)(x)[0], rtol=0, atol=1.001 * AFTER.scale)
    assert len(np.unique(wanted)) > 15


def test_one_slope_is_a_table(lowered, reference):
    model = model_of((1, 8, 4, 8), np.full((1, 1, 1, 1), 0.3, np.float32))
    program, run = lowered(model)
    assert [c.op for c in program.calls] == ["quantize", "table", "dequantize"]
    x = definition.dequantize(integers(1, 8, 4, 8), BEFORE)
    wanted = definition.dequantize(
        definition.look_up(
            integers(1, 8, 4, 8),
            definition.table(lambda v: np.where(v < 0, np.float32(0.3) * v, v), BEFORE, AFTER),
        ),
        AFTER,
    )
    np.testing.assert_array_equal(run(x)[0], wanted)
    np.testing.assert_allclose(wanted, reference(model)(x)[0], rtol=0, atol=1.001 * AFTER.scale)


def test_slopes_of_single_places_stay_float(lowered, reference):
    slopes = np.random.default_rng(1).normal(0.2, 0.3, (3, 4, 5)).astype(np.float32)
    model = model_of((1, 3, 4, 5), slopes)
    program, run = lowered(model)
    assert [f.reason for f in program.fallbacks if f.op == "PRelu"] == [
        "stays float: PRelu has no integer form"
    ]
    x = definition.dequantize(integers(1, 3, 4, 5), BEFORE)
    np.testing.assert_allclose(run(x)[0], reference(model)(x)[0], rtol=0, atol=1.001 * AFTER.scale)


@pytest.mark.parametrize("name", BOARDS)
def test_a_board_computes_the_same_bits(name: str, board, tmp_path: Path):
    del board  # skips where nothing can be built for boards
    shape, slopes, target = (1, 21, 6, 5), slopes_of(21), load_target(name)
    onnx.save(model_of(shape, slopes.reshape(1, 21, 1, 1)), tmp_path / "model.onnx")
    q = np.stack([np.roll(integers(*shape[1:]), n) for n in range(8)])
    samples = definition.dequantize(q, BEFORE)
    samples.tofile(tmp_path / "inputs")
    here = compile_onnx(tmp_path / "model.onnx", load_target("host"), "net", tmp_path / "host")
    there = compile_onnx(tmp_path / "model.onnx", target, "net", tmp_path / "board")
    assert here.fallbacks == there.fallbacks == ()

    command = [target.emulator.program, "-cpu", target.emulator.cpu, str(tmp_path / "board" / "bin" / "run")]
    subprocess.run([*command, str(tmp_path / "inputs"), str(tmp_path / "outputs"), "8"], check=True)

    wanted = definition.dequantize(defined(q, PRelu(slopes, 1)), AFTER)
    found = np.fromfile(tmp_path / "outputs", np.float32).reshape(wanted.shape)
    np.testing.assert_array_equal(found, wanted)
    on_host = HostProgram.load(tmp_path / "host", here).run_many(samples)
    np.testing.assert_array_equal(on_host, wanted)
