"""One inference in each runtime, as a call without arguments: armlet, ONNX Runtime, LiteRT, OpenVINO, MNN.

What answers otherwise than armlet is not timed: it does other work.
"""

from __future__ import annotations

import ctypes
import functools
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

import arm_guest
from arm_guest import Runtime
from armlet.compile.pipeline import compile_onnx
from armlet.devices.host import HostProgram
from armlet.errors import ArmletError
from armlet.spec.target import Target

Call = Callable[[], object]
LARGEST_DIFFERENCE = 0.1
"""Of two answers, as a share of the largest number: rounding of INT8 goes through many layers."""


def all_of(
    folder: Path, sample: np.ndarray, features: tuple[str, ...]
) -> tuple[dict[str, Call], dict[str, str]]:
    """Return a call of `folder/model.onnx` on the sample for each runtime, and why the others have none."""
    call, answer = armlet(folder, sample, features)
    calls: dict[str, Call] = {"armlet": call}
    missing: dict[str, str] = {}
    call()
    expected = answer()
    for name, make in PEERS.items():
        try:
            call, answer = make(folder, sample)
            call()
            check_answer(answer(), expected)
            calls[name] = call
        except ModuleNotFoundError as error:
            missing[name] = f"not installed: {error.name}"
        except (ArmletError, RuntimeError, ValueError) as error:
            missing[name] = (str(error).strip() or type(error).__name__).splitlines()[0]
    return calls, missing


def check_answer(found: np.ndarray, expected: np.ndarray) -> None:
    """Raise RuntimeError where an answer is another one than the expected."""
    if found.size != expected.size:
        raise RuntimeError(f"its answer has {found.size} numbers, not {expected.size}")
    difference = np.abs(found.ravel() - expected.ravel()).max() / np.abs(expected).max()
    if not difference <= LARGEST_DIFFERENCE:
        raise RuntimeError(f"its answer differs by {difference:.0%} of the largest number")


def target_of(features: tuple[str, ...]) -> Target:
    """Return this machine as a target whose kernels use these features."""
    cpu = "x86-64-v4" if "avx512vnni" in features else "x86-64-v3" if "avx2" in features else "x86-64-v2"
    return Target(
        name="here",
        triple="native",
        core={"llvm_cpu": cpu},
        features=features,
        toolchain={"cc": "gcc", "ar": "ar"},
    )


def armlet(folder: Path, sample: np.ndarray, features: tuple[str, ...]) -> Runtime:
    """Compile for this machine; ctypes calls the C function itself, with pointers made before."""
    compiled = compile_onnx(folder / "model.onnx", target_of(features), "network", folder / "armlet")
    program = HostProgram.load(folder / "armlet", compiled)
    outputs = [np.empty(info.shape, info.dtype) for info in program.outputs]
    program.run(sample)  # checks shapes
    given = (ctypes.c_void_p * 1)(sample.ctypes.data)
    found = (ctypes.c_void_p * len(outputs))(*(a.ctypes.data for a in outputs))
    library = ctypes.CDLL(str(folder / "armlet" / "lib" / "libnetwork.so"))
    call = functools.partial(library.network_run, given, found, ctypes.c_void_p(program._arena()))
    call.keep = (sample, outputs, program)  # what the pointers point to
    return call, lambda: outputs[0]


def onnxruntime(folder: Path, sample: np.ndarray) -> Runtime:
    """ONNX Runtime's CPU provider, all optimisations, input and output bound before."""
    return arm_guest.onnxruntime(str(folder / "model.onnx"), sample)


def litert(folder: Path, sample: np.ndarray) -> Runtime:
    """LiteRT with XNNPACK, on the .tflite twin."""
    from armlet.export.litert import write_litert

    write_litert(folder / "model.onnx", folder / "model.tflite")
    return arm_guest.litert(str(folder / "model.tflite"), sample)


def openvino(folder: Path, sample: np.ndarray) -> Runtime:
    """OpenVINO's CPU plugin, on the ONNX file."""
    import openvino as ov

    core = ov.Core()
    compiled = core.compile_model(
        core.read_model(folder / "model.onnx"),
        "CPU",
        {"INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"},
    )
    request = compiled.create_infer_request()
    request.set_input_tensor(ov.Tensor(sample, shared_memory=True))
    return request.infer, lambda: request.get_output_tensor(0).data


def mnn(folder: Path, sample: np.ndarray) -> Runtime:
    """MNN's CPU backend, on what its converter makes of the ONNX file."""
    import MNN

    command = [sys.executable, "-m", "MNN.tools.mnnconvert", "-f", "ONNX", "--bizCode", "x"]
    command += ["--modelFile", str(folder / "model.onnx"), "--MNNModel", str(folder / "model.mnn")]
    ended = subprocess.run(command, check=False, capture_output=True).returncode
    if ended:
        raise RuntimeError(f"mnnconvert ended with {signal.Signals(-ended).name if ended < 0 else ended}")
    net = MNN.Interpreter(str(folder / "model.mnn"))
    session = net.createSession({"numThread": 1, "backend": "CPU"})
    target = net.getSessionInput(session)
    host = MNN.Tensor(
        sample.shape, MNN.Halide_Type_Float, np.ascontiguousarray(sample), MNN.Tensor_DimensionType_Caffe
    )
    target.copyFrom(host)
    output = net.getSessionOutput(session)
    shape = output.getShape()
    answer = MNN.Tensor(
        shape, MNN.Halide_Type_Float, np.zeros(shape, np.float32), MNN.Tensor_DimensionType_Caffe
    )

    def read() -> np.ndarray:
        output.copyToHostTensor(answer)
        return np.array(answer.getData(), np.float32)

    return functools.partial(net.runSession, session), read


PEERS: dict[str, Callable[[Path, np.ndarray], Runtime]] = {
    "onnxruntime": onnxruntime,
    "litert": litert,
    "openvino": openvino,
    "mnn": mnn,
}
