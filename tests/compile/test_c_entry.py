"""The C that ships: strict, safe, re-entrant, and useful to an app's author."""

from __future__ import annotations

import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest

from armlet.compile.emit.examples import write_examples
from armlet.compile.pipeline import compile_onnx
from armlet.devices.host import HostProgram

if TYPE_CHECKING:
    from tests.compile.conftest import Program

STRICT = ["-Wall", "-Wextra", "-Werror", "-pedantic"]
# A stand-in for a compiled program that does as FAULT says.
FAULTY = r"""
#include "cnn.h"
#include <string.h>
int cnn_run(const void *const inputs[], void *const outputs[], void *arena)
{
    (void)inputs, (void)outputs, (void)arena;
    FAULT;
    return 0;
}
"""


def _run(*command: object, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False, **options)


def _inputs(program: Program, path: Path, n: int) -> np.ndarray:
    shape = (n, *program.compiled.inputs[0].shape[1:])
    samples = np.random.default_rng(11).standard_normal(shape).astype(np.float32)
    samples.tofile(path)
    return samples


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_the_entry_compiles_without_a_warning(host_cnn: Program, compiler: str, tmp_path: Path):
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler}")
    flags = [*STRICT, "-std=c11", "-Wconversion", "-Wshadow", "-Wstrict-prototypes", "-Wmissing-prototypes"]
    done = _run(
        compiler,
        *flags,
        "-I",
        host_cnn.folder / "lib",
        "-c",
        host_cnn.folder / "src" / "cnn.c",
        "-o",
        tmp_path / "o",
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("standard", ["c++11", "c++20"])
def test_the_header_is_valid_cpp(host_cnn: Program, standard: str, tmp_path: Path):
    (tmp_path / "app.cpp").write_text(
        '#include "cnn.h"\nint f(const float *x, float *y, void *arena) {\n'
        "  const void *const inputs[] = {x};\n  void *const outputs[] = {y};\n"
        "  return cnn_run(inputs, outputs, arena);\n}\n"
    )
    done = _run(
        "g++", *STRICT, f"-std={standard}", "-I", host_cnn.folder / "lib", "-c", "app.cpp", cwd=tmp_path
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_null_pointers_and_an_unaligned_arena_are_refused(host_cnn: Program, tmp_path: Path):
    (tmp_path / "app.c").write_text(
        '#include "cnn.h"\n#include <stddef.h>\n#include <stdio.h>\n'
        "static _Alignas(64) unsigned char arena[CNN_ARENA_BYTES + 64];\n"
        "static float x[CNN_INPUT_0_ELEMENTS], y[CNN_OUTPUT_0_ELEMENTS];\n"
        "int main(void) {\n"
        "  const void *const in[] = {x}, *const no_in[] = {NULL};\n"
        "  void *const out[] = {y}, *const no_out[] = {NULL};\n"
        '  printf("%d%d%d%d%d%d%d\\n", cnn_run(in, out, arena), cnn_run(NULL, out, arena), cnn_run(in, NULL, arena),\n'
        "         cnn_run(no_in, out, arena), cnn_run(in, no_out, arena), cnn_run(in, out, NULL),\n"
        "         cnn_run(in, out, arena + 16));\n"
        "  return 0;\n}\n"
    )
    lib = host_cnn.folder / "lib"
    built = _run("gcc", "-std=c11", "-I", lib, "app.c", lib / "libcnn.a", "-lm", "-o", "app", cwd=tmp_path)
    assert built.returncode == 0, built.stderr

    assert _run(tmp_path / "app").stdout == "0111112\n"


# Puts every block at one end of its pages, right beside a page that can't be touched: kernels, which no sanitizer
# instruments, can then neither read nor write past that end. The arena must start aligned, so up to 63 bytes can lie
# between its end and the page: the runner's canary stands in those.
FENCED = r"""
#include "cnn.h"
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
enum { PAGE = 4096, ARENA = (CNN_ARENA_BYTES + CNN_ARENA_ALIGN - 1) / CNN_ARENA_ALIGN * CNN_ARENA_ALIGN };
static void *fenced(size_t size, int at_end)
{
    size_t inside = (size + PAGE - 1) / PAGE * PAGE;
    unsigned char *all = mmap(NULL, inside + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (all == MAP_FAILED || mprotect(all + PAGE, inside, PROT_READ | PROT_WRITE)) return NULL;
    return all + PAGE + (at_end ? inside - size : 0);
}
int main(void)
{
    for (int at_end = 0; at_end < 2; at_end++) {
        float *x = fenced(CNN_INPUT_0_BYTES, at_end), *y = fenced(CNN_OUTPUT_0_BYTES, at_end);
        unsigned char *arena = fenced(ARENA - MISSING, at_end);
        if (!x || !y || !arena) return 1;
        for (unsigned i = 0; i < CNN_INPUT_0_ELEMENTS; i++) x[i] = (float)(i % 13) / 13;
        const void *const in[] = {x};
        void *const out[] = {y};
        if (cnn_run(in, out, arena)) return 2;
        for (unsigned i = 0; i < CNN_OUTPUT_0_ELEMENTS; i++) printf("%.9g\n", y[i]);
    }
    return 0;
}
"""


@pytest.fixture(scope="module", params=["TVM's kernels", "armlet's kernels"])
def any_cnn(
    request: pytest.FixtureRequest, host_cnn: Program, tmp_path_factory: pytest.TempPathFactory
) -> Program:
    if request.param == "TVM's kernels":
        return host_cnn
    folder = tmp_path_factory.mktemp("whole")
    onnx.save(host_cnn.model, folder / "model.onnx")
    compiled = compile_onnx(folder / "model.onnx", host_cnn.target, "cnn", folder)
    return replace(host_cnn, compiled=compiled, folder=folder)


def _run_fenced(program: Program, folder: Path, missing: int) -> subprocess.CompletedProcess[str]:
    (folder / "app.c").write_text(FENCED)
    lib = program.folder / "lib"
    flags = ["-D_GNU_SOURCE", "-std=c11", f"-DMISSING={missing}", "-I", lib]
    built = _run("gcc", *flags, "app.c", lib / "libcnn.a", "-lm", "-o", "app", cwd=folder)
    assert built.returncode == 0, built.stderr
    return _run(folder / "app")


def test_the_kernels_stay_within_arena_input_and_output(any_cnn: Program, tmp_path: Path):
    done = _run_fenced(any_cnn, tmp_path, 0)

    assert done.returncode == 0
    x = (np.arange(256) % 13 / np.float32(13)).astype(np.float32).reshape(1, 1, 16, 16)
    outputs = np.array(done.stdout.split(), np.float32).reshape(2, 10)
    # The order of float32 sums differs.
    np.testing.assert_allclose(outputs, np.repeat(any_cnn.reference(x), 2, axis=0), rtol=0, atol=5e-6)


def test_kernels_that_leave_the_arena_are_caught(any_cnn: Program, tmp_path: Path):
    # With 64 bytes too few, the program's own kernels overrun.
    assert _run_fenced(any_cnn, tmp_path, 64).returncode == -signal.SIGSEGV


def test_no_sanitizer_complains_about_the_entry(host_cnn: Program, tmp_path: Path):
    # Only the entry, plain C, is instrumented; the kernels are machine code already: see the tests above for them.
    (tmp_path / "app.c").write_text(
        '#include "cnn.h"\n#include <stdio.h>\n#include <stdlib.h>\n'
        "int main(void) {\n"
        "  float *x = malloc(CNN_INPUT_0_BYTES), *y = malloc(CNN_OUTPUT_0_BYTES);\n"
        "  void *arena;\n"
        "  if (posix_memalign(&arena, CNN_ARENA_ALIGN, CNN_ARENA_BYTES)) return 1;\n"
        "  for (unsigned i = 0; i < CNN_INPUT_0_ELEMENTS; i++) x[i] = (float)(i % 13) / 13;\n"
        "  const void *const in[] = {x};\n  void *const out[] = {y};\n"
        "  for (int n = 0; n < 3; n++) if (cnn_run(in, out, arena)) return 2;\n"
        '  for (int i = 0; i < 10; i++) printf("%.9g\\n", y[i]);\n'
        "  free(x), free(y), free(arena);\n  return 0;\n}\n"
    )
    src, lib = host_cnn.folder / "src", host_cnn.folder / "lib"
    sources = ["app.c", src / "cnn.c", src / "cnn_params.S", src / "cnn_kernels.o"]
    flags = ["-D_GNU_SOURCE", "-std=c11", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    built = _run("gcc", *flags, "-I", lib, f"-Wa,-I,{src}", *sources, "-lm", "-o", "app", cwd=tmp_path)
    assert built.returncode == 0, built.stderr

    done = _run(tmp_path / "app")

    assert (done.returncode, done.stderr) == (0, "")
    x = (np.arange(256) % 13 / np.float32(13)).astype(np.float32).reshape(1, 1, 16, 16)
    outputs = np.array(done.stdout.split(), np.float32)
    np.testing.assert_allclose(outputs, host_cnn.reference(x)[0], rtol=0, atol=5e-6)  # order of float32 sums


def test_threads_may_run_the_program_at_the_same_time(host_cnn: Program):
    program = HostProgram.load(host_cnn.folder, host_cnn.compiled)
    generator = np.random.default_rng(5)
    samples = [generator.standard_normal((40, 1, 16, 16)).astype(np.float32) for _ in range(4)]
    expected = [program.run_many(part) for part in samples]
    found: list[np.ndarray | None] = [None] * 4
    start = threading.Barrier(4)

    def work(i: int) -> None:
        start.wait()
        found[i] = program.run_many(samples[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)  # the same code on the same input: the same bits


def test_the_runner_streams_samples_counts_and_times(host_cnn: Program, tmp_path: Path):
    samples = _inputs(host_cnn, tmp_path / "in", 4)
    runner = host_cnn.folder / "bin" / "run"
    expected = HostProgram.load(host_cnn.folder, host_cnn.compiled).run_many(samples)

    cpu = str(max(os.sched_getaffinity(0)))
    for extra in ([], ["--count"], ["--time", "7", "1", cpu], ["--time", "7", "100", cpu]):
        done = _run(runner, tmp_path / "in", tmp_path / "out", 4, *extra)
        assert (done.returncode, done.stderr) == (0, "")
        outputs = np.fromfile(tmp_path / "out", np.float32).reshape(4, 10)
        np.testing.assert_array_equal(outputs, expected)  # the same library
        times = [float(line) for line in done.stdout.splitlines()]
        assert len(times) == (7 if extra[:1] == ["--time"] else 0)
        assert all(time > 0 for time in times)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["in", "out"], 1, "run: usage: run INPUTS OUTPUTS N [--count | --time R K CPUS]"),
        (["in", "out", "0"], 1, "run: the number of samples is not a positive integer: 0"),
        (["in", "out", "2x"], 1, "run: the number of samples is not a positive integer: 2x"),
        (
            ["in", "out", "1", "--time", "no", "1", "0"],
            1,
            "run: the number of readings is not a positive integer: no",
        ),
        (
            ["in", "out", "1", "--time", "2", "0", "0"],
            1,
            "run: the number of calls is not a positive integer: 0",
        ),
        (["in", "out", "1", "--time", "2", "1", "0,x"], 1, "run: the number of the CPU is not an integer: x"),
        (
            ["in", "out", "1", "--time", "2", "1", "1023"],
            2,
            "run: can't be pinned to the CPUs: Invalid argument",
        ),
        (["nonesuch", "out", "1"], 2, "run: nonesuch: No such file or directory"),
        (["in", "out", "3"], 2, "run: ends before the last sample: in"),
    ],
)
def test_the_runner_says_what_is_wrong(
    host_cnn: Program, tmp_path: Path, arguments: list[str], code: int, message: str
):
    _inputs(host_cnn, tmp_path / "in", 2)

    done = _run(host_cnn.folder / "bin" / "run", *arguments, cwd=tmp_path)

    assert (done.returncode, done.stderr) == (code, message + "\n")


@pytest.mark.parametrize(
    ("fault", "code", "message"),
    [
        ("((char *)arena)[CNN_ARENA_BYTES] = 0", 3, "run: the program wrote outside its: arena"),
        ("((char *)arena)[-1] = 0", 3, "run: the program wrote outside its: arena"),
        ("memset(outputs[0], 0, CNN_OUTPUT_0_BYTES + 1)", 3, "run: the program wrote outside its: outputs"),
        ("memset((char *)arena, 0, CNN_ARENA_BYTES)", 0, ""),
        ("return 2", 4, "run: the program refused its arguments: arena not aligned"),
    ],
)
def test_the_runner_catches_a_program_that_writes_outside_its_arena(
    host_cnn: Program, tmp_path: Path, fault: str, code: int, message: str
):
    _inputs(host_cnn, tmp_path / "in", 1)
    (tmp_path / "faulty.c").write_text(FAULTY.replace("FAULT", fault))
    runner = host_cnn.folder / "src" / "runner.c"
    built = _run("gcc", "-I", host_cnn.folder / "lib", runner, "faulty.c", "-o", "run", cwd=tmp_path)
    assert built.returncode == 0, built.stderr

    done = _run(tmp_path / "run", "in", "out", 1, cwd=tmp_path)

    assert (done.returncode, done.stderr.strip()) == (code, message)


def test_the_examples_build_and_run_under_emulation(board_cnn: Program, tmp_path: Path):
    shutil.copytree(board_cnn.folder / "lib", tmp_path / "lib")
    write_examples(board_cnn.compiled, tmp_path)
    cc = board_cnn.target.toolchain.cc
    main = tmp_path / "examples" / "main.c"
    built = _run(
        cc,
        "-std=c11",
        *STRICT,
        "-static",
        "-I",
        tmp_path / "lib",
        main,
        tmp_path / "lib" / "libcnn.a",
        "-lm",
        "-o",
        tmp_path / "main",
    )
    assert built.returncode == 0, built.stderr

    done = _run("qemu-aarch64", "-cpu", board_cnn.target.emulator.cpu, tmp_path / "main")

    zeros = np.zeros((1, 1, 16, 16), np.float32)
    # Six digits are printed.
    np.testing.assert_allclose(
        np.array(done.stdout.split(), np.float32), board_cnn.reference(zeros)[0], rtol=1e-5, atol=0
    )


def test_the_cmake_example_builds_for_the_board(board_cnn: Program, tmp_path: Path):
    if shutil.which("cmake") is None:
        pytest.skip("no cmake")
    shutil.copytree(board_cnn.folder / "lib", tmp_path / "lib")
    write_examples(board_cnn.compiled, tmp_path)
    flags = [
        f"-DCMAKE_C_COMPILER={board_cnn.target.toolchain.cc}",
        "-DCMAKE_SYSTEM_NAME=Linux",
        "-DCMAKE_EXE_LINKER_FLAGS=-static",
    ]
    for arguments in (["-S", "examples", "-B", "build", *flags], ["--build", "build"]):
        done = _run("cmake", *arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr

    ran = _run("qemu-aarch64", "-cpu", board_cnn.target.emulator.cpu, tmp_path / "build" / "main")
    assert ran.returncode == 0
    assert len(ran.stdout.split()) == 10


def test_the_python_example_runs_on_this_machine(host_cnn: Program, tmp_path: Path):
    if platform.system() != "Linux":
        pytest.skip("the library is an ELF file")
    shutil.copytree(host_cnn.folder / "lib", tmp_path / "lib")
    write_examples(host_cnn.compiled, tmp_path)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

    done = _run(sys.executable, tmp_path / "examples" / "python_ctypes.py", env=environment)

    assert done.returncode == 0, done.stderr
    zeros = np.zeros((1, 1, 16, 16), np.float32)
    np.testing.assert_allclose(
        np.array(done.stdout.split(), np.float32), host_cnn.reference(zeros)[0], rtol=1e-5, atol=0
    )
