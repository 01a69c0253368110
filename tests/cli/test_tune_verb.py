"""`armlet tune`: a table of tiles for a board or for this machine, and what `--tiles` makes of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.boards import requires_board
from typer.testing import CliRunner

import armlet
from armlet import artifact_json
from armlet.artifacts import TileTable, TunedKernel
from armlet.bundle import Bundle
from armlet.cli.main import app
from armlet.compile.pipeline import lower
from armlet.errors import UsageError
from armlet.plan import make_plan
from armlet.spec.load import load_recipe, load_target
from armlet.spec.tiles import with_tiles

BOARD, CORE = "raspberry-pi-5", "cortex-a76"
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A convolution and a linear layer of ten outputs."""
    generator = np.random.default_rng(3)
    weights = {"w": (6, 2, 3, 3), "v": (10, 96), "b": (6,), "c": (10,)}
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["h"], name="conv", strides=[2, 2]),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("Flatten", ["r"], ["f"], name="flat"),
        helper.make_node("Gemm", ["f", "v", "c"], ["y"], name="head", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 2, 9, 9))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 10))],
        [
            numpy_helper.from_array((generator.standard_normal(s) / 4).astype(np.float32), n)
            for n, s in weights.items()
        ],
    )
    path = tmp_path_factory.mktemp("onnx") / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def _table(model: Path, folder: Path, core: str = CORE, **changed) -> Path:
    """Write a table with another tile than the formula's for each kernel of a network."""
    kernels = []
    for tunable in lower(model, load_target(BOARD)).tunables:
        other = next(choice for choice in tunable.candidates if choice != tunable.formula)
        kernels.append(TunedKernel(tunable.key, other, 1, tunable.formula, 2))
    table = TileTable(**({"core": core, "unit": "cycles", "how": "", "kernels": tuple(kernels)} | changed))
    path = folder / "tiles.json"
    path.write_text(artifact_json.to_json(table))
    return path


@requires_board
def test_a_table_for_a_board_is_the_same_every_time_and_goes_on_where_it_stopped(model: Path, tmp_path: Path):
    file = tmp_path / "tiles.json"
    command = ["tune", str(model), "-t", BOARD, "-o", str(file), "--json"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert (told["core"], told["unit"], told["file"]) == (CORE, "cycles", str(file))
    assert len(told["kernels"]) == 2
    for kernel in told["kernels"]:
        assert kernel["formula_cost"] > 100
        assert kernel["cost"] <= kernel["formula_cost"]
        assert (kernel["cost"] < kernel["formula_cost"]) == (kernel["tile"] != kernel["formula"])
    whole = artifact_json.from_json(TileTable, file.read_bytes())
    kept = whole.kernels[0]
    marked = TunedKernel(kept.kernel, kept.tile, 12345, kept.formula, 12345)
    file.write_text(artifact_json.to_json(TileTable(CORE, "cycles", whole.how, (marked,))))
    assert CliRunner().invoke(app, command).exit_code == 0
    assert artifact_json.from_json(TileTable, file.read_bytes()).kernels == (marked, *whole.kernels[1:])


@requires_board
def test_tiles_of_a_table_are_in_the_program_and_its_manifest_and_answers_stay(model: Path, tmp_path: Path):
    samples = {"x": np.random.default_rng(0).standard_normal((5, 2, 9, 9)).astype(np.float32)}
    answers, kernels = [], []
    for name, tiles in (("plain", ()), ("tuned", (_table(model, tmp_path),))):
        made = armlet.compile_onnx(model, BOARD, output=tmp_path / name, inputs=samples, tiles=tiles)
        answers.append(np.frombuffer((made.folder / "samples" / "outputs.bin").read_bytes(), np.float32))
        kernels.append([k for k in Bundle.open(made.folder).manifest.compiled.kernels if k.tile])
    assert [k.op for k in kernels[0]] == [k.op for k in kernels[1]] == ["conv2d", "dense"]
    assert not any(k.tuned for k in kernels[0])
    assert all(k.tuned for k in kernels[1])
    assert all(a.tile != b.tile for a, b in zip(*kernels, strict=True))
    np.testing.assert_allclose(answers[1], answers[0], rtol=0, atol=1e-6 * np.abs(answers[0]).max())
    assert "tile from a table" in (tmp_path / "tuned" / "report.html").read_text()
    assert "tile from a table" not in (tmp_path / "plain" / "report.html").read_text()


def test_kernels_are_timed_on_this_machine(model: Path, tmp_path: Path):
    table = armlet.tune(model, "host", output=tmp_path / "tiles.json")
    assert table.unit == "ns"
    assert [kernel.kernel.split()[:2] for kernel in table.kernels] == [["conv2d", "float32"]] * 2
    assert all(0 < kernel.cost <= kernel.formula_cost for kernel in table.kernels)


def test_a_table_that_does_not_fit_is_refused(model: Path, tmp_path: Path):
    board, other = load_target(BOARD), load_target("raspberry-pi-4")
    file = _table(model, tmp_path)
    (tuned,) = with_tiles((board,), [file])
    assert len(tuned.tiles) == 2
    assert with_tiles((other, board), [file]) == (other, tuned)
    with pytest.raises(UsageError, match="is for the core cortex-a76, but the program is for cortex-a72"):
        with_tiles((other,), [file])
    with pytest.raises(UsageError, match=r"is for cortex-a76 like .*: give one"):
        with_tiles((board,), [file, file])
    with pytest.raises(UsageError, match=r"is a table of version 0, not 1.*make it again with armlet tune"):
        with_tiles((board,), [_table(model, tmp_path, version=0)])
    file.write_text("{}")
    with pytest.raises(UsageError, match=r"tiles\.json: is no table of tiles"):
        with_tiles((board,), [file])
    with pytest.raises(UsageError, match=r"no-such\.json: can't be read"):
        with_tiles((board,), [tmp_path / "no-such.json"])


def test_a_table_is_not_added_to_where_its_costs_came_about_otherwise(model: Path, tmp_path: Path):
    file = _table(model, tmp_path, core="x86-64-v2")
    with pytest.raises(UsageError, match="has costs that came about otherwise: ''"):
        armlet.tune(model, "host", output=file)
    with pytest.raises(UsageError, match=r"has no core\.cost_model"):
        armlet.tune(model, "android-arm64", output=file)
    on_gpu = load_target("host-opencl")
    table = TileTable(on_gpu.resolved_cpu, "ns", "", ())
    file.write_text(artifact_json.to_json(table))
    with pytest.raises(UsageError, match=r"is for the core .*, but the program is for a GPU"):
        with_tiles((on_gpu,), [file])


def test_a_changed_table_compiles_anew_where_it_is_for_the_core(model: Path, tmp_path: Path):
    recipe = load_recipe(ROOT / "recipes" / "fnn-letter-recognition.yaml")
    targets = [load_target(name) for name in ("raspberry-pi-4", BOARD)]
    plain = make_plan(recipe, targets)
    tuned = make_plan(recipe, with_tiles(targets, [_table(model, tmp_path)]))
    changed = {a.name for a, b in zip(plain.steps, tuned.steps, strict=True) if a.key != b.key}
    assert f"compile/{BOARD}" in changed
    assert all(name.split("/")[1] == BOARD for name in changed)
