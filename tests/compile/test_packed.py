"""Packed constants unpack bit for bit in C, here and on the board, and the program answers the same."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from armlet.analysis.sparsity import magnitude_masks
from armlet.analysis.storage import SPARSE, SPARSE_PALETTE, pack
from armlet.artifacts import Compiled
from armlet.compile.emit import emit_program
from armlet.compile.emit.packed import PACKED_FOLDER
from armlet.compile.emit.templates import render
from armlet.compile.link import RUNTIME
from armlet.compile.lowered import LoweredProgram
from armlet.compile.pipeline import compile_onnx
from armlet.spec.target import Target

if TYPE_CHECKING:
    from tests.compile.conftest import Program

STRICT = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-pedantic", "-Wconversion", "-Wshadow"]

# Unpacks, writes the constants, runs one sample, writes the answer, and tries what is refused.
APP = r"""
#include "cnn_packed.h"
#include <stdio.h>
#include <string.h>
static _Alignas(CNN_WEIGHTS_ALIGN) unsigned char weights[CNN_WEIGHTS_BYTES + 64];
static _Alignas(CNN_ARENA_ALIGN) unsigned char arena[CNN_ARENA_BYTES + 64];
static float x[CNN_INPUT_0_ELEMENTS], y[CNN_OUTPUT_0_ELEMENTS];
int main(int n, char **paths)
{
    const void *const in[] = {x};
    void *const out[] = {y};
    FILE *from = fopen(paths[1], "rb"), *to = fopen(paths[2], "wb");
    memset(weights + CNN_WEIGHTS_BYTES, 0xA5, 64);
    if (n != 3 || from == NULL || to == NULL || fread(x, sizeof x, 1, from) != 1) return 9;
    if (cnn_unpack(NULL) != 1 || cnn_unpack(weights + 4) != 2) return 8;
    if (cnn_run_unpacked(NULL, in, out, arena) != 1 || cnn_run_unpacked(weights + 4, in, out, arena) != 2) return 7;
    if (cnn_unpack(weights) != 0) return 6;
    for (int i = 0; i < 64; i++) if (weights[CNN_WEIGHTS_BYTES + i] != 0xA5) return 5;
    if (cnn_run_unpacked(weights, in, out, arena) != 0) return 4;
    fwrite(weights, CNN_WEIGHTS_BYTES, 1, to);
    fwrite(y, sizeof y, 1, to);
    return fclose(to);
}
"""


def _run(*command: object, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False, **options)


def _emulator(target: Target) -> tuple[str, ...]:
    emulator = target.emulator
    return () if emulator is None else (emulator.program, "-cpu", emulator.cpu)


def _answer(folder: Path, target: Target, scratch: Path, sample: np.ndarray) -> tuple[bytes, np.ndarray]:
    """Build the app with the packed library, run it, and return the constants and the answer."""
    (scratch / "app.c").write_text(APP)
    sample.tofile(scratch / "x")
    packed, emulated = folder / PACKED_FOLDER, target.emulator is not None
    built = _run(
        target.toolchain.cc, *STRICT[:5], *(["-static"] if emulated else []), "-I", folder / "lib", "-I", packed,
        "app.c", packed / "libcnn_packed.a", "-lm", "-o", "app", cwd=scratch,
    )  # fmt: skip
    assert (built.returncode, built.stderr) == (0, "")
    done = _run(*_emulator(target), scratch / "app", scratch / "x", scratch / "y")
    assert (done.returncode, done.stderr) == (0, "")
    data = (scratch / "y").read_bytes()
    size = (folder / "src" / "cnn_params.bin").stat().st_size
    return data[:size], np.frombuffer(data[size:], np.float32)


def _expected(folder: Path, target: Target, scratch: Path, sample: np.ndarray) -> np.ndarray:
    sample.tofile(scratch / "inputs")
    done = _run(*_emulator(target), folder / "bin" / "run", scratch / "inputs", scratch / "outputs", 1)
    assert done.returncode == 0, done.stderr
    return np.fromfile(scratch / "outputs", np.float32)


@pytest.mark.parametrize("where", ["host", "board", "board32"])
def test_the_packed_program_has_the_same_constants_and_answers(
    where: str, lowered_cnn: LoweredProgram, request: pytest.FixtureRequest, tmp_path: Path
):
    target = request.getfixturevalue(where)
    compiled = emit_program([lowered_cnn], target, "cnn", tmp_path, packed=True)
    sample = np.random.default_rng(5).standard_normal(compiled.inputs[0].shape).astype(np.float32)
    constants, answer = _answer(tmp_path, target, tmp_path, sample)
    plain = (tmp_path / "src" / "cnn_params.bin").read_bytes()
    assert constants == plain
    assert compiled.packed is not None
    assert compiled.packed.weights_bytes == len(plain)
    assert (
        compiled.packed.packed_bytes
        == (tmp_path / PACKED_FOLDER / "src" / "cnn_packed_params.bin").stat().st_size
    )
    np.testing.assert_array_equal(answer, _expected(tmp_path, target, tmp_path, sample))


def test_a_program_is_packed_only_where_that_is_asked_for(host_cnn: Program):
    assert host_cnn.compiled.packed is None
    assert not (host_cnn.folder / PACKED_FOLDER).exists()


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_what_ships_compiles_without_a_warning(
    compiler: str, lowered_cnn: LoweredProgram, host: Target, tmp_path: Path
):
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler}")
    emit_program([lowered_cnn], host, "cnn", tmp_path, packed=True)
    place = tmp_path / PACKED_FOLDER
    for source in sorted((place / "src").glob("*.c")):
        done = _run(
            compiler, *STRICT, "-I", tmp_path / "lib", "-I", place, "-c", source, "-o", tmp_path / "o.o"
        )
        assert (done.returncode, done.stderr) == (0, "")
    assert sorted(p.name for p in place.iterdir()) == ["cnn_packed.h", "libcnn_packed.a", "src"]


@pytest.fixture(scope="module")
def unpack_tensor(tmp_path_factory: pytest.TempPathFactory) -> ctypes._CFuncPtr:
    """The C decoder, built with checks of every access."""
    folder = tmp_path_factory.mktemp("unpack")
    values = {"symbol": "net", "SYMBOL": "NET", "n_tensors": "0"}
    render(RUNTIME / "unpack.c.in", folder, values)
    (folder / "net_packed.h").write_text(
        "#include <stdint.h>\n#define NET_WEIGHTS_ALIGN 64u\nint net_unpack(void *weights);\n"
    )
    (folder / "test.c").write_text(
        '#include "unpack.c"\nconst unsigned char net_packed_params[1] = {0};\n'
        "long decode(const unsigned char *from, unsigned char *to, uint32_t count, uint32_t size)\n"
        "{ return (long)(unpack_tensor(from, to, count, size) - from); }\n"
    )
    flags = ["-fsanitize=undefined", "-fno-sanitize-recover=all", "-shared", "-fPIC"]
    built = _run("gcc", "-std=c11", "-O1", *flags, "test.c", "-o", "test.so", cwd=folder)
    assert built.returncode == 0, built.stderr
    function = ctypes.CDLL(str(folder / "test.so")).decode
    function.restype = ctypes.c_long
    return function


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from([1, 2, 4, 8]),
    st.integers(0, 700),
    st.integers(1, 300),
    st.sampled_from([0.0, 0.2, 0.9, 1.0]),
    st.integers(0, 2**31),
)
def test_the_decoder_in_c_gives_back_what_was_packed(unpack_tensor, size, n, n_values, sparsity, seed):
    rng = np.random.default_rng(seed)
    palette = rng.integers(0, 256, (n_values, size), np.uint8)
    chosen = palette[rng.integers(0, n_values, n)]
    chosen[rng.random(n) < sparsity] = 0
    array = chosen.reshape(-1).view(f"<u{size}")
    data = pack(array)
    to = ctypes.create_string_buffer(b"\xa5" * (array.nbytes + 8), array.nbytes + 8)
    assert unpack_tensor(data, to, n, size) == len(data)
    assert to.raw == array.tobytes() + b"\xa5" * 8


def test_a_pruned_network_s_program_is_smaller_packed(host_cnn: Program, host: Target, tmp_path: Path):
    model = onnx.ModelProto.FromString(host_cnn.model.SerializeToString())
    for tensor in model.graph.initializer:
        values = torch.from_numpy(numpy_helper.to_array(tensor).copy())
        if values.dim() > 1:
            mask = magnitude_masks({"w": values}, 0.8, "layer")["w"]
            tensor.CopyFrom(numpy_helper.from_array(torch.where(mask, values, 0.0).numpy(), tensor.name))
    onnx.save(model, tmp_path / "model.onnx")
    compiled: Compiled = compile_onnx(tmp_path / "model.onnx", host, "cnn", tmp_path, packed=True)
    packed = compiled.packed
    assert packed is not None
    assert packed.packed_bytes < 0.35 * packed.weights_bytes  # 20 % of the values, a bit for each, headers
    assert packed.constant_bytes < 0.5 * compiled.constant_bytes
    data = (tmp_path / PACKED_FOLDER / "src" / "cnn_packed_params.bin").read_bytes()
    assert data[9] in (SPARSE, SPARSE_PALETTE)
    sample = np.random.default_rng(5).standard_normal(compiled.inputs[0].shape).astype(np.float32)
    constants, answer = _answer(tmp_path, host, tmp_path, sample)
    assert constants == (tmp_path / "src" / "cnn_params.bin").read_bytes()
    np.testing.assert_array_equal(answer, _expected(tmp_path, host, tmp_path, sample))
