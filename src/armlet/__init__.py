"""armlet turns a neural network into a small, fast, proven program for a phone or an ARM board.

The public API: `load` opens a bundle as a callable program; `run` carries a recipe the whole way; `plan` says what
would run; `compile_onnx` compiles an ONNX file of somebody else's; `ablate` says what each pass contributes; `analyze`
which parts of a network matter; `tune` which tiles its kernels are fastest with; `bench` times a bundle's program on a
device; `export` hands a network out as files; `check` repeats a bundle's verdict; `Bundle` reads its manifest.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from armlet.api import ablate, analyze, bench, check, compile_onnx, export, plan, run, tune
    from armlet.bundle import Bundle
    from armlet.errors import ArmletError, MissingDependency, StepFailed, UsageError
    from armlet.program import Program, Stream, load

__version__ = "0.1.0"

__all__ = [
    "ArmletError",
    "Bundle",
    "MissingDependency",
    "Program",
    "StepFailed",
    "Stream",
    "UsageError",
    "__version__",
    "ablate",
    "analyze",
    "bench",
    "check",
    "compile_onnx",
    "export",
    "load",
    "plan",
    "run",
    "tune",
]

_HOMES = {
    "ArmletError": "armlet.errors",
    "Bundle": "armlet.bundle",
    "MissingDependency": "armlet.errors",
    "Program": "armlet.program",
    "StepFailed": "armlet.errors",
    "Stream": "armlet.program",
    "UsageError": "armlet.errors",
    "ablate": "armlet.api",
    "analyze": "armlet.api",
    "bench": "armlet.api",
    "check": "armlet.api",
    "compile_onnx": "armlet.api",
    "export": "armlet.api",
    "load": "armlet.program",
    "plan": "armlet.api",
    "run": "armlet.api",
    "tune": "armlet.api",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first used, so that `import armlet` stays instant."""
    import importlib

    if name not in _HOMES:
        raise AttributeError(f"module 'armlet' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """Name what is offered, imported or not."""
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """The package itself, in which a verb is not hidden by the module of the same name."""

    def __setattr__(self, name: str, value: object) -> None:
        """Set an attribute, but for what the import system sets: `armlet.plan` is the verb."""
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
