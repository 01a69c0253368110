"""What export and compilation leave: files in interchange formats, and compiled programs."""

from __future__ import annotations

from dataclasses import dataclass

from armlet.artifacts.network import TensorInfo


@dataclass(frozen=True, slots=True)
class LitertTwin:
    """The same network as a LiteRT file (`model.tflite`), verified against the ONNX file.

    Attributes:
        n_bytes: size of the file.
        n_verified: inputs compared.
        max_difference: largest difference of any output from ONNX Runtime's.
        unit: "quantisation steps" or "absolute".
        float_layers: layers of a quantised network that LiteRT computes on float32.
    """

    n_bytes: int
    n_verified: int
    max_difference: float
    unit: str
    float_layers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Exported:
    """An ONNX file (`model.onnx`) verified against torch.

    Attributes:
        quantized: whether it has QDQ nodes.
        n_verified: inputs compared.
        max_abs_difference: largest difference of any output between torch and ONNX Runtime.
        tolerance: what was allowed.
        tolerance_reason: why that much.
        litert_missing: why there is no LiteRT file, empty where there is one.
    """

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    opset: int
    quantized: bool
    n_verified: int
    max_abs_difference: float
    tolerance: float
    tolerance_reason: str
    onnx_bytes: int
    litert: LitertTwin | None = None
    litert_missing: str = ""


@dataclass(frozen=True, slots=True)
class Imported:
    """An ONNX file (`model.onnx`) that armlet did not make, with every shape fixed.

    Attributes:
        file: its name.
        sha256: of the file as it was given.
        quantized: whether it has QDQ nodes, operators on integers, or layers that find scales while the program runs.
        fixed: inputs whose shape was given to armlet, because the file leaves it open.
        n_samples: samples that the program was run on.
        random: whether they were drawn; else they were given.
    """

    file: str
    sha256: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    opset: int
    quantized: bool
    onnx_bytes: int
    fixed: tuple[str, ...]
    n_samples: int
    random: bool


@dataclass(frozen=True, slots=True)
class StreamExported:
    """A network's step (`stream.onnx`): the next frames and the state in, the answer so far and the state out.

    Attributes:
        inputs, outputs: frames and state; answer and state. The state is zeros before the first frame.
        frames: of each step; tokens, for text.
        most_frames: after which a stream must begin anew, None where it may go on for ever.
        n_verified: sequences whose answer, step by step, was compared with that of the whole network.
        max_abs_difference: the largest between torch's whole network, torch's step and ONNX Runtime.
        tolerance: what was allowed.
        tolerance_reason: why that much.
    """

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    frames: int
    most_frames: int | None
    n_verified: int
    max_abs_difference: float
    tolerance: float
    tolerance_reason: str


@dataclass(frozen=True, slots=True)
class Kernel:
    """One call of a compiled program.

    Attributes:
        symbol: C symbol of the kernel.
        op: what it computes ("conv2d", "dense", "max_pool2d", "quantize", ...).
        layer: name of the layer it comes from, as in the ONNX graph.
        schedule: name of the schedule, "generic" for the fallback.
        precision: "int8", "float32" or "float16".
        macs: multiply-accumulates.
        joined: names of further ONNX nodes that it does, too; nodes that only say scales are not named.
        dtype, shape: of the result; the shape as ONNX has it, flat where the result is a part of a layer.
        layout: order of its elements in memory: "row-major", "channels-last", or "flat" for a part of a layer.
        tile: pixels × channels, or rows × columns, that are computed together; empty where a kernel is not cut up so.
        tuned: whether a table of tiles says so, not the formula.
        code_bytes: of the kernel, which every call of the same symbol shares; None where not known.
        constant_bytes: of the constants that this call reads and no earlier one; None where not known.
        parallel: whether the program's threads share its work.
    """

    symbol: str
    op: str
    layer: str
    schedule: str
    precision: str
    macs: int
    joined: tuple[str, ...] = ()
    dtype: str = ""
    shape: tuple[int, ...] = ()
    layout: str = ""
    tile: str = ""
    tuned: bool = False
    code_bytes: int | None = None
    constant_bytes: int | None = None
    parallel: bool = False


@dataclass(frozen=True, slots=True)
class Fallback:
    """Something that was not lowered as asked: stays float, or has no schedule of its own."""

    layer: str
    op: str
    reason: str


@dataclass(frozen=True, slots=True)
class KernelVariant:
    """Another build of a program's kernels in the same library, for CPUs with more extensions.

    Attributes:
        name: the last extension that it needs.
        features: all that it needs.
        kernels: in order of execution.
    """

    name: str
    features: tuple[str, ...]
    kernels: tuple[Kernel, ...]


@dataclass(frozen=True, slots=True)
class PackedProgram:
    """The same program with packed constants (`packed/`): smaller to store, and its constants take memory.

    Attributes:
        packed_bytes: the packed constants.
        weights_bytes: memory that the caller provides for the unpacked ones.
        code_bytes, constant_bytes: what an app links, the packed constants among them.
    """

    packed_bytes: int
    weights_bytes: int
    code_bytes: int
    constant_bytes: int

    @property
    def size_bytes(self) -> int:
        """What an app grows by: code and constants, the packed ones among them."""
        return self.code_bytes + self.constant_bytes


@dataclass(frozen=True, slots=True)
class Compiled:
    """A compiled program.

    Files: `lib/lib<symbol>.a`, `lib/lib<symbol>.so`, `lib/<symbol>.h`, `src/`, and `bin/run` (the runner program
    linked for the target); for Apple's systems `lib/module.modulemap` in the place of the last and the shared library.

    Attributes:
        target: name of the target.
        symbol: C prefix of the entry, `<symbol>_run`.
        code_bytes, constant_bytes: what an app links, as laid out in memory (text, read-only data).
        features: extensions that every CPU which it runs on has.
        arena_bytes: working memory that the caller provides; that of the build that needs most.
        arena_lower_bound: most bytes alive at any one call, aligned, below which no plan can go.
        kernels: in order of execution, of the build for `features`.
        precision: what real numbers are within: "float32" or "float16".
        variants: the other builds, each of which needs more extensions than the one before.
        packed: the same program with packed constants, where the recipe asks for it.
        threads: that may compute one call.
        gpu: how it reaches the GPU that it computes on, "opencl"; empty where it computes on the core. Its entries are
            `<symbol>_open`, `_run` and `_close` then, there is no runner, and the arena is of the device's memory.
    """

    target: str
    triple: str
    cpu: str
    features: tuple[str, ...]
    symbol: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    code_bytes: int
    constant_bytes: int
    arena_bytes: int
    arena_lower_bound: int
    kernels: tuple[Kernel, ...]
    fallbacks: tuple[Fallback, ...]
    integer_only: bool
    tool_versions: tuple[str, ...]
    packed: PackedProgram | None = None
    variants: tuple[KernelVariant, ...] = ()
    precision: str = "float32"
    threads: int = 1
    gpu: str = ""

    def kernels_of(self, variant: str | None) -> tuple[Kernel, ...]:
        """Return the kernels of a variant; of any other name those of the first build."""
        return next((v.kernels for v in self.variants if v.name == variant), self.kernels)

    @property
    def size_bytes(self) -> int:
        """What an app grows by: code and constants."""
        return self.code_bytes + self.constant_bytes
