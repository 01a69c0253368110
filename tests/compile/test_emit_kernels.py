"""Scheduled PrimFuncs become plain C functions with no runtime behind them."""

from __future__ import annotations

import ctypes
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from armlet.compile import link
from armlet.compile.dump import Dump
from armlet.compile.emit.kernels import STACK_LIMIT, build_kernels, llvm_target
from armlet.compile.kernels.loops import Parameter, cast, prim_func, store
from armlet.compile.pipeline import compile_onnx
from armlet.compile.symbols import check_undefined, undefined_symbols
from armlet.devices.emulator import Emulator
from armlet.errors import ArmletError, UsageError
from armlet.spec.load import load_target
from armlet.spec.target import Target

if TYPE_CHECKING:
    import tvm

N = 4096


def _square_plus_one(scope: str, tile: int = 1024) -> tvm.IRModule:
    """c = a * a + 1, with the product in a working buffer of `tile` values."""
    import tvm
    from tvm import s_tir, te

    a = te.placeholder((N,), "float32", "a")
    b = te.compute((N,), lambda i: a[i] * a[i], name="b")
    c = te.compute((N,), lambda i: b[i] + 1.0, name="c")
    schedule = s_tir.Schedule(tvm.IRModule({"square": te.create_prim_func([a, c])}))
    (loop,) = schedule.get_loops(schedule.get_sblock("c", "square"))
    outer, _ = schedule.split(loop, [None, tile])
    product = schedule.get_sblock("b", "square")
    schedule.compute_at(product, outer)
    schedule.set_scope(product, 0, scope)
    for block in ("b", "c"):
        *_, inner = schedule.get_loops(schedule.get_sblock(block, "square"))
        _, lanes = schedule.split(inner, [None, 8])
        schedule.vectorize(lanes)
    return schedule.mod


@pytest.mark.parametrize(
    ("update", "message"),
    [
        (
            {"llvm_cpu": "cortex-a722"},
            r"core\.llvm_cpu: .* no core 'cortex-a722' \(did you mean 'cortex-a72'",
        ),
        ({"llvm_cpu": "x86-64-v3"}, r"core\.llvm_cpu: .* no core 'x86-64-v3' \(known: a64fx, "),
        ({"llvm_cpu": "apple-latest"}, ""),  # an alias, which LLVM does not list
    ],
)
def test_a_core_that_llvm_lacks_is_refused(update: dict[str, str], message: str):
    board = load_target("raspberry-pi-4")
    target = board.model_copy(update={"core": board.core.model_copy(update=update)})
    with pytest.raises(UsageError, match=message) if message else nullcontext():
        llvm_target(target)


def test_a_triple_that_llvm_lacks_is_refused():
    target = load_target("raspberry-pi-4").model_copy(update={"triple": "aarch65-linux-gnu"})
    with pytest.raises(UsageError, match=r"triple: .* LLVM does not know 'aarch65-linux-gnu'"):
        llvm_target(target)


def _load(target: Target, unit: Path) -> ctypes.CDLL:
    library = unit.with_suffix(".so")
    link.link_shared(target, unit, library)
    return ctypes.CDLL(str(library))


def test_a_global_working_buffer_becomes_a_pointer_that_the_caller_provides(tmp_path: Path, host: Target):
    (kernel,) = build_kernels(_square_plus_one("global"), host, "net", tmp_path / "k.o")

    assert (kernel.symbol, kernel.n_parameters, kernel.scratch_bytes) == ("net_square", 2, (4096,))
    a = np.random.default_rng(0).standard_normal(N).astype(np.float32)
    c, scratch = np.empty(N, np.float32), np.empty(1024, np.float32)
    square = _load(host, tmp_path / "k.o").net_square
    square(*(ctypes.c_void_p(array.ctypes.data) for array in (a, c, scratch)))
    # The host's baseline has no fused multiply-add: the product is rounded before the sum, as NumPy does.
    np.testing.assert_array_equal(c, a * a + np.float32(1))
    np.testing.assert_array_equal(scratch, (a * a)[-1024:])


def test_a_local_working_buffer_stays_on_the_stack(tmp_path: Path, host: Target):
    (kernel,) = build_kernels(_square_plus_one("local", tile=512), host, "net", tmp_path / "k.o")

    assert kernel.scratch_bytes == ()
    check_undefined(host, tmp_path / "k.o")
    a = np.random.default_rng(1).standard_normal(N).astype(np.float32)
    c = np.empty(N, np.float32)
    _load(host, tmp_path / "k.o").net_square(ctypes.c_void_p(a.ctypes.data), ctypes.c_void_p(c.ctypes.data))
    np.testing.assert_array_equal(c, a * a + np.float32(1))


def test_a_kernel_that_takes_too_much_stack_is_refused(tmp_path: Path, host: Target):
    with pytest.raises(
        ArmletError, match=f"kernel square takes 8192 bytes of stack, more than {STACK_LIMIT}"
    ):
        build_kernels(_square_plus_one("local", tile=2048), host, "net", tmp_path / "k.o")


def test_buffers_need_the_alignment_of_their_type_only(tmp_path: Path, host: Target):
    build_kernels(_square_plus_one("global"), host, "net", tmp_path / "k.o")
    square = _load(host, tmp_path / "k.o").net_square
    memory = np.zeros(3 * N + 8, np.float32)
    a, c, scratch = memory[1 : N + 1], memory[N + 3 : 2 * N + 3], memory[2 * N + 6 : 2 * N + 6 + 1024]
    a[:] = np.random.default_rng(2).standard_normal(N)

    square(*(ctypes.c_void_p(array.ctypes.data) for array in (a, c, scratch)))

    np.testing.assert_array_equal(c, a * a + np.float32(1))


def test_every_kernel_object_is_free_of_tvm(tmp_path: Path, lowered_cnn, host: Target, board: Target):
    for target in (host, board):
        kernels = build_kernels(lowered_cnn.module, target, "net", tmp_path / "all.o")
        roots = [kernel.symbol for kernel in kernels]
        link.link_relocatable(target, [tmp_path / "all.o"], tmp_path / "k.o", roots)

        check_undefined(target, tmp_path / "k.o")
        assert set(undefined_symbols(tmp_path / "k.o")) <= {
            "expf",
            "memcpy",
            "memset",
            "_GLOBAL_OFFSET_TABLE_",
        }


@pytest.mark.parametrize(
    ("name", "attributes"),
    [
        ("raspberry-pi-2", ["+neon"]),
        ("raspberry-pi-4", ["+neon"]),
        ("raspberry-pi-5", ["+neon", "+dotprod", "+fullfp16"]),
        ("aws-graviton3", ["+neon", "+dotprod", "+fullfp16", "+i8mm", "+sve"]),
    ],
)
def test_the_features_of_a_target_become_llvm_attributes(name: str, attributes: list[str]):
    llvm = llvm_target(load_target(name))

    assert list(llvm.attrs["mattr"]) == attributes
    assert bool(llvm.attrs["feature.has_dotprod"]) == ("+dotprod" in attributes)


@pytest.mark.parametrize("columns", [12, 18, 33])
def test_no_store_of_32_bit_code_misses(columns: int, board32: Target, tmp_path: Path):
    """LLVM joins those of a row, and forgets that it has moved the base of the rest."""
    import onnx
    from onnx import TensorProto, helper

    shape, moved = [1, 11, columns, 7], [1, 7, 11, columns]
    graph = helper.make_graph(
        [helper.make_node("Transpose", ["x"], ["y"], perm=[0, 3, 1, 2])],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, moved)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, tmp_path / "model.onnx")
    compiled = compile_onnx(tmp_path / "model.onnx", board32, "net", tmp_path)
    samples = np.random.default_rng(0).standard_normal((2, *shape[1:])).astype(np.float32)
    found = Emulator(board32).run(tmp_path / "bin" / "run", samples, compiled.outputs)
    np.testing.assert_array_equal(found, samples.transpose(0, 3, 1, 2))


@pytest.mark.parametrize("stride", [1, 2])
def test_elements_that_lie_apart_are_not_loaded_as_one_vector(stride: int, tmp_path: Path):
    import tvm
    from tvm.script.ir_builder import tirx as t

    def body(x, y) -> None:
        store(y, 0, 8, cast(x[t.ramp(0, stride, 8)], "int16", 8))

    kernel = prim_func([Parameter("x", 16, "int8"), Parameter("y", 8, "int16")], body)
    dump = Dump(tmp_path / "dump")
    module = tvm.IRModule({"kernel": kernel})
    build_kernels(module, load_target("raspberry-pi-2"), "net", tmp_path / "all.o", dump)
    (text,) = (path.read_text() for path in (tmp_path / "dump" / "05-lowered").iterdir())
    assert ("llvm.arm.neon.vld1" in text) == (stride == 1)
