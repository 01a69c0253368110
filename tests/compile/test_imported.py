"""A compiled file is held against ONNX Runtime's answers, and a program that answers otherwise is found."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest

from armlet import artifact_json
from armlet.artifacts import Imported, Match, TensorInfo
from armlet.check import check_budgets
from armlet.errors import UsageError
from armlet.progress import Silent
from armlet.spec.budget import Budgets
from armlet.stages.imported import import_onnx, measure_imported, random_samples, worst

OUTPUT = TensorInfo("y", (1, 10))


def measured(program, model: onnx.ModelProto, tmp_path):
    """What comes of holding a host program against a model."""
    # The program's own folder is of other tests, too; what is loaded once must not be written over.
    folder = Path(tempfile.mkdtemp(dir=tmp_path)) / "program"
    shutil.copytree(program.folder, folder)
    artifact_json.save(program.compiled, folder)
    onnx.save(model, tmp_path / "net.onnx")
    inputs = (TensorInfo("x", (1, 1, 16, 16)),)
    imported = Imported("net.onnx", "", inputs, (OUTPUT,), 18, False, 1, (), 16, True)
    return measure_imported(
        (folder, None),
        imported,
        random_samples(inputs),
        tmp_path / "net.onnx",
        program.target,
        Silent(),
    )


def test_a_program_of_the_model_holds_and_one_of_another_does_not(host_cnn, tmp_path):
    found, outputs = measured(host_cnn, host_cnn.model, tmp_path)
    assert found.reference.holds
    assert 0 < found.reference.tolerance < 2e-4
    assert np.ptp(outputs[0]) > 0.1
    other = onnx.ModelProto()
    other.CopyFrom(host_cnn.model)
    weight = next(i for i in other.graph.initializer if i.name == "w1")
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * np.float32(1.01), "w1"))
    wrong, _ = measured(host_cnn, other, tmp_path)
    assert not wrong.reference.holds
    checks = check_budgets(Budgets(), None, None, host_cnn.compiled, wrong).checks
    assert {c.what: c.outcome for c in checks}["same answers"] == "fail"


def test_drawn_samples_fill_the_grid_of_a_quantised_input_and_tokens_are_not_drawn():
    pixels = TensorInfo("pixels", (1, 40, 40), scale=1 / 255, zero_point=-128)
    plain, again = (random_samples((pixels, TensorInfo("x", (1, 5)))) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(plain, again, strict=True))
    assert plain[0].dtype == np.float32
    assert 0 <= plain[0].min() < 0.01 < 0.99 < plain[0].max() <= 1
    with pytest.raises(UsageError, match="input 'tokens' takes whole numbers, which can't be drawn"):
        random_samples((TensorInfo("tokens", (1, 5), "int32"),))


def test_the_worst_output_stands_for_all():
    near, far = Match(4, 4, 0.001, 0.1, "near"), Match(4, 1, 0.09, 0.1, "far")
    broken = Match(4, 2, 0.5, 0.1, "broken")
    assert worst([near, far]) == far
    assert worst([far, near, broken]) == Match(4, 1, 0.5, 0.1, "broken")


def test_samples_that_are_not_finite_are_refused_before_any_work(host_cnn, tmp_path):
    onnx.save(host_cnn.model, tmp_path / "net.onnx")
    samples = np.zeros((5, 1, 16, 16), np.float32)
    samples[3, 0, 2, 2] = np.nan
    samples[4, 0, 2, 2] = -np.inf
    with pytest.raises(UsageError) as caught:
        import_onnx(tmp_path / "net.onnx", {}, {"x": samples}, tmp_path)
    assert str(caught.value) == "samples of input 'x' are not finite: 2 of 5, the first is number 3"
    (tmp_path / "whole").mkdir()
    found, _ = import_onnx(tmp_path / "net.onnx", {}, {"x": samples[:3]}, tmp_path / "whole")
    assert found.n_samples == 3
