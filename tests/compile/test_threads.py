"""Programs for several threads: the same bits as those for one, in any circumstances."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import tvm
from tests.boards import requires_board

from armlet.artifacts import Compiled
from armlet.compile import link
from armlet.compile.emit import emit_program, threads
from armlet.compile.emit.examples import write_examples
from armlet.compile.emit.kernels import build_kernels
from armlet.compile.kernels import (
    conv2d,
    depthwise,
    elementwise,
    integer_matmul,
    layer_norm,
    matmul,
    move,
    pool,
    softmax,
    winograd,
)
from armlet.compile.kernels import epilogue as ep
from armlet.compile.kernels.border import Border
from armlet.compile.kernels.loops import Vector, vector_of
from armlet.compile.pipeline import compile_onnx, lower
from armlet.devices.emulator import Emulator
from armlet.devices.host import HostProgram, this_machine_has
from armlet.spec.load import load_target
from armlet.spec.target import Target

if TYPE_CHECKING:
    import onnx

STRICT = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-pedantic"]
# Four threads of an app run the network over and over while a fifth starts and stops the library's threads. Each run is
# of a job of its own, whose parts must be computed once each, and which nobody may look at once it is over.
APP = r"""
#define _POSIX_C_SOURCE 200809L
#include "net.h"
#include "net_threads.h"
#include <pthread.h>
#include <stdio.h>
enum { RUNNERS = 4, RUNS = 300, JOBS = 5, TURNS = 37 };
typedef struct { int done[TURNS], by_others; } Job;
static void part(const void *run, int begin, int end, int thread)
{
    Job *job = *(Job *const *)run;
    for (int i = begin; i < end; i++)
        job->done[i]++;
    if (thread != 0 && begin == 0)
        job->by_others = 1; /* only who has the first part writes this */
}
static int by_others[RUNNERS], wrong[RUNNERS];
static void *run(void *number)
{
    int own = *(int *)number;
    for (int n = 0; n < RUNS; n++) {
        int taken = net_take();
        for (int k = 0; k < JOBS; k++) {
            Job job = {{0}, 0}, *place = &job;
            net_share(taken, part, &place, TURNS - k, 1 + k);
            for (int i = 0; i < TURNS; i++)
                wrong[own] += job.done[i] != (i < TURNS - k);
            by_others[own] += job.by_others;
        }
        net_give_back(taken);
    }
    return NULL;
}
int main(void)
{
    static int numbers[RUNNERS] = {0, 1, 2, 3};
    pthread_t runners[RUNNERS];
    int started = net_start(), total_wrong = 0, total_others = 0;
    for (int i = 0; i < RUNNERS; i++)
        if (pthread_create(&runners[i], NULL, run, &numbers[i]))
            return 1;
    for (int i = 0; i < 20; i++) {
        net_stop();
        if (net_start() != started || net_start() != started) /* the second does nothing */
            return 2;
    }
    for (int i = 0; i < RUNNERS; i++) {
        pthread_join(runners[i], NULL);
        total_wrong += wrong[i];
        total_others += by_others[i];
    }
    net_stop();
    net_stop();
    printf("%d threads, %d wrong\n", started, total_wrong);
    (void)total_others; /* a busy machine may leave all parts to the caller */
    return 0;
}
"""
# The system has no more threads to give.
REFUSES = r"""
#include <errno.h>
#include <pthread.h>
int pthread_create(pthread_t *t, const pthread_attr_t *a, void *(*f)(void *), void *x)
{
    (void)t, (void)a, (void)f, (void)x;
    return EAGAIN;
}
"""


def _run(*command: object, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False, **options)


def _model() -> onnx.ModelProto:
    """A Winograd and a plain convolution, pooling, a dense layer, softmax: some worth parting, some not."""
    from onnx import TensorProto, helper, numpy_helper
    from onnx.helper import make_node as node

    generator = np.random.default_rng(0)
    shapes = {"w1": (16, 3, 3, 3), "w2": (32, 16, 3, 3), "w3": (40, 32, 1, 1), "w4": (10, 40 * 144)}
    weights = {n: generator.standard_normal(s) / np.sqrt(np.prod(s[1:])) for n, s in shapes.items()}
    nodes = [
        node("Conv", ["x", "w1"], ["c1"], pads=[1] * 4),
        node("Relu", ["c1"], ["r1"]),
        node("Conv", ["r1", "w2"], ["c2"], pads=[1] * 4),
        node("MaxPool", ["c2"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", ["p", "w3"], ["c3"]),
        node("Flatten", ["c3"], ["f"]),
        node("Gemm", ["f", "w4"], ["g"], transB=1),
        node("Softmax", ["g"], ["y"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 24, 24])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 10])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def _samples(n: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((n, 3, 24, 24)).astype(np.float32)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import onnx

    file = tmp_path_factory.mktemp("threads") / "model.onnx"
    onnx.save(_model(), file)
    return file


@pytest.fixture(scope="module")
def programs(model: Path, host: Target) -> dict[int, tuple[Compiled, Path]]:
    """The same network for 1, 2 and 4 threads of this machine."""
    found = {}
    for n in (1, 2, 4):
        folder = model.parent / f"host-{n}"
        found[n] = compile_onnx(model, host, "net", folder, threads=n), folder
    return found


@pytest.fixture(scope="module")
def expected(programs: dict[int, tuple[Compiled, Path]]) -> np.ndarray:
    compiled, folder = programs[1]
    return HostProgram.load(folder, compiled).run_many(_samples(40))


def test_large_kernels_are_parted_and_small_ones_are_not(programs: dict[int, tuple[Compiled, Path]]):
    compiled, _ = programs[2]
    parted = {kernel.layer for kernel in compiled.kernels if kernel.parallel}
    macs = {kernel.macs for kernel in compiled.kernels if not kernel.parallel}
    assert compiled.threads == 2
    assert len(parted) >= 3
    assert max(macs) < threads.LEAST_MACS
    assert compiled.arena_bytes > programs[1][0].arena_bytes  # Winograd's working buffers, for each thread


@pytest.mark.parametrize("n", [2, 4])
def test_the_bits_are_those_of_one_thread(
    n: int, programs: dict[int, tuple[Compiled, Path]], expected: np.ndarray
):
    program = HostProgram.load(programs[n][1], programs[n][0])
    np.testing.assert_array_equal(program.run_many(_samples(40)), expected)


def test_several_threads_of_an_app_may_run_the_program_at_once(
    programs: dict[int, tuple[Compiled, Path]], expected: np.ndarray
):
    program = HostProgram.load(programs[2][1], programs[2][0])
    found: list[np.ndarray | None] = [None] * 3
    start = threading.Barrier(3)

    def work(i: int) -> None:
        start.wait()
        found[i] = program.run_many(_samples(40))

    runners = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for runner in runners:
        runner.start()
    for runner in runners:
        runner.join()
    for answers in found:
        np.testing.assert_array_equal(answers, expected)


def test_the_library_has_threads_only_from_start_to_stop(
    programs: dict[int, tuple[Compiled, Path]], expected: np.ndarray
):
    compiled, folder = programs[4]
    tasks = Path("/proc/self/task")
    program = HostProgram.load(folder, replace(compiled, threads=1))  # does not start them
    library = program._library
    before = len(list(tasks.iterdir()))
    for _ in range(3):
        np.testing.assert_array_equal(program.run_many(_samples(40)[:3]), expected[:3])
        assert library.net_start() == 4
        assert len(list(tasks.iterdir())) == before + 3
        np.testing.assert_array_equal(program.run_many(_samples(40)[:3]), expected[:3])
        library.net_stop()
        assert len(list(tasks.iterdir())) == before


def test_a_program_ends_its_threads_with_itself(programs: dict[int, tuple[Compiled, Path]]):
    tasks = Path("/proc/self/task")
    before = len(list(tasks.iterdir()))
    program = HostProgram.load(programs[4][1], programs[4][0])
    assert len(list(tasks.iterdir())) == before + 3
    del program
    assert len(list(tasks.iterdir())) == before


def test_a_program_runs_alone_where_the_system_refuses_threads(
    programs: dict[int, tuple[Compiled, Path]], expected: np.ndarray, tmp_path: Path
):
    _, folder = programs[2]
    (tmp_path / "refuses.c").write_text(REFUSES)
    parts = [folder / "src" / "runner.c", "refuses.c", folder / "lib" / "libnet.a"]
    built = _run("gcc", "-I", folder / "lib", *parts, "-lm", "-o", "run", cwd=tmp_path)
    assert built.returncode == 0, built.stderr
    _samples(40)[:2].tofile(tmp_path / "in")
    done = _run(tmp_path / "run", "in", "out", 2, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    np.testing.assert_array_equal(np.fromfile(tmp_path / "out", np.float32).reshape(2, 10), expected[:2])


@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
def test_no_sanitizer_complains_about_how_work_is_shared(
    sanitizer: str, programs: dict[int, tuple[Compiled, Path]], tmp_path: Path
):
    _, folder = programs[4]
    flags = [f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all", "-g", "-O1"]
    (tmp_path / "nothing.c").write_text("int main(void) { return 0; }\n")
    if (
        _run("gcc", *flags, "nothing.c", "-o", "nothing", cwd=tmp_path).returncode
        or _run(tmp_path / "nothing").returncode
    ):
        pytest.skip(f"gcc's -fsanitize={sanitizer} does not work here")
    (tmp_path / "app.c").write_text(APP)
    include = ["-I", folder / "lib", "-I", folder / "src"]
    pool = folder / "src" / "net_threads.c"
    built = _run("gcc", *STRICT, *flags, *include, "app.c", pool, "-lpthread", "-o", "app", cwd=tmp_path)
    assert built.returncode == 0, built.stderr
    done = _run(tmp_path / "app", timeout=600)
    assert (done.returncode, done.stdout, done.stderr) == (0, "4 threads, 0 wrong\n", "")


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_what_ships_compiles_without_a_warning(
    compiler: str, programs: dict[int, tuple[Compiled, Path]], tmp_path: Path
):
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler}")
    flags = [*STRICT, "-Wconversion", "-Wshadow", "-Wstrict-prototypes", "-Wmissing-prototypes"]
    _, folder = programs[2]
    for source in ("net.c", "net_threads.c"):
        file = folder / "src" / source
        done = _run(compiler, *flags, "-I", folder / "lib", "-c", file, "-o", tmp_path / "o")
        assert (done.returncode, done.stderr) == (0, "")


def test_the_bundle_s_makefile_builds_the_same_library(
    programs: dict[int, tuple[Compiled, Path]], tmp_path: Path
):
    if shutil.which("make") is None:
        pytest.skip("no make")
    _, folder = programs[2]
    shutil.copytree(folder, tmp_path / "bundle")
    made = ("lib/libnet.a", "lib/libnet.so", "bin/run")
    for name in made:
        (tmp_path / "bundle" / name).unlink()
    done = _run("make", "-C", tmp_path / "bundle" / "src")
    assert done.returncode == 0, done.stderr
    for name in made[:2]:
        assert (tmp_path / "bundle" / name).read_bytes() == (folder / name).read_bytes(), name


def test_the_examples_start_the_threads(programs: dict[int, tuple[Compiled, Path]], tmp_path: Path):
    compiled, folder = programs[2]
    shutil.copytree(folder / "lib", tmp_path / "lib")
    main, cmake, python = (
        next(file for file in write_examples(compiled, tmp_path) if file.suffix == suffix)
        for suffix in (".c", ".txt", ".py")
    )
    library = tmp_path / "lib" / "libnet.a"
    built = _run(
        "gcc", *STRICT, "-I", tmp_path / "lib", main, library, "-lm", "-lpthread", "-o", tmp_path / "main"
    )
    assert (built.returncode, built.stderr) == (0, "")
    assert _run(tmp_path / "main").returncode == 0
    assert "m pthread)" in cmake.read_text()
    assert "net_start();" in main.read_text()
    assert "library.net_start()" in python.read_text()


def test_a_program_for_one_thread_needs_no_threads(programs: dict[int, tuple[Compiled, Path]]):
    compiled, folder = programs[1]
    assert compiled.threads == 1
    assert not any(kernel.parallel for kernel in compiled.kernels)
    assert not list((folder / "src").glob("*_threads.*"))
    for file in ("lib/libnet.a", "lib/libnet.so", "lib/net.h", "src/net.c", "src/Makefile", "src/runner.c"):
        assert b"pthread" not in (folder / file).read_bytes(), file
        assert b"net_start" not in (folder / file).read_bytes(), file


def test_threads_are_a_thing_of_the_emission_alone(model: Path, host: Target, tmp_path: Path):
    program = lower(model, host)
    one = emit_program([program], host, "net", tmp_path / "one")
    assert threads.part_work(program, 1) is program
    assert replace(emit_program([program], host, "net", tmp_path / "again"), threads=1) == one
    for file in sorted(path for path in (tmp_path / "one").rglob("*") if path.is_file()):
        again = tmp_path / "again" / file.relative_to(tmp_path / "one")
        assert again.read_bytes() == file.read_bytes(), file


@requires_board
@pytest.mark.parametrize("board", ["raspberry-pi-2", "raspberry-pi-4", "arm64-linux", "android-arm64"])
def test_the_emulated_board_gives_the_bits_of_one_thread(board: str, model: Path, tmp_path: Path):
    target = load_target(board)
    if lacking := link.missing_tools(target):
        pytest.skip(f"needs {', '.join(lacking)}")
    answers = []
    for n in (1, 2, 4):
        folder = tmp_path / str(n)
        compiled = compile_onnx(model, target, "net", folder, threads=n)
        answers.append(Emulator(target).program(folder, compiled).run_batch((_samples(3),))[0])
    np.testing.assert_array_equal(answers[1], answers[0])
    np.testing.assert_array_equal(answers[2], answers[0])
    if target.is_android:  # whose C library has threads, and no other one
        assert b"libpthread" not in (tmp_path / "2" / "lib" / "libnet.so").read_bytes()


@requires_board
def test_what_is_counted_is_one_thread(model: Path, tmp_path: Path):
    target = load_target("raspberry-pi-4")
    compile_onnx(model, target, "net", tmp_path, threads=4)
    counts = [
        Emulator(target).count(tmp_path / "bin" / "run", _samples(1), simulate_caches=False).instructions
        for _ in range(2)
    ]
    assert counts[0] == counts[1]


@pytest.mark.parametrize("where", ["host", "board"])
def test_the_packed_library_has_the_threads_too(
    where: str, model: Path, request: pytest.FixtureRequest, tmp_path: Path
):
    target: Target = request.getfixturevalue(where)
    compiled = compile_onnx(model, target, "net", tmp_path, threads=2, packed=True)
    (tmp_path / "app.c").write_text(
        '#include "net_packed.h"\n#include <stdio.h>\n'
        "static _Alignas(64) unsigned char arena[NET_ARENA_BYTES], weights[NET_WEIGHTS_BYTES];\n"
        "static float x[NET_INPUT_0_ELEMENTS], y[NET_OUTPUT_0_ELEMENTS];\n"
        "int main(int argc, char **argv) {\n"
        "  const void *const in[] = {x};\n  void *const out[] = {y};\n"
        '  FILE *file = fopen(argv[argc - 2], "rb");\n'
        "  if (!file || fread(x, 1, sizeof x, file) != sizeof x || net_unpack(weights)) return 1;\n"
        "  if (net_start() != 2 || net_run_unpacked(weights, in, out, arena)) return 2;\n"
        "  net_stop();\n"
        '  file = fopen(argv[argc - 1], "wb");\n'
        "  return fwrite(y, 1, sizeof y, file) != sizeof y || fclose(file) != 0;\n}\n"
    )
    packed, emulator = tmp_path / "packed", target.emulator
    static = [] if emulator is None else ["-static"]
    folders = ["-I", tmp_path / "lib", "-I", packed]
    libraries = [packed / "libnet_packed.a", "-lm", "-lpthread"]
    built = _run(
        target.toolchain.cc, *STRICT, *static, *folders, "app.c", *libraries, "-o", "app", cwd=tmp_path
    )
    assert (built.returncode, built.stderr) == (0, "")
    sample = _samples(1)
    sample.tofile(tmp_path / "x")
    qemu = [] if emulator is None else [emulator.program, "-cpu", emulator.cpu]
    done = _run(*qemu, tmp_path / "app", tmp_path / "x", tmp_path / "y")
    assert (done.returncode, done.stderr) == (0, "")
    _run(*qemu, tmp_path / "bin" / "run", tmp_path / "x", tmp_path / "plain", 1)
    assert (tmp_path / "y").read_bytes() == (tmp_path / "plain").read_bytes()
    assert compiled.packed is not None


FLOAT, INT8 = ep.FloatClamp(0.0, None), ep.Requantize(40, 3, -128, 127)
PORTABLE = Vector(16, 32, "widening", by_lane=True)  # the tiles of Arm's 32 registers
# Sides that no tile divides, but for Winograd's filtering: its tiles must not meet twice.
BORDERED = [
    (conv2d.build, conv2d.Conv2d(13, 15, 5, 39, (3, 3), (1, 1), 1, FLOAT), (11, 13)),
    (conv2d.build, conv2d.Conv2d(13, 15, 12, 39, (3, 3), (2, 2), 3, INT8), (6, 7)),
    (conv2d.build, conv2d.Conv2d(1, 77, 16, 37, (1, 1), (1, 1), 1, INT8), (7, 11)),
    (depthwise.build, depthwise.Depthwise(13, 15, 21, (3, 3), (1, 1), FLOAT), (11, 13)),
    (depthwise.build, depthwise.Depthwise(13, 15, 21, (5, 5), (2, 2), INT8), (5, 6)),
    (winograd.build, winograd.Winograd(30, 30, 20, 37, 4, FLOAT), (28, 28)),
    (pool.build_max, pool.MaxPool(9, 11, 21, (3, 3), (2, 2), "int8"), (4, 5)),
    (pool.build_mean, pool.Mean(9, 11, 21, (3, 3), (2, 2), FLOAT), (4, 5)),
]


@pytest.mark.parametrize("unit", ["host", "portable", "x86-64-vnni"])
@pytest.mark.parametrize(
    ("build", "spec", "turns"),
    [
        (conv2d.build, conv2d.Conv2d(34, 34, 8, 64, (3, 3), (1, 1), 1, FLOAT), 2 * 32),
        (conv2d.build, conv2d.Conv2d(1, 1, 512, 512, (1, 1), (1, 1), 1, INT8), None),
        (pool.build_max, pool.MaxPool(16, 16, 8, (2, 2), (2, 2), "int8"), 8),
        (matmul.build, matmul.MatMul(4, 32, 16, 32, ep.FloatClamp(None, None)), 4 * 8),
        (integer_matmul.build, matmul.MatMul(4, 32, 16, 32, INT8, (1, 2), 2**30), 4),
        (winograd.build, winograd.Winograd(30, 30, 32, 32, 4, FLOAT), None),
        (move.build_pad, move.Pad(9, 7, 5, (1, 2, 3, 1), -3, "int8", slack=2), 9),
        (move.build_pad, move.Pad(9, 7, 5, (0, 1, 2, 0), 0.5, "float32"), 9),
        (move.build_transpose, move.Transpose((3, 40, 8), (2, 0, 1), "float32"), 8),
        (softmax.build, softmax.Softmax(12, 20, mask_rows=3), 12),
        (layer_norm.build, layer_norm.LayerNorm(10, 24, 1e-5), 10),
        (softmax.build, softmax.Softmax(12, 32), 12),
        (layer_norm.build, layer_norm.LayerNorm(10, 23, 1e-5), 10),
        (elementwise.build_sum, elementwise.Sum(1024, (2**20, 2**19), 2**20, 21, -3, -128, 120), None),
        (elementwise.build_sum, elementwise.Sum(1019, (2**20, 2**19), 2**20, 21, -3, -128, 120), None),
        (elementwise.build_float_sum, elementwise.FloatSum(515, 2, FLOAT), None),
        (elementwise.build_table, elementwise.Table(515), 515),
        (elementwise.build_product, elementwise.Product(6 * 48, 6, (1, -2), INT8, 2**30), None),
        (elementwise.build_prelu, elementwise.PRelu(9, 24, 1, 1, -2, 2**20, 21), 9),
        (integer_matmul.build, matmul.MatMul(3, 13, 21, 37, INT8, (1, 2), 2**30), 3),
        *[
            (build, replace(spec, border=Border(*sides, (1, 2, 0, 1), -7)), None)
            for build, spec, sides in BORDERED
        ],
    ],
)
def test_any_way_to_part_the_turns_computes_all_of_them(
    build: object, spec: object, turns: int | None, unit: str, tmp_path: Path
):
    """Every kernel in uneven parts, in the reverse order, each with working buffers of its own, as threads would.

    Where the result may take an input's memory, so too.
    """
    import ctypes

    target = load_target("host" if unit == "portable" else unit)
    if not this_machine_has(target.resolved_features):
        pytest.skip(f"this machine's CPU is no {unit}")
    vector = PORTABLE if unit == "portable" else vector_of(target)
    if build is integer_matmul.build and integer_matmul.tile_of(spec, vector) is None:
        pytest.skip(f"{unit} has no dot products")
    function = build(spec, vector).with_attr("global_symbol", "k")
    parted = threads._parted(function, 2)
    whole, in_parts = (
        build_kernels(tvm.IRModule({"k": f}), target, name, tmp_path / f"{name}.o")[0]
        for name, f in (("one", function), ("two", parted))
    )
    assert whole.turns == 0
    assert in_parts.turns > 1
    if turns is not None and unit == "host":
        assert in_parts.turns == turns
    objects = [str(tmp_path / f"{name}.o") for name in ("one", "two")]
    link.run_tool(["gcc", "-shared", *objects, "-lm", "-o", "k.so"], tmp_path, "the test")
    library = ctypes.CDLL(str(tmp_path / "k.so"))
    generator = np.random.default_rng(3)
    arrays = []
    for buffer in function.params:
        size, dtype = int(buffer.shape[0]), str(buffer.dtype)
        values = generator.integers(-99, 99, size) if "int" in dtype else generator.standard_normal(size)
        if buffer.name == "multipliers":
            values = generator.integers(2**30, 2**31 - 1, size)
        arrays.append(values.astype(dtype))
    results = [np.zeros_like(arrays[-1]) for _ in range(2)]

    def call(kernel: object, result: np.ndarray, *span: int) -> None:
        working = [np.full(n, 0xFF, np.uint8) for n in kernel.scratch_bytes]
        pointers = [ctypes.c_void_p(a.ctypes.data) for a in (*arrays[:-1], result, *working)]
        getattr(library, kernel.symbol)(*pointers, *map(ctypes.c_int32, span))

    call(whole, results[0])
    ends = sorted({0, 1, in_parts.turns // 3, in_parts.turns})
    for begin, end in reversed(list(pairwise(ends))):
        call(in_parts, results[1], begin, end)
    for number in in_parts.in_place:
        results.append(arrays[number].view(arrays[-1].dtype).copy())
        given = arrays[number]
        arrays[number] = results[-1]
        for begin, end in reversed(list(pairwise(ends))):
            call(in_parts, results[-1], begin, end)
        arrays[number] = given
    assert len(np.unique(results[0])) > 10
    for result in results[1:]:
        np.testing.assert_array_equal(result.view(np.uint8), results[0].view(np.uint8))


def test_no_parallel_loop_is_left_in_a_kernel_of_one_thread():
    target = load_target("host")
    function = conv2d.build(conv2d.Conv2d(8, 8, 8, 64, (3, 3), (1, 1), 1, FLOAT), vector_of(target))
    assert "T.parallel" in function.script()
    assert "T.parallel" not in threads.serial(function).script()


def test_a_cpu_less_than_threads_is_no_obstacle(
    programs: dict[int, tuple[Compiled, Path]], expected: np.ndarray, tmp_path: Path
):
    _, folder = programs[4]
    _samples(40).tofile(tmp_path / "in")
    cpu = max(os.sched_getaffinity(0))
    done = _run(
        folder / "bin" / "run", "in", "out", 40, cwd=tmp_path,
        preexec_fn=lambda: os.sched_setaffinity(0, {cpu}),
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    np.testing.assert_array_equal(np.fromfile(tmp_path / "out", np.float32).reshape(40, 10), expected)
