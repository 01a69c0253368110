"""A target: everything that armlet knows of a board or a machine. Data only; nothing asks for its name."""

from __future__ import annotations

import platform
from typing import Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from armlet.spec.base import Bytes, Fraction, ListOf, Spec

Feature = Literal["neon", "dotprod", "fp16", "i8mm", "sve", "sse4.2", "avx2", "avx512vnni"]
"""An instruction set extension that kernels may ask for."""
Element = Literal["int8", "float16", "float32"]
"""What kernels multiply."""
GPU_CHANNELS = 4
"""Output channels of a convolution that one work item of a GPU computes."""
Variant = Literal["dotprod", "i8mm"]
"""An extension that programs can look for where they run."""


class Core(Spec):
    """One kind of CPU core."""

    llvm_cpu: str = Field(description="LLVM's name of the core that code is generated for.")
    cost_model: str | None = Field(
        None,
        description="LLVM's core whose scheduling model stands for it. Left out: latency is not estimated.",
    )
    clock_mhz: PositiveFloat | None = Field(None, description="Clock at which latency is estimated, in MHz.")
    count: PositiveInt = Field(1, description="Cores of this kind; programs use one.")


class Cache(Spec):
    """One level of data cache."""

    size: Bytes = Field(description="Capacity.")
    ways: PositiveInt = Field(description="Associativity.")
    line: Bytes = Field(64, description="Bytes of one line.", json_schema_extra={"default": "64 B"})

    @field_validator("line")
    @classmethod
    def _line_is_addressable(cls, line: int) -> int:
        if line < 1 or line & (line - 1):
            raise ValueError(f"a line of {line} bytes is no power of two")
        return line

    @model_validator(mode="after")
    def _has_whole_sets(self) -> Self:
        if self.size < 1 or self.size % (self.ways * self.line):
            raise ValueError(
                f"a cache of {self.size} bytes can't have {self.ways} ways of lines of {self.line} bytes:"
                " its size is a multiple of ways × line"
            )
        return self


class Caches(Spec):
    """The data caches that one core sees."""

    l1: Cache = Field(description="Nearest to the core.")
    l2: Cache = Field(description="Behind it.")


class Emulator(Spec):
    """How programs for the target run without it."""

    program: Literal["qemu-aarch64", "qemu-arm"] = Field(
        "qemu-aarch64", description="The emulator; qemu-arm for 32-bit programs."
    )
    cpu: str = Field(description="QEMU's -cpu, so that an instruction that the board lacks is caught.")


class Gpu(Spec):
    """A GPU that programs compute on; the core only starts its kernels."""

    api: Literal["opencl"] = Field("opencl", description="How programs reach it: OpenCL 1.2 or newer.")


class Calibration(Spec):
    """How modelled cycles become time: measured = constant × modelled cycles / clock."""

    constant: PositiveFloat = Field(description="Measured time over modelled time.")
    spread: Fraction = Field(
        description="Largest relative error seen when the constant was fitted, below 100 %.", lt=1.0
    )
    source: str = Field(min_length=1, description="Where the constant comes from.")


class Toolchain(Spec):
    """Programs that compile, link and archive for the target: `cc` and `ar`, or `zig` alone."""

    cc: str | None = Field(None, description="C compiler that also links.")
    ar: str | None = Field(None, description="Archiver.")
    zig: str | None = Field(
        None,
        min_length=1,
        description="Zig's name of the machine, such as `aarch64-linux-musl`, for which the package ziglang compiles.",
    )

    @model_validator(mode="after")
    def _is_one_tool_chain(self) -> Self:
        named = {name for name in ("cc", "ar", "zig") if getattr(self, name) is not None}
        if named not in ({"cc", "ar"}, {"zig"}):
            raise ValueError("a tool chain is cc and ar, or zig alone")
        return self


class TileChoice(Spec):
    """How one kernel is cut up."""

    kernel: str = Field(description="Names operator, type, vector unit and shape, as a table does.")
    tile: ListOf[PositiveInt] = Field(
        min_length=2, max_length=2, description="Pixels and channels, or rows and columns, computed together."
    )


class Target(Spec):
    """A board or machine that programs are compiled for."""

    name: str = Field(
        pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$",
        max_length=64,
        description="Lower case, digits, dashes; names the bundle.",
    )
    description: str = Field("", description="One line, for people.")
    triple: str = Field(description="LLVM triple, or `native` for the machine that armlet runs on.")
    core: Core = Field(description="The core that programs run on.")
    features: ListOf[Feature] = Field((), description="Extensions that the core has, for kernels to use.")
    variants: ListOf[Variant] = Field(
        (),
        description="Extensions that only some of the machines have: the library also has kernels for cores with"
        " the first, with the first two, and so on, and takes those that the CPU can run. On aarch64 Linux only;"
        " `core` is the oldest one.",
    )
    caches: Caches | None = Field(None, description="Left out: caches are not simulated.")
    toolchain: Toolchain = Field(description="What compiles and links for the target.")
    emulator: Emulator | None = Field(None, description="Left out: programs run on this machine itself.")
    compiled_only: bool = Field(
        False,
        description="Neither this machine nor an emulator runs its programs: they are compiled, and their size and"
        " memory are known; what a run would tell is not measured.",
    )
    calibration: Calibration | None = Field(None, description="Left out: no latency can be estimated.")
    gpu: Gpu | None = Field(None, description="Left out: programs compute on the core.")
    tiles: ListOf[TileChoice] | None = Field(
        None,
        description="How kernels are cut up where the formulas do not say it; `--tiles` takes them from a table of"
        " `armlet tune`. Left out: those of the table that comes with armlet for the core, if there is one.",
    )

    @field_validator("features")
    @classmethod
    def _matrix_products_come_with_dot_products(cls, features: tuple[Feature, ...]) -> tuple[Feature, ...]:
        if "i8mm" in features and not {"neon", "dotprod"} <= set(features):
            raise ValueError("a core with i8mm has neon and dotprod, too: list all three")
        return features

    @model_validator(mode="after")
    def _variants_can_be_told_apart(self) -> Self:
        if not self.variants:
            return self
        machine, *system = self.resolved_triple.split("-")
        if machine != "aarch64" or "linux" not in system:
            raise ValueError(
                f"variants: {self.resolved_triple} has none: Linux tells of extensions on aarch64 only"
            )
        listed = (*self.resolved_features, *self.variants)
        if twice := [feature for feature in self.variants if listed.count(feature) > 1]:
            raise ValueError(f"variants: {twice[0]} is listed twice, here or in features")
        if "neon" not in listed:
            raise ValueError("variants: they need neon in features")
        if "i8mm" in listed and "dotprod" not in listed[: listed.index("i8mm")]:
            raise ValueError("variants: a core with i8mm has dotprod, too: list dotprod before it")
        return self

    @model_validator(mode="after")
    def _says_nothing_of_the_core_for_a_gpu(self) -> Self:
        if self.gpu is None:
            return self
        told = (
            ("variants", self.variants),
            ("emulator", self.emulator),
            ("calibration", self.calibration),
            ("core.cost_model", self.core.cost_model),
            ("tiles", self.tiles),
        )
        if given := [name for name, value in told if value]:
            raise ValueError(f"gpu: kernels do not run on the core: leave out {', '.join(given)}")
        if self.compiled_only:
            raise ValueError("gpu: programs are run through this machine's OpenCL: leave out compiled_only")
        return self

    @model_validator(mode="after")
    def _is_one_architecture(self) -> Self:
        emulates_arm32 = self.emulator is not None and self.emulator.program == "qemu-arm"
        if self.emulator is not None and emulates_arm32 != self.is_arm32:
            right = "qemu-arm" if self.is_arm32 else "qemu-aarch64"
            raise ValueError(f"emulator.program: {right} runs programs for {self.resolved_triple}")
        if not self.is_arm32:
            return self
        others = [feature for feature in self.features if feature != "neon"]
        if others:
            raise ValueError(f"features: kernels in 32-bit code use neon, not {', '.join(others)}")
        if self.core.cost_model is not None:
            raise ValueError(
                "core.cost_model: instructions are counted and costed in 64-bit code only; leave it out, and latency"
                " is not estimated"
            )
        return self

    @model_validator(mode="after")
    def _says_what_runs_its_programs(self) -> Self:
        if self.is_apple and not (self.compiled_only and self.toolchain.zig is not None):
            raise ValueError(
                "programs for Apple's systems are built by zig and not run: say toolchain: {zig: ...} and"
                " compiled_only: true"
            )
        needs_runs = {
            "emulator": self.emulator,
            "calibration": self.calibration,
            "core.cost_model": self.core.cost_model,
        }
        if self.compiled_only and (told := [name for name, value in needs_runs.items() if value is not None]):
            raise ValueError(f"compiled_only: {told[0]} tells of programs that run; leave one of the two out")
        return self

    @property
    def is_arm32(self) -> bool:
        """Whether its programs are 32-bit Arm code."""
        return self.resolved_triple.startswith(("arm-", "armv", "thumb"))

    @property
    def computes_float16(self) -> bool:
        """Whether its vector unit has arithmetic on float16 (FEAT_FP16 of Armv8.2); a GPU is asked when it is there."""
        return self.gpu is not None or {"neon", "fp16"} <= set(self.resolved_features)

    @property
    def vector_bytes(self) -> int:
        """Width of a register of its vector unit; without one, of what the compiler splits."""
        features = self.resolved_features
        return 64 if "avx512vnni" in features else 32 if "avx2" in features else 16

    def lanes(self, element: Element) -> int:
        """Return how many channels kernels compute in one vector, or work item; for int8, one of its int16 products."""
        if self.gpu is not None:
            return GPU_CHANNELS
        return self.vector_bytes // (4 if element == "float32" else 2)

    @property
    def is_android(self) -> bool:
        """Whether its programs are parts of Android apps."""
        return "-android" in self.resolved_triple

    @property
    def is_apple(self) -> bool:
        """Whether its object code is Mach-O, and an app is linked with Apple's own tools."""
        return "-apple-" in self.resolved_triple

    @property
    def resolved_triple(self) -> str:
        """The triple with `native` replaced by this machine's."""
        return f"{platform.machine()}-linux-gnu" if self.triple == "native" else self.triple

    @property
    def resolved_cpu(self) -> str:
        """LLVM's core name with `baseline` replaced by the oldest core of the triple's architecture."""
        if self.core.llvm_cpu != "baseline":
            return self.core.llvm_cpu
        return "x86-64-v2" if self.resolved_triple.startswith("x86_64") else "generic"

    @property
    def resolved_features(self) -> tuple[Feature, ...]:
        """The features, and those that a `baseline` core of this machine's architecture always has."""
        if self.core.llvm_cpu != "baseline":
            return self.features
        return ("sse4.2",) if self.resolved_triple.startswith("x86_64") else ("neon",)

    @property
    def builds(self) -> tuple[Target, ...]:
        """What kernels are built for: the target without variants, with the first extension, with two, and so on."""
        core = self.core.model_copy(update={"llvm_cpu": self.resolved_cpu})
        return tuple(
            self.model_copy(
                update={
                    "features": (*self.resolved_features, *self.variants[:n]),
                    "variants": (),
                    "core": core,
                }
            )
            for n in range(len(self.variants) + 1)
        )

    @property
    def is_native(self) -> bool:
        """Whether its programs compute on this machine's own core, without an emulator."""
        return self.emulator is None and self.gpu is None and not self.compiled_only

    @property
    def device(self) -> str:
        """What runs its programs, in words."""
        if self.compiled_only:
            return "no device"
        if self.gpu is not None:
            return "this machine's OpenCL device"
        return "this machine" if self.is_native else "the emulated board"
