"""The C driver of an OpenCL program on a device written for tests: float16, every failure, nothing left behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.compile.opencl_device import TestDevice
from tests.compile.test_opencl_layers import LAYERS, network_of

from armlet.artifacts import Compiled
from armlet.compile.pipeline import compile_onnx
from armlet.spec.load import load_target
from armlet.spec.recipe import Precision
from armlet.stages.compare import HALF_TOLERANCE


def compiled_layer(name: str, folder: Path, precision: Precision) -> tuple[Compiled, np.ndarray, np.ndarray]:
    """Return a layer's program, a sample, and ONNX Runtime's answer."""
    import onnx
    import onnxruntime

    network, (_, shape) = network_of(name), LAYERS[name]
    onnx.save(network, folder / "model.onnx")
    target = load_target("host-opencl")
    compiled = compile_onnx(folder / "model.onnx", target, "net", folder, precision=precision)
    sample = np.random.default_rng(2).standard_normal(shape).astype(np.float32)
    session = onnxruntime.InferenceSession(network.SerializeToString(), providers=["CPUExecutionProvider"])
    return compiled, sample, session.run(None, {"x": sample})[0]


HALF = [
    "a product of rows", "a convolution in tiles", "channel by channel", "a transposed convolution",
    "a mean with a border",
    "a maximum", "a softmax", "a normalisation", "a sum over rows", "an error function", "a lstm of both directions",
    "a gru backwards",
]  # fmt: skip


@pytest.mark.parametrize("name", HALF)
def test_a_layer_in_float16_is_near_the_one_in_float32(name: str, tmp_path: Path):
    compiled, sample, expected = compiled_layer(name, tmp_path, "float16")
    device = TestDevice(tmp_path, compiled)
    code, message, (found,) = device.run(sample)
    assert (code, message, device.live) == (0, "", 0)
    assert compiled.precision == "float16"
    assert 0 < np.abs(found - expected).max() <= HALF_TOLERANCE * np.abs(expected).max()


def test_float32_is_exact_but_for_the_order_of_sums(tmp_path: Path):
    compiled, sample, expected = compiled_layer("a lstm of both directions", tmp_path, "float32")
    code, _, (found,) = TestDevice(tmp_path, compiled).run(sample)
    assert code == 0
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_every_failure_is_said_and_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    compiled, sample, expected = compiled_layer("a product of one row", tmp_path, "float16")
    device = TestDevice(tmp_path, compiled)
    found = {}
    for number in range(100):
        monkeypatch.setenv("FAIL_AT", str(number))
        device.restart()
        code, message, outputs = device.run(sample)
        assert device.live == 0, message
        if code == 0:
            break
        assert message
        found[message] = code
    np.testing.assert_allclose(outputs[0], expected, atol=1e-2)
    assert number > 20
    assert {
        "OpenCL has no platform: no driver is installed": 3,
        "OpenCL has no device: none of its platforms lists one": 3,
        "clGetDeviceInfo: CL_INVALID_VALUE": 7,
        "test device: the test says so": 5,
        "clCreateContext: CL_OUT_OF_RESOURCES": 7,
        "clSetKernelArg: OpenCL error -50": 7,
        "net_dense_0: CL_INVALID_WORK_GROUP_SIZE": 7,
        "clEnqueueReadBuffer: CL_OUT_OF_RESOURCES": 7,
    }.items() <= found.items()


def test_null_pointers_are_refused(tmp_path: Path):
    import ctypes

    compiled, _, _ = compiled_layer("exponentials", tmp_path, "float32")
    driver = TestDevice(tmp_path, compiled)._driver
    message = ctypes.create_string_buffer(1024)
    assert driver.net_open(None, message) == 1
    assert message.value == b"a pointer is NULL: program"
    assert driver.net_run(None, None, None, message) == 1
    assert driver.net_run(None, None, None, None) == 1
    driver.net_close(None)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ('"libOpenCL.so', '"/nowhere', "there is no OpenCL library: "),
        ('"clCreateSubBuffer"', '"clNothing"', "the OpenCL library lacks a function: clNothing"),
    ],
)
def test_a_library_that_is_not_there_or_lacks_a_function(before: str, after: str, said: str, tmp_path: Path):
    compiled, sample, _ = compiled_layer("exponentials", tmp_path, "float32")
    driver = tmp_path / "src" / "net.c"
    driver.write_text(driver.read_text().replace(before, after))
    device = TestDevice(tmp_path, compiled, keep_names=after == '"/nowhere')
    code, message, _ = device.run(sample)
    assert code == 2
    assert message.startswith(said)
