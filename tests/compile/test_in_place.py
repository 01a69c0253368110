"""A result that lies over an input has the same bits as one with memory of its own."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from tests.boards import BOARDS
from tests.compile.front.test_lower_networks import Net
from tests.compile.test_emit_parts import attention_model

from armlet.artifacts import Compiled
from armlet.compile import emit, link
from armlet.compile.emit.kernels import PlainKernel, build_kernels, build_variants
from armlet.compile.kernels import elementwise as el
from armlet.compile.kernels import layer_norm, softmax
from armlet.compile.kernels.epilogue import FloatClamp, Requantize
from armlet.compile.kernels.loops import Vector, vector_of
from armlet.compile.pipeline import compile_onnx
from armlet.compile.quantized.arithmetic import exponentials, normalization
from armlet.devices.emulator import Emulator
from armlet.devices.host import HostProgram
from armlet.spec.load import load_target
from armlet.spec.target import Target

if TYPE_CHECKING:
    import tvm

ROWS, COLUMNS = 4, 64
SIZE = ROWS * COLUMNS
RNG = np.random.default_rng(3)
NO_CLAMP = FloatClamp(None, None)
DONE = Requantize(38, 3, -128, 127)
NORM = normalization(COLUMNS, 0.05, 1e-5)


def _int8(n: int = SIZE) -> np.ndarray:
    return RNG.integers(-128, 128, n).astype(np.int8)


def _int32(n: int, most: int = 1 << 12) -> np.ndarray:
    return RNG.integers(1, most, n).astype(np.int32)


def _float(n: int = SIZE) -> np.ndarray:
    return RNG.normal(0, 1, n).astype(np.float32)


# Each kernel that works in place: what builds it, its arguments, and the inputs that its result may lie over.
Build = Callable[[Vector], "tvm.tirx.PrimFunc"]
KERNELS: dict[str, tuple[Build, list[np.ndarray], tuple[int, ...]]] = {
    "add": (
        lambda v: el.build_sum(el.Sum(SIZE, (300, 500), 1 << 9, 10, -3, -120, 100), v),
        [_int8(), _int8()],
        (0, 1),
    ),
    "rescale": (
        lambda v: el.build_sum(el.Sum(SIZE, (300,), 1 << 9, 10, -3, -120, 100), v),
        [_int8()],
        (0,),
    ),
    "add constant": (
        lambda v: el.build_sum_constant(el.SumConstant(SIZE, 300, 1 << 9, 10, 5), v),
        [_int8(), _int32(SIZE)],
        (0,),
    ),
    "float add": (
        lambda v: el.build_float_sum(el.FloatSum(SIZE, 2, FloatClamp(0.0, 6.0)), v),
        [_float(), _float()],
        (0, 1),
    ),
    "table": (lambda v: el.build_table(el.Table(37), v), [_int8(37), _int8(256)], (0,)),
    "convert": (lambda v: el.build_convert(el.Convert(SIZE, "int32", "float32"), v), [_int32(SIZE)], (0,)),
    "recenter": (lambda v: el.build_recenter(el.Recenter(SIZE, "uint8"), v), [_int8()], (0,)),
    "product": (
        lambda v: el.build_product(el.Product(SIZE, 1, (4, -7), DONE, 1 << 30), v),
        [_int8(), _int8()],
        (0, 1),
    ),
    "product by rows": (
        lambda v: el.build_product(el.Product(SIZE, ROWS, (4, -7), DONE, 1 << 30), v),
        [_int8(), _int8(COLUMNS)],
        (0,),
    ),
    "prelu by channel": (
        lambda v: el.build_prelu(el.PRelu(ROWS, COLUMNS, 1, 3, -5, 900, 10), v),
        [_int8(), _int32(COLUMNS, 900)],
        (0,),
    ),
    "prelu": (
        lambda v: el.build_prelu(el.PRelu(1, ROWS, COLUMNS, 3, -5, 900, 10), v),
        [_int8(), _int32(ROWS, 900)],
        (0,),
    ),
    "softmax": (lambda v: softmax.build(softmax.Softmax(ROWS, COLUMNS), v), [_float()], (0,)),
    "masked softmax": (
        lambda v: softmax.build(softmax.Softmax(ROWS, 37, ROWS), v),
        [_float(ROWS * 37), _float(ROWS * 37)],
        (0,),
    ),
    "integer softmax": (
        lambda v: softmax.build_integer(softmax.IntegerSoftmax(ROWS, 37, DONE, 1 << 22), v),
        [_int8(ROWS * 37), exponentials(0.05)],
        (0,),
    ),
    "layer norm": (
        lambda v: layer_norm.build(layer_norm.LayerNorm(ROWS, COLUMNS, 1e-5), v),
        [_float(), _float(COLUMNS), _float(COLUMNS)],
        (0,),
    ),
    "integer layer norm": (
        lambda v: layer_norm.build_integer(layer_norm.IntegerLayerNorm(ROWS, COLUMNS, NORM, 10, -3), v),
        [_int8(), _int32(COLUMNS), _int32(COLUMNS)],
        (0,),
    ),
}
RESULTS = {"to float": np.float32, "recenter": np.uint8}
"""Types of results that are not those of the first input."""
UNEVEN: dict[str, Build] = {
    "add": lambda v: el.build_sum(el.Sum(35, (300, 500), 0, 10, 0, -128, 127), v),
    "float add": lambda v: el.build_float_sum(el.FloatSum(35, 2, NO_CLAMP), v),
    "product": lambda v: el.build_product(el.Product(70, 2, (4, -7), DONE, 1 << 30), v),
    "prelu": lambda v: el.build_prelu(el.PRelu(1, 4, 35, 3, -5, 900, 10), v),
    "softmax": lambda v: softmax.build(softmax.Softmax(ROWS, 37), v),
    "layer norm": lambda v: layer_norm.build(layer_norm.LayerNorm(ROWS, 37, 1e-5), v),
    "integer layer norm": lambda v: layer_norm.build_integer(
        layer_norm.IntegerLayerNorm(ROWS, 37, NORM, 10, -3), v
    ),
}
"""Kernels whose last tile overlaps the one before."""


def _built(build: Build, folder: Path, host: Target) -> tuple[PlainKernel, Callable[..., None]]:
    import tvm

    module = tvm.IRModule({"kernel": build(vector_of(host))})
    (kernel,) = build_kernels(module, host, "net", folder / "k.o")
    link.link_shared(host, folder / "k.o", folder / "k.so")
    function = ctypes.CDLL(str(folder / "k.so")).net_kernel
    scratch = [np.empty(n, np.uint8) for n in kernel.scratch_bytes]

    def call(*buffers: np.ndarray) -> None:
        function(*(ctypes.c_void_p(buffer.ctypes.data) for buffer in (*buffers, *scratch)))

    return kernel, call


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_writes_over_its_input_what_it_writes_elsewhere(name: str, tmp_path: Path, host: Target):
    build, arguments, in_place = KERNELS[name]
    kernel, call = _built(build, tmp_path, host)
    expected = np.full(arguments[0].size, 77, RESULTS.get(name, arguments[0].dtype))
    call(*arguments, expected)
    assert len(np.unique(expected)) > 3

    assert kernel.in_place == in_place
    for number in in_place:
        given = [argument.copy() for argument in arguments]
        call(*given, given[number])
        np.testing.assert_array_equal(given[number].view(expected.dtype), expected)


@pytest.mark.parametrize("name", UNEVEN)
def test_a_tile_that_is_moved_back_must_not_read_what_it_wrote(name: str, tmp_path: Path, host: Target):
    kernel, _ = _built(UNEVEN[name], tmp_path, host)
    assert kernel.in_place == ()


def test_a_sum_whose_last_tile_is_moved_back_would_be_wrong(tmp_path: Path, host: Target):
    """So the tests above can fail."""
    _, call = _built(UNEVEN["float add"], tmp_path, host)
    a, b, expected = _float(35), _float(35), np.empty(35, np.float32)
    call(a, b, expected)
    call(a, b, a)
    assert (a != expected).any()


def _residual_model() -> onnx.ModelProto:
    """Sums of branches, a hard swish that TVM's own kernel computes, and a value that is needed after its sum."""
    net = Net((1, 4, 8, 8))
    x = net.conv("x", 4, 16, 1)
    x = net.node("Add", x, net.node("HardSwish", x))
    x = net.node("Add", net.conv(x, 16, 16, 1), x)
    x = net.node("Add", net.node("Relu", x), x)
    pooled = net.node("Flatten", net.node("GlobalAveragePool", x))
    net.node("Gemm", pooled, net.random(10, 16), net.random(10), transB=1)
    return net.model()


MODELS = {"attention": attention_model, "residual": _residual_model}


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    onnx.save(MODELS[request.param](), path)
    return path


@pytest.fixture
def both(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Target], list[tuple[Compiled, Path]]]:
    """Compile for a target as it is, and with kernels that work in place nowhere."""

    def apart(*arguments: object) -> tuple[list[Path], list[tuple[PlainKernel, ...]]]:
        objects, builds = build_variants(*arguments)
        return objects, [tuple(replace(kernel, in_place=()) for kernel in kernels) for kernels in builds]

    def make(target: Target) -> list[tuple[Compiled, Path]]:
        found = []
        for name in ("in place", "apart"):
            if name == "apart":
                monkeypatch.setattr(emit, "build_variants", apart)
            found.append((compile_onnx(model, target, "net", tmp_path / name), tmp_path / name))
        return found

    return make


def _samples(compiled: Compiled) -> np.ndarray:
    shape = (10, *compiled.inputs[0].shape[1:])
    return np.random.default_rng(1).normal(0, 1, shape).astype(np.float32)


def _n_in_place(folder: Path) -> int:
    """Count the calls of a C entry that are given one place twice."""
    calls = re.findall(r"^ +net_\w+\((.*)\);$", (folder / "src" / "net.c").read_text(), re.MULTILINE)
    places = ([place for place in call.split(", ") if place.startswith("base")] for call in calls)
    return sum(len(set(given)) < len(given) for given in places)


def _check(programs: list[tuple[Compiled, Path]], answers: list[np.ndarray]) -> None:
    (together, folder), (apart, folder_apart) = programs
    np.testing.assert_array_equal(answers[0].view(np.uint32), answers[1].view(np.uint32))
    assert len(np.unique(answers[0])) > 50
    assert _n_in_place(folder) >= 3
    assert _n_in_place(folder_apart) == 0
    assert together.arena_lower_bound <= together.arena_bytes <= apart.arena_bytes
    if not together.integer_only:  # attention has its peak elsewhere
        assert together.arena_bytes == 2 * 4 * 16 * 8 * 8 < apart.arena_bytes


def test_a_program_answers_the_same(both, host: Target):
    programs = both(host)
    samples = _samples(programs[0][0])
    answers = [HostProgram.load(folder, compiled).run_many(samples) for compiled, folder in programs]
    _check(programs, answers)


@pytest.mark.parametrize("name", BOARDS)
def test_an_emulated_board_answers_the_same(name: str, both, board: Target):
    del board  # skips where there are no tools
    target = load_target(name)
    programs = both(target)
    samples, emulator = _samples(programs[0][0]), Emulator(target)
    answers = [emulator.run(folder / "bin" / "run", samples, c.outputs) for c, folder in programs]
    _check(programs, answers)
