"""Runs on the emulated board: one inference of a runtime between the plugin's marks, after one that warms up.

It imports nothing of armlet, which that machine does not have; `runtimes` makes the same calls on this one.

python arm_guest.py RUNTIME MODEL FOLDER      # reads FOLDER/in.npy, writes FOLDER/out.npy
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

MARK, BEGIN, END = 0x5EED, 2, 3
Runtime = tuple[Callable[[], object], Callable[[], np.ndarray]]
"""A call, and what gives the answer of the last one."""


def onnxruntime(model: str, sample: np.ndarray) -> Runtime:
    """ONNX Runtime's CPU provider, one thread, all optimisations, input and output bound before."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    binding.bind_cpu_input(session.get_inputs()[0].name, sample)
    for output in session.get_outputs():
        binding.bind_output(output.name)
    return functools.partial(session.run_with_iobinding, binding), lambda: binding.copy_outputs_to_cpu()[0]


def litert(model: str, sample: np.ndarray) -> Runtime:
    """LiteRT with XNNPACK, one thread."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model, num_threads=1)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], sample)
    place = interpreter.get_output_details()[0]["index"]
    return interpreter.invoke, lambda: interpreter.get_tensor(place)


def ncnn(model: str, sample: np.ndarray) -> Runtime:
    """Ncnn in float32, one thread; the model is the .param file that pnnx writes, its .bin beside it."""
    import ncnn as library

    net = library.Net()
    net.opt.num_threads = 1
    for option in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage"):
        setattr(net.opt, option, False)
    if net.load_param(model) or net.load_model(model.removesuffix(".param") + ".bin"):
        raise RuntimeError("ncnn can't read the model")
    picture = library.Mat(np.ascontiguousarray(sample[0]))
    found = {}

    def call() -> None:
        with net.create_extractor() as extractor:
            extractor.input("in0", picture)
            found["answer"] = extractor.extract("out0")[1]

    return call, lambda: np.array(found["answer"])


def main() -> None:
    """Warm up, mark, infer, mark, and write the answer."""
    runtime, model, folder = sys.argv[1:]
    sample = np.load(Path(folder) / "in.npy")
    call, answer = globals()[runtime](model, sample)
    mark = ctypes.CDLL(None).syscall
    call()
    mark(MARK, BEGIN)
    call()
    mark(MARK, END)
    np.save(Path(folder) / "out.npy", np.asarray(answer()))


if __name__ == "__main__":
    main()
