"""Any tile that a kernel may have gives the bits of its formula's, and tables are checked."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from armlet.compile.kernels import conv2d, depthwise, integer_matmul, matmul
from armlet.compile.kernels.choices import TABLES, Tiles, Tunable, tiles_of
from armlet.compile.kernels.epilogue import FloatClamp, Requantize
from armlet.compile.kernels.loops import Vector, vector_of
from armlet.compile.layout.packing import pack_conv2d
from armlet.errors import UsageError
from armlet.spec.load import load_target
from armlet.spec.tiles import read_table

INT8, FLOAT = Requantize(40, 3, -100, 127), FloatClamp(-1.0, None)
SHAPES = [
    (1, 1, 20, 26, (1, 1), (1, 1), 1),
    (7, 8, 3, 29, (3, 3), (1, 2), 1),
    (1, 9, 17, 24, (1, 1), (1, 1), 1),
]


def _tunable(spec, vector: Vector, build) -> Tunable:
    """Return the one kernel that `build` chooses a tile of."""
    vector = replace(vector, tiles=Tiles())
    build(spec, vector)
    ((tunable, choice),) = vector.tiles.made.values()
    assert choice == tunable.formula in tunable.candidates
    return tunable


def _drawn(function, seed: int = 0) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    shapes = [(int(p.shape[0]), str(p.dtype)) for p in list(function.params)[:-1]]
    most = {"int8": 127, "int32": 1 << 20}
    return [
        generator.standard_normal(n).astype(dtype)
        if dtype == "float32"
        else generator.integers(-most[dtype], most[dtype], n).astype(dtype)
        for n, dtype in shapes
    ]


@pytest.mark.parametrize("epilogue", [INT8, FLOAT], ids=["int8", "float32"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_tile_of_a_convolution_gives_the_same_answer(shape, epilogue, vector: Vector, run_kernel):
    spec = conv2d.Conv2d(*shape, epilogue)
    tunable = _tunable(spec, vector, conv2d.build)
    x, _, *rest = _drawn(tunable.build(tunable.formula))
    weights = spec.outputs, spec.channels, *spec.kernel
    generator = np.random.default_rng(1)
    if epilogue is INT8:
        weight = generator.integers(-127, 128, weights).astype(np.int8)
        rest[1] = generator.integers(1 << 24, 1 << 28, spec.outputs).astype(np.int32)
    else:
        weight = generator.standard_normal(weights).astype(np.float32)
    size, dtype = spec.out_height * spec.out_width * spec.outputs, np.int8 if epilogue is INT8 else np.float32
    tried = {tunable.formula, *tunable.candidates[:: max(len(tunable.candidates) // 5, 1)]}
    answers = []
    for choice in sorted(tried):
        tile = conv2d.tile_of(spec, replace(vector, tiles=Tiles({tunable.key: choice})))
        assert (tile.pixels, tile.channels) == choice
        operands = x, pack_conv2d(weight, spec, tile), *rest
        answers.append(run_kernel(tunable.build(choice), *operands, size=size, dtype=dtype))
    assert len(np.unique(answers[0])) > 5
    for answer in answers[1:]:
        if epilogue is INT8:
            np.testing.assert_array_equal(answer, answers[0])
        else:
            np.testing.assert_allclose(answer, answers[0], rtol=0, atol=1e-6 * np.abs(answers[0]).max())


OTHERS = {
    "depthwise int8": (depthwise.Depthwise(8, 9, 40, (3, 3), (1, 1), INT8), depthwise.build),
    "product int8": (matmul.MatMul(2, 3, 10, 12, INT8, (3, -4), 1 << 26), matmul.build),
    "product float32": (matmul.MatMul(2, 7, 10, 33, FLOAT, multiplier=0.5), matmul.build),
}


@pytest.mark.parametrize("name", OTHERS)
def test_every_tile_of_other_kernels_gives_the_same_answer(name: str, vector: Vector, run_kernel):
    spec, build = OTHERS[name]
    tunable = _tunable(spec, vector, build)
    assert len(tunable.candidates) > 1
    answers = []
    for choice in tunable.candidates:
        function = tunable.build(choice)
        operands, result = _drawn(function), function.params[-1]
        if "int8" in name and len(operands) == 4:
            operands[3] = np.abs(operands[3]) << 7
        size, dtype = int(result.shape[0]), np.dtype(str(result.dtype))
        answers.append(run_kernel(function, *operands, size=size, dtype=dtype))
    assert len(np.unique(answers[0])) > 5
    for answer in answers[1:]:
        if "int8" in name:
            np.testing.assert_array_equal(answer, answers[0])
        else:
            np.testing.assert_allclose(answer, answers[0], rtol=0, atol=1e-6 * np.abs(answers[0]).max())


@pytest.mark.parametrize("epilogue", [INT8, FLOAT], ids=["int8", "float32"])
@pytest.mark.parametrize("unit", [Vector(16, 32, "sadalp", by_lane=True), Vector(16, 16, "pmaddwd")], ids=str)
def test_few_outputs_of_one_row_are_summed_in_many_registers(unit: Vector, epilogue):
    """A chain of sums waits for itself: 26 outputs are two blocks of 16 and not seven of 4."""
    one = (1, 1)
    tiles = {
        outputs: conv2d.tile_of(conv2d.Conv2d(1, 1, 128, outputs, one, one, 1, epilogue), unit)
        for outputs in (10, 26, 1000)
    }
    assert [tiles[n].channels for n in (10, 26)] == [8, 16]
    assert tiles[1000].channels >= 40


def test_a_tile_that_a_kernel_can_not_have_is_refused_with_those_it_can(vector: Vector):
    spec, one = conv2d.Conv2d(1, 4, 16, 32, (1, 1), (1, 1), 1, FLOAT), (1, 1)
    tunable = _tunable(spec, vector, conv2d.build)
    with pytest.raises(UsageError, match=r"has 5 × 3 for conv2d float32.*make it again with armlet tune"):
        conv2d.tile_of(spec, replace(vector, tiles=Tiles({tunable.key: (5, 3)})))
    other = conv2d.Conv2d(1, 5, 16, 32, one, one, 1, FLOAT)  # a table says nothing of kernels that it lacks
    assert conv2d.tile_of(other, replace(vector, tiles=Tiles({tunable.key: (5, 3)}))).pixels <= 5


def test_a_target_has_the_shipped_tiles_of_its_core_unless_it_has_its_own():
    target = load_target("raspberry-pi-4")
    assert vector_of(target).tiles.table == tiles_of(target).table
    assert tiles_of(target.model_copy(update={"tiles": ()})).table == {}
    assert tiles_of(load_target("host")).table == {}


def test_shipped_tables_are_for_the_cores_of_shipped_targets_and_gain():
    tables = {path.stem: read_table(path) for path in TABLES.glob("*.json")}
    assert set(tables) == {load_target(name).resolved_cpu for name in ("raspberry-pi-4", "raspberry-pi-5")}
    for core, table in tables.items():
        assert (table.core, table.unit) == (core, "cycles")
        assert table.gaining
        assert all(kernel.cost < 0.99 * kernel.formula_cost for kernel in table.gaining)


def _spec_of(kernel: str) -> conv2d.Conv2d:
    """Return the convolution that a table's key names."""
    found = re.search(
        r"(\w+) \w+, .*: (\d+)x(\d+)x(\d+) to (\d+), kernel (\d+)x(\d+), stride (\d+)x(\d+), (\d+) groups",
        kernel,
    )
    height, width, channels, outputs, *rest, groups = map(int, found.groups()[1:])
    epilogue = FLOAT if found[1] == "FloatClamp" else INT8
    return conv2d.Conv2d(
        height, width, channels, outputs, (rest[0], rest[1]), (rest[2], rest[3]), groups, epilogue
    )


@pytest.mark.parametrize("name", ["raspberry-pi-4", "raspberry-pi-5"])
def test_every_tile_of_a_shipped_table_is_one_that_its_kernel_can_have(name: str):
    vector = vector_of(load_target(name))
    kernels = [k for k in vector.tiles.table if k.startswith("conv2d")]
    asked = set()
    for kernel in kernels:
        spec = _spec_of(kernel)
        for slack in {
            0,
            conv2d.slack_for(spec.run_length, vector),
        }:  # it may decide on the step, which is in the key
            conv2d.tile_of(replace(spec, slack=slack), vector)  # refuses a tile that it can't have
        asked |= set(vector.tiles.made)
    assert len(kernels) > 3
    assert set(kernels) <= asked


def test_matrix_products_of_int8_take_their_tile_from_a_table():
    vector = Vector(16, 32, "sdot", "llvm.aarch64.neon.sqdmulh.v4i32", by_lane=True)
    spec = matmul.MatMul(1, 8, 16, 32, INT8, multiplier=1 << 26)
    tunable = _tunable(spec, vector, integer_matmul.build)
    other = next(choice for choice in tunable.candidates if choice != tunable.formula)
    tile = integer_matmul.tile_of(spec, replace(vector, tiles=Tiles({tunable.key: other})))
    assert tile is not None
    assert (tile.pixels, tile.channels) == other
