"""INT8 convolutions and products of matrices equal the NumPy reference bit for bit on boards, by each instruction."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from armlet.compile.emit import emit_program
from armlet.compile.kernels import conv2d, depthwise, integer_matmul
from armlet.compile.kernels.depthwise_dot import block_of
from armlet.compile.kernels.epilogue import Requantize
from armlet.compile.kernels.loops import Vector, vector_of
from armlet.compile.kernels.matmul import MatMul
from armlet.compile.layout.packing import pack_conv2d, pack_depthwise, starts
from armlet.compile.lowered import LoweredProgram
from armlet.compile.quantized import reference
from armlet.compile.quantized.arithmetic import requantization
from armlet.devices.emulator import Emulator
from armlet.spec.load import load_target
from armlet.spec.target import Target

if TYPE_CHECKING:
    import tvm

# (height, width, channels, outputs, kernel, stride, groups) and the reduction step of i8mm, where dotprod has sdot:
# one pixel, two and many, odd numbers of them; runs shorter than a step, of one, and no multiple of it; blocks of
# channels that overlap; strides and groups; runs of three and two; depthwise, with columns that a stride leaves out.
SHAPES = {
    (1, 1, 64, 48, (1, 1), (1, 1), 1): "sdot",
    (6, 1, 16, 8, (1, 1), (1, 1), 1): "sdot",
    (1, 5, 7, 12, (1, 1), (1, 1), 1): "sdot",
    (1, 2, 8, 4, (1, 1), (1, 1), 1): "smmla",
    (1, 3, 9, 5, (1, 1), (1, 1), 1): "smmla",
    (1, 13, 40, 10, (1, 1), (1, 1), 1): "smmla",
    (1, 49, 24, 64, (1, 1), (1, 1), 1): "smmla",
    (8, 9, 3, 13, (3, 3), (2, 2), 1): "smmla",
    (6, 11, 16, 32, (3, 3), (1, 1), 1): "smmla",
    (7, 8, 13, 27, (3, 2), (1, 2), 1): "smmla",
    (6, 6, 32, 12, (3, 3), (1, 1), 2): "smmla",
    (5, 7, 16, 14, (3, 3), (2, 1), 2): "smmla",
    (6, 7, 1, 16, (3, 3), (1, 1), 1): "sdot",
    (6, 8, 1, 5, (1, 2), (2, 3), 1): "sdot",
    (5, 9, 16, 16, (3, 3), (1, 1), 16): "sdot",
    (7, 8, 21, 21, (5, 5), (2, 2), 21): "sdot",
    (6, 9, 40, 40, (2, 2), (1, 3), 40): "sdot",
}


def _operands(shape, seed: int, least: int):
    """Return weight, bias and requantization of a layer; rows of the weight reach both ends of int8."""
    *_, channels, outputs, kernel, _, groups = shape
    generator = np.random.default_rng(seed)
    weight = generator.integers(least, 128, (outputs, channels // groups, *kernel)).astype(np.int8)
    weight[0], weight[-1] = least, 127
    bias = generator.integers(-5000, 5000, outputs).astype(np.int32)
    return weight, bias, requantization(generator.uniform(0.05, 1.0, outputs) / np.sqrt(weight[0].size) / 100)


def _slack(shape, vector: Vector) -> int:
    return conv2d.slack_for(shape[2] * shape[4][1], vector) if shape[6] == 1 else 0


def _kernel(shape, epilogue: Requantize, operands, vector: Vector):
    """Return the step of a layer's kernel, the kernel, and the constants that it takes."""
    height, width, channels, outputs, kernel, stride, groups = shape
    weight, bias, factors = operands
    if groups == channels == outputs > 1:
        depth = (height, width, channels, kernel, stride, epilogue, depthwise.largest_weight(weight))
        spec = depthwise.Depthwise(*depth)
        block = block_of(spec, vector)
        constants = pack_depthwise(weight, bias, factors, block)
        return "vector" if block is None else block.step, depthwise.build(spec, vector), constants
    spec = conv2d.Conv2d(*shape, epilogue, weight.min() == -128, slack=_slack(shape, vector))
    tile = conv2d.tile_of(spec, vector)
    constants = pack_conv2d(weight, spec, tile), starts(bias, weight, tile), factors
    return tile.step, conv2d.build(spec, vector), constants


def _program(wrap: Callable[[tvm.IRModule], LoweredProgram], target: Target, least: int):
    """Return a program with one convolution for each shape, their steps, and a function for what it should answer."""
    from tvm import relax

    vector, origin, zero, limits = vector_of(target), -9, 5, (-100, 127)
    builder, parameters, steps, layers = relax.BlockBuilder(), [], [], []
    for seed, shape in enumerate(SHAPES):
        size = prod(shape[:3]) + _slack(shape, vector)
        parameters.append(relax.Var(f"x{seed}", relax.TensorType((1, size), "int8")))
        layers.append((shape, *_operands(shape, seed, least)))
    with builder.function("main", parameters):
        results = []
        for x, (shape, weight, bias, factor) in zip(parameters, layers, strict=True):
            folded = (bias - origin * weight.astype(np.int32).sum((1, 2, 3))).astype(np.int32)
            epilogue = Requantize(factor.shift, zero, *limits)
            step, function, constants = _kernel(shape, epilogue, (weight, folded, factor.multipliers), vector)
            steps.append(step)
            kernel = builder.add_func(function, f"conv{len(steps)}")
            size = int(function.params[-1].shape[0])
            arguments = relax.Tuple([x, *map(relax.const, constants)])
            results.append(
                builder.emit(relax.call_tir(kernel, arguments, relax.TensorType((1, size), "int8")))
            )
        builder.emit_func_output(relax.Tuple(results))

    def expected(inputs: tuple[np.ndarray, ...]) -> list[np.ndarray]:
        answers = []
        for values, (shape, weight, bias, factor) in zip(inputs, layers, strict=True):
            pictures = (
                values[:, : prod(shape[:3])].reshape(-1, *shape[:3]).transpose(0, 3, 1, 2).astype(np.int32)
                - origin
            )
            sums = [reference.conv2d(picture, weight, bias, *shape[5:]) for picture in pictures]
            rounded = np.stack([reference.requantize(s, factor, zero, limits) for s in sums])
            answers.append(rounded.transpose(0, 2, 3, 1).reshape(len(values), -1))
        return answers

    return wrap(builder.get()), steps, expected


@pytest.mark.parametrize("least", [-127, -128])
@pytest.mark.parametrize("name", ["raspberry-pi-4", "raspberry-pi-5", "aws-graviton3"])
def test_every_vector_unit_equals_the_reference_bit_for_bit(
    name: str, least: int, board: Target, wrap: Callable[[tvm.IRModule], LoweredProgram], tmp_path: Path
):
    target = load_target(name)
    program, steps, expected = _program(wrap, target, least)
    compiled = emit_program([program], target, "net", tmp_path)
    generator = np.random.default_rng(99)
    inputs = tuple(generator.integers(-128, 128, (9, *i.shape[1:])).astype(np.int8) for i in program.inputs)
    for values in inputs:
        values[0], values[1] = -128, 127  # the largest sums that there are

    outputs = Emulator(target).run_all(tmp_path / "bin" / "run", inputs, compiled.outputs)

    short, plain = ("pairs", "sadalp") if least == -127 else ("singles", "singles")
    of_unit = {
        "raspberry-pi-4": [
            "vector" if groups == channels > 1 else short if channels * kernel[1] < 4 else plain
            for _, _, channels, _, kernel, _, groups in SHAPES
        ],
        "raspberry-pi-5": ["sdot"] * len(SHAPES),
    }
    assert steps == of_unit.get(name, list(SHAPES.values()))
    for shape, output, answer in zip(SHAPES, outputs, expected(inputs), strict=True):
        np.testing.assert_array_equal(output, answer, err_msg=str(shape))
        assert len(np.unique(answer)) > 30


def test_a_board_rounds_accumulators_of_any_size_exactly_at_every_shift(
    board: Target, wrap: Callable[[tvm.IRModule], LoweredProgram], tmp_path: Path
):
    from tvm import relax

    target = load_target("raspberry-pi-4")
    vector, channels, generator = vector_of(target), 32, np.random.default_rng(5)
    x = relax.Var("x", relax.TensorType((1, 4), "int8"))
    builder, results, answers = relax.BlockBuilder(), [], []
    with builder.function("main", [x]):
        for shift in (31, 32, 33, 37, 50, 51, 62):
            for zero in (-128, -3, 127):
                bias = generator.integers(-(2**30) + 1, 2**30, channels).astype(np.int32)
                multipliers = generator.integers(2**30, 2**31, channels).astype(np.int32)
                tie = min(2 ** (shift - 31), 2**30 - 2)  # times 2^30 it is half of 2^shift
                bias[:7] = [tie - 1, tie, tie + 1, 1 - tie, -tie, -tie - 1, 1]
                multipliers[:7] = 2**30
                factor = reference.FixedPoint(multipliers, shift)
                sums = bias[:, None, None].astype(np.int64)
                answers.append(reference.requantize(sums, factor, zero, (-128, 120)).reshape(1, -1))
                spec = conv2d.Conv2d(1, 1, 4, channels, (1, 1), (1, 1), 1, Requantize(shift, zero, -128, 120))
                packed = pack_conv2d(
                    np.zeros((channels, 4, 1, 1), np.int8), spec, conv2d.tile_of(spec, vector)
                )
                kernel = builder.add_func(conv2d.build(spec, vector), f"conv{len(results)}")
                arguments = relax.Tuple([x, *map(relax.const, (packed, bias, multipliers))])
                type_ = relax.TensorType((1, channels), "int8")
                results.append(builder.emit(relax.call_tir(kernel, arguments, type_)))
        builder.emit_func_output(relax.Tuple(results))
    compiled = emit_program([wrap(builder.get())], target, "net", tmp_path)
    inputs = (np.zeros((1, 4), np.int8),)

    outputs = Emulator(target).run_all(tmp_path / "bin" / "run", inputs, compiled.outputs)

    np.testing.assert_array_equal(np.stack(outputs), np.stack(answers))


# (batches, rows, inner, columns): odd numbers of rows, runs that are no multiple of a step, blocks that overlap
PRODUCTS = [(3, 9, 21, 13), (2, 4, 8, 4), (1, 17, 40, 30), (4, 10, 9, 64)]


@pytest.mark.parametrize("zeros", [(-9, 5), (3, 0)])
@pytest.mark.parametrize(("name", "step"), [("raspberry-pi-5", "sdot"), ("aws-graviton3", "smmla")])
def test_products_of_two_values_equal_the_reference_bit_for_bit(
    name: str,
    step: str,
    zeros: tuple[int, int],
    board: Target,
    wrap: Callable[[tvm.IRModule], LoweredProgram],
    tmp_path: Path,
):
    from tvm import relax

    target = load_target(name)
    factor = requantization(np.array([0.0007]))
    epilogue = Requantize(factor.shift, 4, -128, 127)
    builder, parameters, specs = relax.BlockBuilder(), [], []
    for number, (batches, rows, inner, columns) in enumerate(PRODUCTS):
        specs.append(MatMul(batches, rows, inner, columns, epilogue, zeros, int(factor.multipliers[0])))
        for letter, size in (("a", batches * rows * inner), ("b", batches * inner * columns)):
            parameters.append(relax.Var(f"{letter}{number}", relax.TensorType((1, size), "int8")))
    with builder.function("main", parameters):
        results = []
        for number, spec in enumerate(specs):
            assert integer_matmul.tile_of(spec, vector_of(target)).step == step
            kernel = builder.add_func(integer_matmul.build(spec, vector_of(target)), f"matmul{number}")
            type_ = relax.TensorType((1, spec.batches * spec.rows * spec.columns), "int8")
            arguments = relax.Tuple(parameters[2 * number : 2 * number + 2])
            results.append(builder.emit(relax.call_tir(kernel, arguments, type_)))
        builder.emit_func_output(relax.Tuple(results))
    program = wrap(builder.get())
    compiled = emit_program([program], target, "net", tmp_path)
    generator = np.random.default_rng(98)
    inputs = tuple(generator.integers(-128, 128, (6, *i.shape[1:])).astype(np.int8) for i in program.inputs)
    for values in inputs:
        values[0], values[1] = -128, 127

    outputs = Emulator(target).run_all(tmp_path / "bin" / "run", inputs, compiled.outputs)

    for number, (spec, output) in enumerate(zip(specs, outputs, strict=True)):
        a = inputs[2 * number].reshape(6, spec.batches, spec.rows, spec.inner).astype(np.int64) - zeros[0]
        b = (
            inputs[2 * number + 1].reshape(6, spec.batches, spec.inner, spec.columns).astype(np.int64)
            - zeros[1]
        )
        wanted = reference.requantize(reference.matmul(a, b), factor, 4, (-128, 127))
        np.testing.assert_array_equal(output, wanted.reshape(output.shape), err_msg=str(PRODUCTS[number]))
        assert len(np.unique(wanted)) > 30
