"""`armlet compile`: files of somebody else's, float and quantised, to programs that answer as ONNX Runtime does."""

import json
import shlex
import subprocess
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.compile.front.test_qoperator import Operator

import armlet as library
from armlet.errors import UnsupportedOperator
from armlet.spec.load import load_target

BOARD = "raspberry-pi-4"
SHAPE = (1, 3, 12, 12)


def network(batch: int | str = 1) -> onnx.ModelProto:
    """Two equal convolutions, which share a kernel, pooling, a dense layer."""
    generator = np.random.default_rng(3)
    shapes = {"w0": (8, 3, 3, 3), "w1": (8, 8, 3, 3), "w2": (8, 8, 3, 3), "w3": (5, 288)}
    weights = {n: generator.standard_normal(s) * np.sqrt(2 / np.prod(s[1:])) for n, s in shapes.items()}
    weights |= {f"b{i}": generator.standard_normal(s) * 0.1 for i, s in enumerate((8, 8, 8, 5))}
    nodes = []
    value = "image"
    for i in range(3):
        nodes.append(
            helper.make_node("Conv", [value, f"w{i}", f"b{i}"], [f"c{i}"], name=f"conv{i}", pads=[1] * 4)
        )
        nodes.append(helper.make_node("Relu", [f"c{i}"], [f"r{i}"], name=f"relu{i}"))
        value = f"r{i}"
    nodes += [
        helper.make_node("MaxPool", [value], ["p"], name="pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["p"], ["f"], name="flat"),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["scores"], name="head", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, (batch, *SHAPE[1:]))],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, (batch, 5))],
        [numpy_helper.from_array(v.astype(np.float32), n) for n, v in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def pointwise() -> onnx.ModelProto:
    """Three 1×1 convolutions, of which two are equal but for their weights."""
    generator = np.random.default_rng(3)
    extents = [(16, 8), (16, 16), (16, 16)]
    weights = {f"w{i}": generator.standard_normal((*e, 1, 1)) / 4 for i, e in enumerate(extents)}
    weights |= {f"b{i}": generator.standard_normal(16) for i in range(3)}
    nodes = []
    for i, value in enumerate(("image", "r0", "r1")):
        nodes += [
            helper.make_node("Conv", [value, f"w{i}", f"b{i}"], [f"c{i}"], name=f"conv{i}"),
            helper.make_node("Relu", [f"c{i}"], [f"r{i}"], name=f"relu{i}"),
        ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, (1, 8, 12, 12))],
        [helper.make_tensor_value_info("r2", TensorProto.FLOAT, (1, 16, 12, 12))],
        [numpy_helper.from_array(v.astype(np.float32), n) for n, v in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """The network in float32, with a batch left open, with QDQ nodes, and quantised while it runs; by ONNX Runtime."""
    from onnxruntime import quantization as q

    folder = tmp_path_factory.mktemp("onnx")
    found = {name: folder / f"{name}.onnx" for name in ("plain", "open", "qdq", "dynamic")}
    onnx.save(network(), found["plain"])
    onnx.save(network("batch"), found["open"])

    class Reader(q.CalibrationDataReader):
        def __init__(self) -> None:
            generator = np.random.default_rng(1)
            self.samples = iter(
                [{"image": generator.standard_normal(SHAPE).astype(np.float32)} for _ in range(32)]
            )

        def get_next(self):
            return next(self.samples, None)

    q.quantize_static(
        found["plain"], found["qdq"], Reader(), quant_format=q.QuantFormat.QDQ, per_channel=True,
        activation_type=q.QuantType.QInt8, weight_type=q.QuantType.QInt8,
    )  # fmt: skip
    q.quantize_dynamic(found["plain"], found["dynamic"], weight_type=q.QuantType.QInt8)
    return found


@pytest.fixture(scope="module")
def qdq(armlet, files, tmp_path_factory):
    """(bundle, dump, JSON): the quantised file for the board."""
    folder = tmp_path_factory.mktemp("qdq")
    done = armlet(
        "compile", files["qdq"], "-t", BOARD, "-o", folder / "net.armlet", "--name", "my-net", "--dump",
        folder / "dump", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder / "net.armlet", folder / "dump", json.loads(done.stdout)


def reference(file: Path, samples: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(file), options)
    return np.concatenate([session.run(None, {"image": x[None]})[0] for x in samples])


def test_a_quantised_file_becomes_an_integer_program_with_the_hosts_bits_and_onnx_runtimes_answers(
    qdq, files
):
    bundle, _, told = qdq
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    checks = {check["what"]: check for check in told["checks"]}
    assert (told["name"], told["passes"], told["target"]) == ("my-net", True, BOARD)
    assert manifest["compiled"]["integer_only"]
    assert checks["same outputs"]["measured"] == "16 of 16 identical"
    assert checks["same answers"]["outcome"] == "pass"
    assert checks["accuracy"] == {
        "what": "accuracy", "budget": "", "measured": "not measured", "margin": None, "outcome": "no budget",
    }  # fmt: skip
    assert "estimated" in checks["latency"]["measured"]
    assert manifest["trained"] is manifest["evaluated"] is manifest["provenance"]["recipe"] is None
    samples = np.fromfile(bundle / "samples" / "inputs.bin", np.float32).reshape(-1, *SHAPE[1:])
    outputs = np.fromfile(bundle / "samples" / "outputs.bin", np.float32).reshape(-1, 5)
    step = manifest["outputs"][0]["scale"]
    expected = reference(files["qdq"], samples)
    assert np.ptp(expected) > 20 * step
    assert np.abs(outputs - expected).max() <= 2.01 * step


def test_the_samples_of_a_bundle_are_what_its_runner_makes_of_them(qdq, tmp_path):
    bundle, _, _ = qdq
    samples = bundle / "samples"
    command = ["qemu-aarch64", "-cpu", "cortex-a72", str(bundle / "bin" / "run"), str(samples / "inputs.bin")]
    subprocess.run([*command, str(tmp_path / "out"), "16"], check=True)
    assert (tmp_path / "out").read_bytes() == (samples / "outputs.bin").read_bytes()


def test_the_table_of_layers_names_the_nodes_and_adds_up_to_the_program(qdq, armlet):
    bundle, _, told = qdq
    rows, compiled = told["layers"], json.loads((bundle / "manifest.json").read_bytes())["compiled"]
    assert json.loads(armlet("inspect", bundle, "--layers", "--json").stdout) == rows
    named = [name for row in rows for name in row["layers"] if name in {n.name for n in network().graph.node}]
    assert {"conv0", "conv1", "conv2", "pool", "head"} == set(named)  # ReLU is in the scales
    calls = [row for row in rows if row["layers"]]
    assert [row["macs"] for row in calls if row["op"] == "conv2d"] == [31104, 82944, 82944]
    assert [row["shape"] for row in calls if row["op"] == "conv2d"] == [[1, 8, 12, 12]] * 3
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    # What is in no row: the entry and unwind tables; literals, and gaps that align constants.
    code, constants = (sum(row[key] or 0 for row in rows) for key in ("code_bytes", "constant_bytes"))
    assert 0.5 * compiled["code_bytes"] < code < compiled["code_bytes"]
    assert compiled["constant_bytes"] - 1024 < constants <= compiled["constant_bytes"]
    shown = armlet("inspect", bundle, "--layers").stdout
    assert "besides: " in shown
    assert "llvm-mca" in shown


def test_calls_that_share_a_kernel_count_its_code_once_and_share_its_cycles(armlet, tmp_path):
    onnx.save(pointwise(), tmp_path / "net.onnx")
    done = armlet("compile", tmp_path / "net.onnx", "-t", BOARD, "-o", tmp_path / "net.armlet", "--json")
    assert done.returncode == 0, done.stderr
    rows = [row for row in json.loads(done.stdout)["layers"] if row["op"] == "conv2d"]
    assert [row["n_calls"] for row in rows] == [1, 2, 2]
    assert [row["layers"] for row in rows] == [[f"conv{i}", f"relu{i}"] for i in range(3)]
    assert rows[1]["symbol"] == rows[2]["symbol"]
    assert rows[1]["code_bytes"] > rows[2]["code_bytes"] == 0
    assert rows[1]["cycles"] == rows[2]["cycles"] > rows[0]["cycles"]
    assert rows[1]["constant_bytes"] == rows[2]["constant_bytes"] == 4 * (16 * 16 + 16)
    assert "shared kernels" in armlet("inspect", tmp_path / "net.armlet", "--layers").stdout


def test_check_inspect_report_and_load_work_without_a_recipe(qdq, armlet, files):
    bundle, _, told = qdq
    assert json.loads(armlet("check", bundle, "--json").stdout)["checks"] == told["checks"]
    held = armlet("check", bundle, "--size", "1 KiB")
    assert (held.returncode, "fail" in held.stdout) == (1, True)
    scored = armlet("check", bundle, "--accuracy", "90 %", "--accuracy-drop", "1 %", "--json")
    outcomes = {c["what"]: (c["budget"], c["outcome"]) for c in json.loads(scored.stdout)["checks"]}
    assert scored.returncode == 1
    assert outcomes["accuracy"] == ("≥ 90.0 %", "not measured")
    assert outcomes["accuracy drop"] == ("≤ 1.0 points", "not measured")
    shown = armlet("inspect", bundle)
    assert shown.returncode == 0, shown.stderr
    for text in ("compiled from", "qdq.onnx", "not measured", "all verified"):
        assert text in shown.stdout
    report = armlet("report", bundle)
    assert report.returncode == 0, report.stderr
    assert "my_net_conv2d_0" in report.stdout
    assert armlet("report", bundle, bundle).returncode == 0
    page = (bundle / "report.html").read_text(encoding="utf-8")
    for text in ("against ONNX Runtime", "qdq.onnx", "there are no samples with labels", "conv1"):
        assert text in page
    for text in ("What each step did", "Training", "Recipe, with every default"):
        assert text not in page
    program = library.load(bundle)
    samples = np.fromfile(bundle / "samples" / "inputs.bin", np.float32).reshape(-1, *SHAPE[1:])
    outputs = np.fromfile(bundle / "samples" / "outputs.bin", np.float32).reshape(-1, 5)
    np.testing.assert_array_equal(program(samples[:2]), outputs[:2])


def test_the_dump_has_every_stage_in_order(qdq):
    _, dump, _ = qdq
    names = sorted(path.name for path in dump.iterdir())
    assert names == [
        "00-onnx.txt", "01-read.txt", "02-simplified.txt", "03-integer.txt", "04-kernels", "05-lowered",
        "06-kernels.ll", "07-kernels.s", "08-entry.c", "09-arena.json",
    ]  # fmt: skip
    texts = {name: (dump / name).read_text() for name in names if "." in name}
    assert "DequantizeLinear" in texts["00-onnx.txt"]
    assert "Conv2d[" in texts["01-read.txt"]
    assert "int8[1, 8, 12, 12]" in texts["03-integer.txt"]
    assert "integer Integer[" in texts["03-integer.txt"]
    assert "integer Integer[" not in texts["02-simplified.txt"]
    kernels = {path.stem for path in (dump / "04-kernels").iterdir()} - {"main"}
    assert {path.stem for path in (dump / "05-lowered").iterdir()} == {f"my_net_{name}" for name in kernels}
    for name in kernels:
        assert f"my_net_{name}" in texts["06-kernels.ll"]
        assert f"my_net_{name}:" in texts["07-kernels.s"]
    assert "call_tir" in (dump / "04-kernels" / "main.py").read_text()
    assert "int my_net_run(" in texts["08-entry.c"]
    arena = json.loads(texts["09-arena.json"])
    assert arena["arena_bytes"] == max(b["offset"] + b["bytes"] for b in arena["buffers"])
    assert {b["last_call"] for b in arena["buffers"]} <= set(range(len(arena["calls"])))


def test_a_file_quantised_while_it_runs_and_given_samples(armlet, files, tmp_path):
    samples = np.random.default_rng(9).standard_normal((3, *SHAPE[1:])).astype(np.float32)
    np.savez(tmp_path / "data.npz", image=samples)
    done = armlet(
        "compile",
        files["dynamic"],
        "-o",
        tmp_path / "net.armlet",
        "--inputs",
        tmp_path / "data.npz",
        "--json",
    )
    assert done.returncode == 0, done.stderr
    checks = {check["what"]: check for check in json.loads(done.stdout)["checks"]}
    assert "of 3 identical" in checks["same answers"]["measured"]
    np.testing.assert_array_equal(
        np.fromfile(tmp_path / "net.armlet" / "samples" / "inputs.bin", np.float32), samples.reshape(-1)
    )
    layers = [name for row in json.loads(done.stdout)["layers"] for name in row["layers"]]
    assert any("conv1" in name and "quant" in name for name in layers)  # the ConvInteger that was conv1


def test_an_open_extent_is_named_with_what_to_give_and_that_works(armlet, files, tmp_path):
    done = armlet("compile", files["open"], "-o", tmp_path / "net.armlet")
    assert done.returncode == 2
    assert "input 'image' leaves extents open: [batch, 3, 12, 12]" in done.stderr
    assert "--shape image=1,3,12,12" in done.stderr
    given = armlet(
        "compile",
        files["open"],
        "-o",
        tmp_path / "net.armlet",
        "--shape",
        "image=1,3,12,12",
        "--memory",
        "1 KiB",
    )
    assert given.returncode == 1, given.stderr
    assert "compile/host" in given.stderr
    assert "fail" in given.stdout
    manifest = json.loads((tmp_path / "net.armlet" / "manifest.json").read_bytes())
    assert manifest["imported"]["fixed"] == ["image"]
    assert manifest["outputs"][0]["shape"] == [1, 5]


def test_what_is_wrong_ends_with_one_error_and_the_documented_exit_code(armlet, files, tmp_path):
    (tmp_path / "text.onnx").write_text("no ONNX")
    unknown = network()
    unknown.graph.node[1].op_type, unknown.graph.node[3].op_type = "Selu", "Celu"
    onnx.save(unknown, tmp_path / "unknown.onnx")
    unheard = network()
    unheard.graph.node[1].op_type, unheard.graph.node[3].op_type = "Swoosh", "Swish2"
    onnx.save(unheard, tmp_path / "unheard.onnx")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("mine")
    for arguments, code, messages in (
        ([tmp_path / "none.onnx"], 2, [f"{tmp_path / 'none.onnx'}: no such file"]),
        ([tmp_path / "text.onnx"], 2, ["can't be read as ONNX"]),
        (
            [tmp_path / "unknown.onnx"],
            4,
            ["relu0 (Selu): no such operator", "relu1 (Celu): no such operator"],
        ),
        ([tmp_path / "unheard.onnx"], 4, ["relu0 (Swoosh)", "relu1 (Swish2)"]),
        ([files["plain"], "-t", "raspbery-pi-4"], 2, ["did you mean 'raspberry-pi-4'?"]),
        ([files["plain"], "--shape", "image"], 2, ["write NAME=1,3,224,224"]),
        ([files["plain"], "--shape", "imag=1,3,12,12"], 2, ["has no input 'imag'", "did you mean 'image'?"]),
        (
            [files["plain"], "--shape", "image=1,3,9,9"],
            2,
            ["is [1, 3, 12, 12], which [1, 3, 9, 9] does not fit"],
        ),
        ([files["open"], "--shape", "image=4,3,12,12"], 2, ["the first extent is the batch"]),
        ([files["plain"], "--inputs", tmp_path / "text.onnx"], 2, ["text.onnx: can't be read as samples"]),
        ([tmp_path / "string.onnx"], 2, ["'string' can't be a program's name", "choose one with --name"]),
        ([files["plain"], "--name", "My Net"], 2, ["'My Net' can't be a program's name"]),
        ([files["plain"], "--latency", "5"], 2, ["--latency"]),
        ([files["plain"], "--precision", "float16"], 2, ["target host has no arithmetic on float16"]),
        ([files["plain"], "--threads", "3"], 2, ["'3' is not one of '1', '2', '4'"]),
        (
            [files["plain"], "-t", BOARD, "--precision", "float16"],
            2,
            [
                f"target {BOARD} has no arithmetic on float16: its features lack fp16",
                "such as raspberry-pi-5",
            ],
        ),
        (
            [files["qdq"], "-t", "raspberry-pi-5", "--precision", "float16"],
            4,
            ["float16 is for networks that are not quantised", "conv0"],
        ),
        ([files["plain"], "-o", tmp_path / "taken"], 2, ["exists and is not a bundle"]),
        ([files["plain"], "--dump", tmp_path / "taken"], 2, ["holds other things than a dump"]),
    ):
        done = armlet("compile", *arguments, cwd=tmp_path)
        assert done.returncode == code, (arguments, done.stderr)
        assert all(message in done.stderr for message in messages), done.stderr
        assert "Traceback" not in done.stderr
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["mine.txt"]
    assert list((tmp_path / "build").iterdir()) == []


def test_the_library_compiles_too(files, tmp_path):
    samples = {"image": np.random.default_rng(2).standard_normal((2, *SHAPE[1:])).astype(np.float32)}
    bundle = library.compile_onnx(
        files["plain"], output=tmp_path / "net.armlet", inputs=samples, budgets={"memory": "64 KiB"}
    )
    assert bundle.manifest.verdict.passes
    assert (bundle.folder, bundle.manifest.name) == (tmp_path / "net.armlet", "plain")
    assert library.Bundle.open(tmp_path / "net.armlet").manifest.imported.n_samples == 2
    with pytest.raises(library.UsageError, match="no input 'picture'"):
        library.compile_onnx(
            files["plain"], output=tmp_path / "net.armlet", inputs={"picture": samples["image"]}
        )


def test_tokens_need_samples_and_those_that_no_table_has_are_refused(tmp_path):
    table = np.random.default_rng(4).standard_normal((9, 6)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "tokens"], ["rows"], name="embed"),
            helper.make_node("ReduceMean", ["rows"], ["mean"], name="mean", axes=[1], keepdims=0),
        ],
        "net",
        [helper.make_tensor_value_info("tokens", TensorProto.INT64, (1, 4))],
        [
            helper.make_tensor_value_info("rows", TensorProto.FLOAT, (1, 4, 6)),
            helper.make_tensor_value_info("mean", TensorProto.FLOAT, (1, 6)),
        ],
        [numpy_helper.from_array(table, "table")],
    )
    file, output = tmp_path / "tokens.onnx", tmp_path / "tokens.armlet"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), file)
    with pytest.raises(library.UsageError, match="'tokens' takes whole numbers"):
        library.compile_onnx(file, output=output)
    with pytest.raises(library.UsageError, match=r"ONNX Runtime can't run tokens\.onnx on these"):
        library.compile_onnx(file, output=output, inputs={"tokens": [[1, 2, 3, 9]]})
    assert not output.exists()
    tokens = np.array([[0, 8, 3, 3], [1, 2, 5, 7]])
    bundle = library.compile_onnx(file, output=output, inputs={"tokens": tokens})
    assert bundle.manifest.verdict.passes
    answers = library.load(output)(tokens)
    np.testing.assert_array_equal(answers["rows"], table[tokens])
    np.testing.assert_allclose(answers["mean"], table[tokens].mean(1), atol=1e-6)


def test_a_program_whose_instructions_this_machine_lacks_is_refused_before_it_is_run(files, tmp_path):
    host = load_target("host")
    lacking = "avx2" if host.resolved_triple.startswith("aarch64") else "sve"
    core = host.core.model_copy(update={"llvm_cpu": host.resolved_cpu})
    foreign = host.model_copy(update={"name": "odd", "features": (lacking,), "core": core})
    with pytest.raises(library.UsageError, match=f"runs on this machine, whose CPU has no {lacking}"):
        library.compile_onnx(files["plain"], foreign, output=tmp_path / "net.armlet")


def test_a_file_of_onnx_runtimes_own_operators_is_compiled(tmp_path):
    net = Operator("uint8", (1, 6, 5), (1, 6, 5))
    one, two = net.scale(0.03, 7), net.scale(0.05, -30)
    net.node("QLinearAdd", "a", *one, "b", *two, *net.scale(0.06, -3))
    onnx.save(net.model((1, 6, 5)), tmp_path / "sum.onnx")
    manifest = library.compile_onnx(tmp_path / "sum.onnx", BOARD, output=tmp_path / "sum.armlet").manifest
    assert manifest.verdict.passes
    assert manifest.compiled.integer_only


def test_answers_in_int8_are_held_in_steps(files, tmp_path):
    model = onnx.load(files["qdq"])
    last = [node for node in model.graph.node if node.op_type == "QuantizeLinear"][-1].output[0]
    while last not in model.graph.node[-1].output:
        model.graph.node.pop()
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info(last, TensorProto.INT8, (1, 5)))
    onnx.save(model, tmp_path / "integers.onnx")
    bundle = library.compile_onnx(tmp_path / "integers.onnx", BOARD, output=tmp_path / "net.armlet")
    assert bundle.manifest.verdict.passes
    assert 2 <= bundle.manifest.measured.reference.tolerance < 5
    outputs = np.fromfile(tmp_path / "net.armlet" / "samples" / "outputs.bin", np.int8)
    assert np.ptp(outputs.astype(int)) > 100


def test_a_file_in_float16_takes_half_the_constants_and_answers_nearly_as_onnx_runtime_does(
    armlet, files, tmp_path
):
    found = {}
    for precision in ("float32", "float16"):
        place = tmp_path / f"{precision}.armlet"
        options = ["-t", "raspberry-pi-5", "--optimize", "size", "--precision", precision, "-o", place]
        done = armlet("compile", files["plain"], *options, "--json")
        assert done.returncode == 0, done.stderr
        found[precision] = json.loads((place / "manifest.json").read_bytes())
    whole, half = found["float32"], found["float16"]
    # Constants begin at whole cache lines.
    assert 2 * half["compiled"]["constant_bytes"] < whole["compiled"]["constant_bytes"] + 256
    assert half["compiled"]["arena_bytes"] < whole["compiled"]["arena_bytes"]
    instructions = [one["measured"]["counts"]["instructions"] for one in (half, whole)]
    assert instructions[0] < 0.8 * instructions[1]
    for match in (half["measured"]["match"], half["measured"]["reference"]):
        assert match["reason"] == "values and sums are rounded to float16"
        assert 0 < match["max_abs_difference"] < match["tolerance"]
    assert half["inputs"] == whole["inputs"]
    assert half["outputs"] == whole["outputs"]
    inspected = armlet("inspect", tmp_path / "float16.armlet").stdout
    assert "float16 within" in inspected


def test_a_file_for_several_threads_gives_the_answers_of_one_and_says_how_many(armlet, files, tmp_path):
    found = {}
    for threads in ("1", "2"):
        place = tmp_path / f"{threads}.armlet"
        done = armlet("compile", files["plain"], "-t", BOARD, "--threads", threads, "-o", place, "--json")
        assert done.returncode == 0, done.stderr
        found[threads] = json.loads((place / "manifest.json").read_bytes())
    answers = [(tmp_path / f"{n}.armlet" / "samples" / "outputs.bin").read_bytes() for n in found]
    assert answers[0] == answers[1]
    one, two = found["1"], found["2"]
    assert (one["compiled"]["threads"], two["compiled"]["threads"]) == (1, 2)
    assert "one thread;" in one["measured"]["latency"]["how"]
    assert "one thread of the 2 that the program may use" in two["measured"]["latency"]["how"]
    shared = sum(kernel["parallel"] for kernel in two["compiled"]["kernels"])
    assert (
        f"2, for {shared} of {len(two['compiled']['kernels'])} calls"
        in armlet("inspect", tmp_path / "2.armlet").stdout
    )
    assert "Threads: up to 2 share" in (tmp_path / "2.armlet" / "report.html").read_text()
    assert "Threads:" not in (tmp_path / "1.armlet" / "report.html").read_text()
    with pytest.raises(library.UsageError, match="3 threads can't compute one call: use 1, 2 or 4"):
        library.compile_onnx(files["plain"], threads=3)


def test_weights_stay_as_they_are_where_the_program_is_optimized_for_size(armlet, files, tmp_path):
    sizes = []
    for given in ([], ["--optimize", "size"]):
        done = armlet("compile", files["plain"], "-t", BOARD, "-o", tmp_path / "net.armlet", "--json", *given)
        assert done.returncode == 0, done.stderr
        rows = [row for row in json.loads(done.stdout)["layers"] if row["op"] == "conv2d"]
        sizes.append((rows[1]["schedule"], rows[1]["constant_bytes"]))
    assert sizes == [("winograd 4", 4 * (8 * 8 * 36 + 8)), ("lanes", 4 * (8 * 8 * 9 + 8))]


def test_a_failure_leaves_the_file_its_samples_and_the_command_that_repeats_it(armlet, tmp_path):
    unknown = network("batch")
    unknown.graph.node[1].op_type = "Selu"
    onnx.save(unknown, tmp_path / "net.onnx")
    np.savez(tmp_path / "some.npz", image=np.ones((2, *SHAPE[1:]), np.float32))
    done = armlet(
        "compile", tmp_path / "net.onnx", "-t", BOARD, "--shape", "image=1,3,12,12", "--inputs", tmp_path / "some.npz",
        "-o", tmp_path / "net.armlet", "--threads", "2",
    )  # fmt: skip
    assert done.returncode == 4
    refusal, _, place = done.stderr.partition("\nreproducer: ")
    assert "relu0 (Selu): no such operator is known" in refusal
    folder = Path(place.strip())
    assert {p.name for p in folder.iterdir()} == {
        "net.onnx", "inputs.npz", "target.yaml", "step.json", "traceback.txt",
    }  # fmt: skip
    command = json.loads((folder / "step.json").read_bytes())["command"]
    assert "--threads 2" in command
    told = armlet("reproduce", folder)
    assert (told.returncode, command in told.stderr) == (2, True)

    program, *words = shlex.split(command)
    again = armlet(*words)
    assert (program, again.returncode) == ("armlet", 4)
    assert again.stderr.partition("\nreproducer: ")[0] == refusal
    with pytest.raises(UnsupportedOperator, match="no such operator is known"):
        library.compile_onnx(
            tmp_path / "net.onnx", BOARD, shapes={"image": SHAPE}, output=tmp_path / "net.armlet"
        )
