"""A library with kernels for several CPUs takes those that its CPU can run, with the same bits on all of them."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from tests.compile.conftest import cnn_model
from tests.compile.front.test_attention import attention
from tests.compile.front.test_dynamic import _convolution
from tests.compile.front.test_integer_patterns import Qdq
from tests.compile.front.test_integer_recurrent import layer_model

from armlet import digest
from armlet.artifacts import Compiled
from armlet.bench.cycles import count_cycles
from armlet.compile.emit.packed import PACKED_FOLDER
from armlet.compile.pipeline import compile_onnx
from armlet.compile.symbols import EXTENSIONS_SYMBOL, check_undefined, undefined_symbols
from armlet.devices.emulator import Emulator
from armlet.devices.host import HostProgram
from armlet.errors import ArmletError
from armlet.spec.load import load_target
from armlet.spec.target import Emulator as EmulatorSpec
from armlet.spec.target import Target

TAKEN = {"cortex-a53": "base", "cortex-a72": "base", "cortex-a76": "dotprod", "max": "i8mm"}
"""The build that each of QEMU's cores gets."""


def _attention() -> onnx.ModelProto:
    net = Qdq(1, 10, 12)
    return net.model(attention(net))


MODELS = {
    "attention": _attention,
    "lstm": lambda: layer_model("lstm", (10, 12, 21), "bidirectional", parts="y", batch_first=True),
    "dynamic convolution": _convolution,
}


@dataclass(frozen=True)
class Program:
    """A program for many CPUs, and what this machine's program answers."""

    folder: Path
    compiled: Compiled
    samples: np.ndarray
    answers: np.ndarray


def _on(cpu: str) -> Emulator:
    target = load_target("arm64-linux")
    return Emulator(target.model_copy(update={"emulator": EmulatorSpec(cpu=cpu)}))


def _compile(model: onnx.ModelProto, board: Target, folder: Path) -> Program:
    del board  # skips where nothing can be built for boards
    onnx.save(model, folder / "model.onnx")
    here = compile_onnx(folder / "model.onnx", load_target("host"), "net", folder / "host")
    compiled = compile_onnx(folder / "model.onnx", load_target("arm64-linux"), "net", folder, packed=True)
    shape = compiled.inputs[0].shape[1:]
    samples = np.random.default_rng(8).normal(0, 1, (20, *shape)).astype(np.float32)
    return Program(folder, compiled, samples, HostProgram.load(folder / "host", here).run_many(samples))


@pytest.fixture(scope="module", params=MODELS)
def program(
    request: pytest.FixtureRequest, board: Target, tmp_path_factory: pytest.TempPathFactory
) -> Program:
    return _compile(MODELS[request.param](), board, tmp_path_factory.mktemp("variants"))


@pytest.fixture(scope="module")
def integers(board: Target, tmp_path_factory: pytest.TempPathFactory) -> Program:
    return _compile(MODELS["attention"](), board, tmp_path_factory.mktemp("integers"))


@pytest.mark.parametrize("cpu", TAKEN)
def test_every_cpu_gets_its_kernels_and_the_same_bits(cpu: str, program: Program):
    emulator, runner = _on(cpu), program.folder / "bin" / "run"

    answers = emulator.run(runner, program.samples, program.compiled.outputs)

    assert emulator.variant(runner) == TAKEN[cpu]
    np.testing.assert_array_equal(answers.view(np.uint32), program.answers.view(np.uint32))
    assert len(np.unique(answers)) > 100


def test_the_manifest_says_what_each_variant_needs_and_runs(integers: Program):
    compiled = integers.compiled
    assert compiled.features == ("neon",)
    assert [(v.name, v.features) for v in compiled.variants] == [
        ("dotprod", ("neon", "dotprod")),
        ("i8mm", ("neon", "dotprod", "i8mm")),
    ]
    schedules = [{k.schedule for k in compiled.kernels_of(v)} for v in ("base", "dotprod", "i8mm")]
    assert [s & {"sadalp", "sdot", "smmla"} for s in schedules] == [{"sadalp"}, {"sdot"}, {"smmla"}]


def test_instructions_are_only_where_the_variant_that_needs_them_is(integers: Program):
    listing = subprocess.run(
        ["aarch64-linux-gnu-objdump", "-d", integers.folder / "src" / "net_kernels.o"],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    users: dict[str, set[str]] = {"sdot": set(), "smmla": set()}
    for name, body in re.findall(r"<(net_\w+)>:\n((?:.+\n)+)", listing):
        for instruction, symbols in users.items():
            if re.search(rf"\t{instruction}\t", body):
                symbols.add(name)
    assert users["sdot"]
    assert all(name.startswith(("net_dotprod_", "net_i8mm_")) for name in users["sdot"])
    assert users["smmla"]
    assert all(name.startswith("net_i8mm_") for name in users["smmla"])


def test_kernels_and_constants_that_are_alike_are_there_once(
    integers: Program, board: Target, tmp_path: Path
):
    alike = {k.symbol for k in integers.compiled.kernels}.intersection(
        *({k.symbol for k in v.kernels} for v in integers.compiled.variants)
    )
    assert {k.op for k in integers.compiled.kernels if k.symbol in alike} >= {
        "quantize",
        "softmax",
        "layer_norm",
    }
    floats = _compile(cnn_model(), board, tmp_path).compiled  # kernels of float32 need no extension
    assert {k.symbol for v in floats.variants for k in v.kernels} == {k.symbol for k in floats.kernels}
    plain = load_target("arm64-linux").builds[0]
    single = compile_onnx(tmp_path / "model.onnx", plain, "net", tmp_path / "plain", small=True)
    parameters = [tmp_path / place / "src" / "net_params.bin" for place in (".", "plain")]
    assert digest.of_file(parameters[0]) == digest.of_file(parameters[1])
    assert floats.arena_bytes == single.arena_bytes


def test_the_arena_is_that_of_the_build_that_needs_most(integers: Program, tmp_path: Path):
    model, needed = integers.folder / "model.onnx", []
    for number, build in enumerate(load_target("arm64-linux").builds):
        needed.append(compile_onnx(model, build, "net", tmp_path / str(number)))
    assert integers.compiled.arena_bytes == max(c.arena_bytes for c in needed)
    assert integers.compiled.arena_lower_bound == max(c.arena_lower_bound for c in needed)
    assert integers.compiled.size_bytes < sum(c.size_bytes for c in needed)


def test_only_a_library_with_variants_asks_linux_for_extensions(integers: Program, tmp_path: Path):
    subprocess.run(
        ["aarch64-linux-gnu-ar", "x", integers.folder / "lib" / "libnet.a"], cwd=tmp_path, check=True
    )
    whole = tmp_path / "net.o"
    assert EXTENSIONS_SYMBOL in undefined_symbols(whole)
    check_undefined(load_target("arm64-linux"), whole, extensions=True)
    with pytest.raises(ArmletError, match="needs getauxval, which no app has"):
        check_undefined(load_target("arm64-linux"), whole)
    compile_onnx(integers.folder / "model.onnx", load_target("raspberry-pi-4"), "net", tmp_path / "one")
    assert "auxv" not in (tmp_path / "one" / "src" / "net.c").read_text()
    assert "VARIANT" not in (tmp_path / "one" / "lib" / "net.h").read_text()


def test_the_shared_library_exports_the_entry_and_the_variant(integers: Program):
    listed = subprocess.run(
        ["nm", "-D", "--defined-only", integers.folder / "lib" / "libnet.so"],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    assert [line.split()[-1] for line in listed.splitlines()] == ["net_run", "net_variant"]


def test_the_shipped_makefile_rebuilds_a_library_with_variants(integers: Program):
    library, runner = integers.folder / "lib" / "libnet.so", integers.folder / "bin" / "run"
    before = digest.of_file(library), digest.of_file(runner)
    library.unlink()
    runner.unlink()
    (integers.folder / "lib" / "libnet.a").unlink()
    subprocess.run(["make", "-C", "src"], cwd=integers.folder, check=True, capture_output=True)
    assert (digest.of_file(library), digest.of_file(runner)) == before


APP = r"""
#include "net_packed.h"
#include <stdio.h>
static _Alignas(NET_WEIGHTS_ALIGN) unsigned char weights[NET_WEIGHTS_BYTES];
static _Alignas(NET_ARENA_ALIGN) unsigned char arena[NET_ARENA_BYTES];
static float x[NET_INPUT_0_ELEMENTS], y[NET_OUTPUT_0_ELEMENTS];
int main(void)
{
    const void *const in[] = {x};
    void *const out[] = {y};
    if (fread(x, sizeof x, 1, stdin) != 1 || net_unpack(weights) || net_run_unpacked(weights, in, out, arena))
        return 1;
    fputs(net_variant(), stderr);
    return fwrite(y, sizeof y, 1, stdout) == 1 ? 0 : 2;
}
"""


def test_the_library_with_packed_constants_has_the_variants_too(integers: Program, tmp_path: Path):
    (tmp_path / "app.c").write_text(APP)
    packed = integers.folder / PACKED_FOLDER
    flags = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-pedantic", "-static"]
    subprocess.run(
        ["aarch64-linux-gnu-gcc", *flags, "-I", integers.folder / "lib", "-I", packed, "app.c",
         packed / "libnet_packed.a", "-lm", "-o", "app"], cwd=tmp_path, check=True,
    )  # fmt: skip
    for cpu, variant in TAKEN.items():
        done = subprocess.run(
            ["qemu-aarch64", "-cpu", cpu, tmp_path / "app"],
            input=integers.samples[0].tobytes(), check=True, capture_output=True,
        )  # fmt: skip
        assert done.stderr.decode() == variant
        np.testing.assert_array_equal(np.frombuffer(done.stdout, np.float32), integers.answers[0].reshape(-1))


def test_the_kernels_of_the_variant_that_ran_are_counted(integers: Program):
    target = load_target("arm64-linux")
    target = target.model_copy(update={"core": target.core.model_copy(update={"cost_model": "neoverse-n1"})})
    runner = integers.folder / "bin" / "run"
    counts = count_cycles(Emulator(target).count(runner, integers.samples[:1]), runner, target)
    counted = {kernel.symbol for kernel in counts.kernels}
    assert {kernel.symbol for kernel in integers.compiled.kernels_of("i8mm")} <= counted
    assert not any(symbol.startswith("net_dense") for symbol in counted)
