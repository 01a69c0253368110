"""Compiled programs compute what the network computes, here and on an emulated board."""

from __future__ import annotations

import platform
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from armlet import digest
from armlet.artifacts import Compiled, TensorInfo
from armlet.compile import link
from armlet.compile.emit import emit_program
from armlet.compile.lowered import LoweredProgram
from armlet.compile.pipeline import compile_onnx
from armlet.devices.host import HostProgram, this_machine_has
from armlet.errors import ArmletError, UsageError
from armlet.spec.target import Target

if TYPE_CHECKING:
    import tvm
    from tests.compile.conftest import Program

# Both sum the same float32 products in another order: a few units in the last place of sums that are below 10.
TOLERANCE = 5e-6


def _samples(compiled: Compiled, n: int) -> np.ndarray:
    shape = (n, *compiled.inputs[0].shape[1:])
    return np.random.default_rng(7).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("name", ["host_cnn", "host_mlp"])
def test_the_host_program_equals_onnx_runtime(name: str, request: pytest.FixtureRequest):
    program: Program = request.getfixturevalue(name)
    samples = _samples(program.compiled, 20)

    outputs = HostProgram.load(program.folder, program.compiled).run_many(samples)

    expected = program.reference(samples)
    np.testing.assert_allclose(outputs, expected, rtol=0, atol=TOLERANCE)
    assert np.ptp(expected, axis=0).min() > 1e-3  # the outputs depend on the input at all


def test_the_board_program_equals_onnx_runtime_under_emulation(board_cnn: Program, tmp_path: Path):
    samples = _samples(board_cnn.compiled, 5)
    samples.tofile(tmp_path / "inputs")
    runner = board_cnn.folder / "bin" / "run"
    command = ["qemu-aarch64", "-cpu", board_cnn.target.emulator.cpu, str(runner)]

    subprocess.run([*command, str(tmp_path / "inputs"), str(tmp_path / "outputs"), "5"], check=True)

    outputs = np.fromfile(tmp_path / "outputs", np.float32).reshape(5, 10)
    np.testing.assert_allclose(outputs, board_cnn.reference(samples), rtol=0, atol=TOLERANCE)


def _results_of_every_kind() -> tvm.IRModule:
    """Returns: a reshape, the input, a sum, the reshape's own argument, a constant, the same sum again."""
    from tvm import relax, topi

    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, 6), "float32"))
    with builder.function("main", [x]):
        positive = builder.emit_te(topi.nn.relu, x)
        folded = builder.emit(relax.op.reshape(builder.emit(positive), (1, 2, 3)))
        more = builder.emit_te(topi.add, folded, relax.const(1.0))
        constant = relax.const(np.arange(4, dtype=np.int32))
        results = builder.emit(relax.Tuple([folded, x, more, positive, constant, more]))
        builder.emit_func_output(results)
    return builder.get()


def test_results_that_share_memory_each_reach_their_output(
    wrap: Callable[[tvm.IRModule], LoweredProgram], host: Target, tmp_path: Path
):
    compiled = emit_program([wrap(_results_of_every_kind())], host, "shared", tmp_path)
    x = np.array([[-1, 2, -3, 4, 5, -6]], np.float32)

    outputs = HostProgram.load(tmp_path, compiled).run(x)

    positive = np.maximum(x, 0)
    more = positive.reshape(1, 2, 3) + 1
    expected = [positive.reshape(1, 2, 3), x, more, positive, np.arange(4), more]
    for output, value in zip(outputs, expected, strict=True):
        np.testing.assert_array_equal(output, value)
    assert compiled.arena_bytes == compiled.arena_lower_bound == 0  # every buffer is one of the caller's


@pytest.mark.parametrize("seed", range(4))
def test_random_graphs_never_overwrite_what_is_still_needed(
    seed: int, wrap: Callable[[tvm.IRModule], LoweredProgram], host: Target, tmp_path: Path
):
    """Sums, doublings and reshapes of random earlier values; small integers, so that sums are exact."""
    from tvm import relax, topi

    generator = np.random.default_rng(seed)
    x_value = generator.integers(-9, 9, (1, 24)).astype(np.float32)
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, 24), "float32"))
    known: list[tuple[relax.Var, np.ndarray]] = [(x, x_value)]
    with builder.function("main", [x]):
        for _ in range(25):
            (a, a_value), (b, b_value) = (known[int(i)] for i in generator.integers(0, len(known), 2))
            match int(generator.integers(0, 4)):
                case 0 if a_value.shape == b_value.shape:
                    known.append((builder.emit_te(topi.add, a, b), a_value + b_value))
                case 1:
                    shape = (1, 4, 6) if a_value.ndim == 2 else (1, 24)
                    known.append((builder.emit(relax.op.reshape(a, shape)), a_value.reshape(shape)))
                case _:
                    table = generator.integers(-3, 3, a_value.shape).astype(np.float32)
                    # The doubled value is kept in a working buffer of the kernel, which the arena holds too.
                    doubled = builder.emit_te(
                        lambda t, c: topi.add(topi.add(t, t), c),
                        a,
                        relax.const(table),
                        primfunc_name_hint="double_add",
                    )
                    known.append((doubled, a_value + a_value + table))
        results = [known[int(i)] for i in generator.integers(1, len(known), 3)]
        builder.emit_func_output(relax.Tuple([var for var, _ in results]))
    compiled = emit_program([wrap(builder.get())], host, "graph", tmp_path)

    outputs = HostProgram.load(tmp_path, compiled).run(x_value)

    for output, (_, value) in zip(outputs, results, strict=True):
        np.testing.assert_array_equal(output, value)
    assert compiled.arena_bytes >= compiled.arena_lower_bound > 0


def test_equal_constants_are_stored_once(
    wrap: Callable[[tvm.IRModule], LoweredProgram], host: Target, tmp_path: Path
):
    from tvm import relax, topi

    table = np.random.default_rng(3).standard_normal((1, 64)).astype(np.float32)
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, 64), "float32"))
    with builder.function("main", [x]):
        once = builder.emit_te(topi.add, x, relax.const(table))
        twice = builder.emit_te(topi.add, once, relax.const(table.copy()))
        builder.emit_func_output(builder.emit_te(topi.add, twice, relax.const(table * 2)))
    compiled = emit_program([wrap(builder.get())], host, "adds", tmp_path)

    assert compiled.constant_bytes == 2 * table.nbytes
    x = np.ones((1, 64), np.float32)
    (output,) = HostProgram.load(tmp_path, compiled).run(x)
    np.testing.assert_array_equal(output, ((x + table) + table) + table * 2)


def test_equal_input_gives_equal_bytes(
    host_cnn: Program, lowered_cnn: LoweredProgram, host: Target, tmp_path: Path
):
    emit_program([lowered_cnn], host, "cnn", tmp_path / "another" / "folder")

    assert digest.of_folder(tmp_path / "another" / "folder") == digest.of_folder(host_cnn.folder)


def test_the_shipped_makefile_rebuilds_the_same_libraries(board_cnn: Program, tmp_path: Path):
    shutil.copytree(board_cnn.folder, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "bin")
    for name in ("libcnn.a", "libcnn.so"):
        (tmp_path / "copy" / "lib" / name).unlink()

    subprocess.run(["make", "-C", "src"], cwd=tmp_path / "copy", check=True, capture_output=True)

    for name in ("lib/libcnn.a", "lib/libcnn.so", "bin/run"):
        assert digest.of_file(tmp_path / "copy" / name) == digest.of_file(board_cnn.folder / name), name


def test_the_libraries_hold_the_sizes_that_are_reported(host_cnn: Program, tmp_path: Path):
    compiled = host_cnn.compiled
    parameters = (host_cnn.folder / "src" / "cnn_params.bin").stat().st_size
    subprocess.run(["ar", "x", host_cnn.folder / "lib" / "libcnn.a"], cwd=tmp_path, check=True)

    assert link.loaded_bytes(tmp_path / "cnn.o") == link.LoadedBytes(
        compiled.code_bytes, compiled.constant_bytes
    )
    # Beside the parameters only a few literals of the kernels are constants.
    assert parameters <= compiled.constant_bytes < parameters + 256
    assert compiled.arena_lower_bound <= compiled.arena_bytes
    assert [kernel.symbol.startswith("cnn_") for kernel in compiled.kernels] == [True] * len(compiled.kernels)


def test_only_the_entry_is_exported(host_cnn: Program):
    listed = subprocess.run(
        ["nm", "-D", "--defined-only", host_cnn.folder / "lib" / "libcnn.so"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert [line.split()[-1] for line in listed.stdout.splitlines()] == ["cnn_run"]


def test_two_programs_link_into_one_app(host_cnn: Program, host_mlp: Program, tmp_path: Path):
    (tmp_path / "app.c").write_text(
        '#include "cnn.h"\n#include "mlp.h"\n#include <stdio.h>\n'
        "static _Alignas(64) unsigned char arena[CNN_ARENA_BYTES + MLP_ARENA_BYTES];\n"
        "static float image[CNN_INPUT_0_ELEMENTS], row[MLP_INPUT_0_ELEMENTS], a[10], b[10];\n"
        "int main(void) {\n"
        "  const void *const images[] = {image}, *const rows[] = {row};\n"
        "  void *const as[] = {a}, *const bs[] = {b};\n"
        "  if (cnn_run(images, as, arena) || mlp_run(rows, bs, arena)) return 1;\n"
        '  for (int i = 0; i < 10; i++) printf("%.9g %.9g\\n", a[i], b[i]);\n'
        "  return 0;\n}\n"
    )
    folders = [host_cnn.folder / "lib", host_mlp.folder / "lib"]
    flags = [flag for folder in folders for flag in ("-I", str(folder), "-L", str(folder))]
    command = ["gcc", "-std=c11", "-Wall", "-Werror", *flags, "app.c", "-l:libcnn.a", "-l:libmlp.a", "-lm"]
    subprocess.run([*command, "-o", "app"], cwd=tmp_path, check=True)

    printed = subprocess.run([tmp_path / "app"], check=True, capture_output=True, text=True).stdout

    values = np.array([line.split() for line in printed.splitlines()], np.float32)
    for column, program in enumerate((host_cnn, host_mlp)):
        zeros = np.zeros(program.compiled.inputs[0].shape, np.float32)
        np.testing.assert_allclose(values[:, column], program.reference(zeros)[0], rtol=0, atol=TOLERANCE)


def test_a_name_that_c_cannot_have_is_refused(lowered_cnn: LoweredProgram, host: Target, tmp_path: Path):
    with pytest.raises(UsageError, match="'my-net' can't be a program's name in C"):
        emit_program([lowered_cnn], host, "my-net", tmp_path)


def test_a_network_that_computes_nothing_is_refused(host: Target, tmp_path: Path):
    import onnx
    from onnx import TensorProto, helper

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "net", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(UsageError, match="the network computes nothing"):
        compile_onnx(tmp_path / "model.onnx", host, "net", tmp_path / "out")


def test_a_kernel_name_that_c_cannot_have_is_refused(
    wrap: Callable[[tvm.IRModule], LoweredProgram], host: Target, tmp_path: Path
):
    from tvm import relax, topi

    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, 64), "float32"))
    with builder.function("main", [x]):
        builder.emit_func_output(builder.emit_te(topi.nn.relu, x, primfunc_name_hint="relu<0>"))

    with pytest.raises(ArmletError, match="'relu<0>' can't be the name of a C function"):
        emit_program([wrap(builder.get())], host, "net", tmp_path)


def test_a_program_with_anything_but_kernel_calls_is_refused(
    wrap: Callable[[tvm.IRModule], LoweredProgram], host: Target, tmp_path: Path
):
    from tvm import relax

    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, 64), "float32"))
    with builder.function("main", [x]):
        builder.emit_func_output(builder.emit(relax.op.nn.relu(x)))

    with pytest.raises(
        ArmletError, match=r"the lowered program binds gv to .*relu.*, which is no kernel call"
    ):
        emit_program([wrap(builder.get())], host, "net", tmp_path)


def test_a_program_that_breaks_its_promise_is_refused(
    lowered_cnn: LoweredProgram, host: Target, tmp_path: Path
):
    wrong_input = replace(lowered_cnn, inputs=(replace(lowered_cnn.inputs[0], shape=(1, 1, 8, 8)),))
    with pytest.raises(ArmletError, match="promises the inputs"):
        emit_program([wrong_input], host, "cnn", tmp_path)
    with pytest.raises(ArmletError, match="6 calls are described, but the program has 7"):
        emit_program([replace(lowered_cnn, calls=lowered_cnn.calls[1:])], host, "cnn", tmp_path)


def test_the_host_program_names_what_is_wrong_with_its_input(host_cnn: Program):
    program = HostProgram.load(host_cnn.folder, host_cnn.compiled)

    with pytest.raises(UsageError, match=r"input 'x' is float64 \[1, 1, 16, 16\], the program takes float32"):
        program.run(np.zeros((1, 1, 16, 16)))
    with pytest.raises(
        UsageError, match=r"input 'x' is float32 \[16, 16\], the program takes float32 \[1, 1, 16, 16\]"
    ):
        program.run(np.zeros((16, 16), np.float32))
    with pytest.raises(UsageError, match=r"\[3, 16, 16\], the program takes float32 \[3, 1, 16, 16\]"):
        program.run_many(np.zeros((3, 16, 16), np.float32))
    with pytest.raises(UsageError, match="takes 1 inputs, not 2"):
        program.run(*[np.zeros((1, 1, 16, 16), np.float32)] * 2)


def test_a_library_for_another_machine_is_refused_by_name(board_cnn: Program):
    if platform.machine() == "aarch64":
        pytest.skip("this machine can load it")
    with pytest.raises(ArmletError, match=r"libcnn\.so can't be loaded as the program 'cnn'"):
        HostProgram.load(board_cnn.folder, board_cnn.compiled)


def test_a_program_built_again_under_the_same_path_is_the_new_one(tmp_path: Path):
    library, info = tmp_path / "libnet.so", TensorInfo("x", (1, 1))
    answers = []
    for number in (1, 2):
        source = tmp_path / "net.c"
        source.write_text(
            "int net_run(const void *const in[], void *const out[], void *arena)"
            f"{{ (void)in; (void)arena; *(float *)out[0] = {number}; return 0; }}"
        )
        subprocess.run(["gcc", "-shared", "-fPIC", source, "-o", tmp_path / "new.so"], check=True)
        (tmp_path / "new.so").replace(library)  # as a bundle is replaced
        program = HostProgram(library, "net", [info], [info], 0)
        answers.append(float(program.run(np.zeros((1, 1), np.float32))[0][0, 0]))
    assert answers == [1, 2]


def test_features_that_no_cpu_has_are_not_claimed():
    assert this_machine_has(())
    assert not this_machine_has(("neon", "avx2"))  # of two architectures
