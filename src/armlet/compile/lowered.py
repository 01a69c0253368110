"""What the front half of the compiler hands to the back half: scheduled kernels and the order they are called in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from armlet.artifacts import Fallback, TensorInfo

if TYPE_CHECKING:
    import tvm

    from armlet.compile.kernels.choices import Tunable


@dataclass(frozen=True, slots=True)
class CallInfo:
    """What one call of a kernel is.

    Attributes:
        layer: name of the layer it comes from, as in the ONNX graph.
        op: what it computes ("conv2d", "dense", "max_pool2d", "quantize", ...).
        schedule: name of the schedule, "generic" for the fallback.
        precision: "int8", "float32" or "float16".
        macs: multiply-accumulates that the layer asks for.
        joined: names of further ONNX nodes that the call does, too.
        dtype, shape: of the result; the shape as ONNX has it, flat where the result is a part of a layer.
        layout: order of its elements in memory: "row-major", "channels-last", or "flat" for a part of a layer.
        tile: pixels × channels, or rows × columns, that the kernel computes together, where it is cut up.
        tuned: whether a table of tiles says so, not the formula.
    """

    layer: str
    op: str
    schedule: str
    precision: str
    macs: int
    joined: tuple[str, ...] = ()
    dtype: str = ""
    shape: tuple[int, ...] = ()
    layout: str = "row-major"
    tile: str = ""
    tuned: bool = False


@dataclass(frozen=True, slots=True)
class LoweredProgram:
    """A network as a straight list of kernel calls.

    Attributes:
        module: the Relax function `main`, whose bindings are only `call_tir(kernel, args)` and `relax.reshape` (an
            alias), and whose result is a variable or a tuple of variables; arguments are parameters of `main`,
            earlier variables or constants. All other functions are scheduled PrimFuncs, not lowered yet.
        calls: one for each `call_tir`, in order.
        fallbacks: what stayed float in a quantized network, and what has no schedule of its own.
        inputs, outputs: of `main`, in order, under their ONNX names.
        tunables: kernels whose tile can be chosen, each once.
    """

    module: tvm.IRModule
    calls: tuple[CallInfo, ...]
    fallbacks: tuple[Fallback, ...]
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    tunables: tuple[Tunable, ...] = ()
