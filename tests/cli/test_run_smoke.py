"""The whole way through the command line on real data, and everything that a user does with what comes out."""

import html
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from armlet.stages.program import N_MATCHED

ROOT = Path(__file__).parent.parent.parent
RECIPES = {
    "cnn": ROOT / "recipes" / "cnn-fashion-mnist.yaml",
    "fnn": ROOT / "recipes" / "fnn-letter-recognition.yaml",
}
BOARDS = ("raspberry-pi-4", "raspberry-pi-5")


@pytest.fixture(scope="session", params=sorted(RECIPES))
def smoke(request, armlet, tmp_path_factory):
    """(recipe file, output folder, JSON of the run): the smoke profile for two boards and this machine."""
    output = tmp_path_factory.mktemp(f"build-{request.param}")
    done = armlet(
        "run", RECIPES[request.param], "--profile", "smoke", "-t", "host", "-t", BOARDS[0], "-t", BOARDS[1],
        "-o", output, "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return RECIPES[request.param], output, json.loads(done.stdout)


def bundles(smoke) -> list[Path]:
    return [Path(target["bundle"]) for target in smoke[2]["targets"]]


def test_every_budget_of_the_smoke_profile_holds_and_is_measured(smoke):
    for target in smoke[2]["targets"]:
        outcomes = {check["what"]: check["outcome"] for check in target["checks"]}
        assert set(outcomes.values()) <= {"pass", "no budget"}
        latency = next(check for check in target["checks"] if check["what"] == "latency")
        assert ("measured (host)" if target["target"] == "host" else "estimated") in latency["measured"]


def test_each_pass_says_what_it_gained_on_the_board(smoke):
    for target, bundle in zip(smoke[2]["targets"], bundles(smoke), strict=True):
        manifest = json.loads((bundle / "manifest.json").read_bytes())
        costs = manifest["costs"]
        if target["target"] == "host":
            assert costs == []
            continue
        assert len(costs) == len(
            manifest["passes"]
        )  # of the trained network, and after each pass but the last
        assert {cost["latency"]["label"] for cost in costs} == {"estimated"}
        latencies = [cost["latency"]["typical_ms"] for cost in costs]
        latencies.append(manifest["measured"]["latency"]["typical_ms"])
        # Without dot products INT8 may be slower than float32, whose 3×3 convolutions have fewer multiplications.
        faster = latencies if target["target"] == "raspberry-pi-5" else latencies[:-1]
        assert faster == sorted(faster, reverse=True)
        assert latencies[0] > 1.5 * latencies[-1]
        sizes = [*(cost["size_bytes"] for cost in costs), manifest["size_bytes"]]
        assert sizes == sorted(sizes, reverse=True)
        assert ">Latency</th>" in (bundle / "report.html").read_text(encoding="utf-8")


def test_the_board_gives_the_same_bits_as_the_host_on_at_least_500_inputs_or_the_whole_split(smoke):
    for target in smoke[2]["targets"]:
        if target["target"] == "host":
            continue
        manifest = json.loads((Path(target["bundle"]) / "manifest.json").read_bytes())
        match = manifest["measured"]["match"]
        assert manifest["compiled"]["integer_only"]
        assert match["n_samples"] == min(N_MATCHED, manifest["evaluated"]["score"]["n_samples"])
        assert match["n_identical"] == match["n_samples"]
        assert match["tolerance"] == 0


def test_a_bundle_has_all_its_parts(smoke):
    for bundle in bundles(smoke):
        symbol = json.loads((bundle / "manifest.json").read_bytes())["symbol"]
        for part in ("model.onnx", "model.tflite", "report.html", f"lib/lib{symbol}.a", f"lib/lib{symbol}.so",
                     f"lib/{symbol}.h", f"src/{symbol}.c", "examples/main.c", "bin/run"):  # fmt: skip
            assert (bundle / part).is_file(), part


def test_a_second_run_does_nothing_again_and_loads_neither_torch_nor_tvm(smoke, armlet, cache):
    recipe, output, _ = smoke
    script = (
        "import sys\nfrom armlet.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "print([m for m in ('torch', 'tvm', 'onnx', 'matplotlib') if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "run", str(recipe), "-p", "smoke", "-t", BOARDS[0], "-o", str(output), "--json"],
        env=os.environ | {"ARMLET_CACHE": str(cache)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert all(step["cached"] for step in json.loads(done.stdout)["steps"])
    assert done.stderr.splitlines()[-1] == "[]"


def test_check_repeats_the_verdict_from_the_bundle_alone(smoke, armlet, tmp_path):
    for bundle in bundles(smoke):
        copy = tmp_path / bundle.name
        shutil.copytree(bundle, copy)
        done = armlet("check", copy, "--json", cache=tmp_path / "no-cache")
        assert done.returncode == 0, done.stderr
        verdict = json.loads(done.stdout)
        expected = next(t for t in smoke[2]["targets"] if Path(t["bundle"]) == bundle)
        assert verdict["checks"] == expected["checks"]


@pytest.mark.parametrize(
    "flags", [("--size", "1 KiB"), ("--accuracy", "99.9 %"), ("--latency", "1 ns"), ("--memory", "10 B")]
)
def test_a_budget_that_fails_ends_with_1(smoke, armlet, flags):
    done = armlet("check", bundles(smoke)[1], *flags)
    assert done.returncode == 1
    assert "fail" in done.stdout


def test_a_failing_budget_in_a_run_ends_with_1_and_still_leaves_the_bundle(smoke, armlet, tmp_path):
    recipe, _, _ = smoke
    done = armlet("run", recipe, "-p", "smoke", "-t", BOARDS[0], "-o", tmp_path, "--size", "1 KiB", "-q")
    assert done.returncode == 1, done.stderr
    assert "fail" in done.stdout
    assert (tmp_path / f"{recipe.stem}-{BOARDS[0]}-smoke.armlet" / "report.html").is_file()


def test_inspect_prints_interface_sizes_and_kernels(smoke, armlet):
    done = armlet("inspect", bundles(smoke)[1])
    assert done.returncode == 0, done.stderr
    for text in ("input", "output", "arena", "_run(const void", "int8", "all verified"):
        assert text in done.stdout
    assert re.search(r"^accuracy +\d+\.\d\d % of \d+ test samples *$", done.stdout, re.MULTILINE)
    assert re.search(r"^memory +arena .*, 0 % above the least possible *$", done.stdout, re.MULTILINE)
    assert re.search(r"^calibration error +\d+\.\d\d % *$", done.stdout, re.MULTILINE)


def test_report_tells_what_was_learned_and_what_compression_changed(smoke, armlet):
    bundle = bundles(smoke)[1]
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    done = armlet("report", bundle)
    assert done.returncode == 0, done.stderr
    changes = manifest["evaluated"]["changes"]
    for text in (*manifest["class_names"], "training samples", "calibration error", "newly wrong", "report.html",
                 f"{changes['n_changed']} of {changes['n_samples']} test samples are answered otherwise"):  # fmt: skip
        assert text in done.stdout
    facts = json.loads(armlet("report", bundle, "--json").stdout)
    assert facts[0]["compiled"]["score"]["value"] == manifest["evaluated"]["score"]["value"]
    compared = armlet("report", *bundles(smoke)).stdout
    assert all(b.name.removesuffix(".armlet") in compared for b in bundles(smoke))


def test_a_changed_bundle_file_is_named(smoke, armlet, tmp_path):
    copy = tmp_path / "b.armlet"
    shutil.copytree(bundles(smoke)[1], copy)
    with (copy / "model.onnx").open("ab") as stream:
        stream.write(b"x")
    done = armlet("check", copy)
    assert done.returncode == 2
    assert "model.onnx" in done.stderr
    assert "is corrupted" in done.stderr


def test_a_bundle_runs_from_python_natively_and_under_emulation_with_the_same_answers(smoke):
    import armlet

    host, board = armlet.load(bundles(smoke)[0]), armlet.load(bundles(smoke)[1])
    shape = host.inputs[0].shape[1:]
    batch = np.random.default_rng(0).random((3, *shape), dtype=np.float32)
    answers = host(batch)
    assert answers.shape == (3, *host.outputs[0].shape[1:])
    assert np.ptp(answers) > 0
    np.testing.assert_array_equal(answers, board(batch))
    np.testing.assert_array_equal(answers[1], host(batch[1]))
    np.testing.assert_array_equal(answers, host({host.inputs[0].name: batch}))
    with pytest.raises(armlet.UsageError, match="has shape"):
        host(np.zeros((2, 2), np.float32))
    with pytest.raises(armlet.UsageError, match="no input 'nonsense'"):
        host({"nonsense": batch})


def test_the_onnx_and_litert_twins_agree_with_the_program_within_quantisation_steps(smoke):
    import onnxruntime
    from ai_edge_litert.interpreter import Interpreter

    import armlet

    bundle = bundles(smoke)[0]
    program = armlet.load(bundle)
    (info,), (out,) = program.inputs, program.outputs
    batch = np.random.default_rng(1).random((20, *info.shape[1:]), dtype=np.float32)
    ours = program(batch)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(bundle / "model.onnx"), options)
    onnx = np.concatenate([session.run(None, {info.name: x[None]})[0] for x in batch])
    interpreter = Interpreter(str(bundle / "model.tflite"))
    interpreter.allocate_tensors()
    litert = []
    for x in batch:
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x[None])
        interpreter.invoke()
        litert.append(interpreter.get_tensor(interpreter.get_output_details()[0]["index"]))
    step = out.scale
    # Rounding differs by at most one step in each layer; few of them add up.
    assert np.abs(ours - onnx).max() <= 2.01 * step
    assert np.abs(ours - np.concatenate(litert)).max() <= 3.01 * step


def test_the_examples_build_with_the_cross_compiler_and_run_under_emulation(smoke, tmp_path):
    bundle = tmp_path / "b.armlet"
    shutil.copytree(bundles(smoke)[1], bundle)
    symbol = json.loads((bundle / "manifest.json").read_bytes())["symbol"]
    program = tmp_path / "app"
    subprocess.run(
        ["aarch64-linux-gnu-gcc", "-std=c11", "-Wall", "-Wextra", "-Werror", "-static", "-I", str(bundle / "lib"),
         str(bundle / "examples" / "main.c"), str(bundle / "lib" / f"lib{symbol}.a"), "-lm", "-o", str(program)],
        check=True,
    )  # fmt: skip
    done = subprocess.run(
        ["qemu-aarch64", "-cpu", "cortex-a72", str(program)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip()


def test_the_reference_report_tells_the_verdict(smoke):
    for bundle in bundles(smoke):
        page = (bundle / "report.html").read_text(encoding="utf-8")
        manifest = json.loads((bundle / "manifest.json").read_bytes())
        for check in manifest["verdict"]["checks"]:
            assert html.escape(check["measured"]) in page, check["what"]
        assert f"<title>{manifest['name']} for {manifest['target']['name']}" in page


INTERRUPTED = """\
name: interrupted
data: {kind: letter-recognition, limit: 2000, test_limit: 200}
model: {kind: fnn, hidden: [64]}
train: {epochs: 40, schedule: constant}
"""


def test_an_interrupted_run_ends_with_130_and_the_next_one_resumes(cache, tmp_path):
    recipe = tmp_path / "interrupted.yaml"
    recipe.write_text(INTERRUPTED)
    private = tmp_path / "cache"
    private.mkdir()
    for shared in ("data", "tools"):
        (private / shared).symlink_to(cache / shared)
    command = [sys.executable, "-m", "armlet", "run", str(recipe), "-o", str(tmp_path / "build")]
    environment = os.environ | {"ARMLET_CACHE": str(private)}
    process = subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while (
        not (saved := list(private.glob("work/*/checkpoint.safetensors")))  # renamed there when it is whole
        and time.monotonic() < deadline
    ):
        time.sleep(0.02)
    assert saved, "no checkpoint was written"
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "run the same command again" in errors
    assert "Traceback" not in errors
    assert not list(private.glob("entries/*/.*")), "half-written entries were left"
    again = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert "resum" in again.stderr


def test_a_failed_step_ends_with_4_and_its_reproducer_repeats_it(smoke, armlet, cache, tmp_path):
    recipe = tmp_path / "silly.yaml"
    # A learning rate that makes every weight infinite: training itself must notice.
    recipe.write_text(
        INTERRUPTED.replace("schedule: constant", "schedule: constant, optimizer: sgd, learning_rate: 1e30")
    )
    done = armlet("run", recipe, "-o", tmp_path / "build")
    assert done.returncode == 4, done.stderr
    assert "step train failed" in done.stderr
    folder = Path(done.stderr.split("reproducer: ")[1].splitlines()[0])
    assert {"step.json", "traceback.txt", "inputs"} <= {p.name for p in folder.iterdir()}
    again = armlet("reproduce", folder)
    assert again.returncode == 4
    assert "training diverged" in again.stderr
    shutil.rmtree(folder)


def test_a_name_that_fits_no_module_ends_with_2_before_anything_is_trained(armlet, tmp_path):
    recipe = tmp_path / "slip.yaml"
    passes = "[{kind: distill}, {kind: quantize_static, exclude: [clasifier]}]"
    recipe.write_text(f"{INTERRUPTED}passes: {passes}\n")
    done = armlet("run", recipe, "-o", tmp_path / "build")
    assert done.returncode == 2
    assert (
        "passes.1.exclude: exclude has 'clasifier', which fits none of the network's modules" in done.stderr
    )
    assert "✓ data" in done.stderr
    assert "✓ train" not in done.stderr


def test_a_corrupted_store_entry_is_named_and_ends_with_2(cache, tmp_path, armlet):
    recipe = tmp_path / "small.yaml"
    recipe.write_text(INTERRUPTED.replace("epochs: 40", "epochs: 1").replace("interrupted", "small"))
    private = tmp_path / "cache"
    private.mkdir()
    for shared in ("data", "tools"):
        (private / shared).symlink_to(cache / shared)
    first = armlet("run", recipe, "-o", tmp_path / "build", cache=private)
    assert first.returncode == 0, first.stderr
    victim = next(private.glob("entries/*/*/network.safetensors"))
    victim.write_bytes(victim.read_bytes()[:-1] + b"\0")
    again = armlet("run", recipe, "-o", tmp_path / "build", cache=private)
    assert again.returncode == 2
    assert f"{victim}: is corrupted" in again.stderr
    remedy = again.stderr.split("(rm -r ")[1].split(",")[0]
    shutil.rmtree(remedy)
    assert armlet("run", recipe, "-o", tmp_path / "build", cache=private).returncode == 0


def test_a_module_with_an_operator_that_cannot_be_compiled_is_refused_before_it_is_trained(armlet, tmp_path):
    (tmp_path / "net.py").write_text(
        "from torch import nn\n\n\nclass Net(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.last = nn.Linear(16, 26)\n\n"
        "    def forward(self, x):\n        return self.last(x.cumsum(1))\n"
    )
    (tmp_path / "own.yaml").write_text(
        "name: own\ndata: {kind: letter-recognition, limit: 200, test_limit: 50}\n"
        "model: {kind: module, file: net.py, factory: Net}\ntrain: {epochs: 3}\n"
    )
    done = armlet("run", tmp_path / "own.yaml", "--target", "host", "-o", tmp_path / "out")
    assert done.returncode == 4
    assert "step train failed" in done.stderr
    assert "(CumSum): no such operator is known" in done.stderr
    assert "epoch 1" not in done.stderr
