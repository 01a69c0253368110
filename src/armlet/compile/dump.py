"""Writes what each of the compiler's stages makes as text, numbered in order, for people to read.

```text
00-onnx.txt        the ONNX file, without the numbers in its weights
01-read.txt        armlet's normal form: typed layers under the names of the ONNX nodes
02-simplified.txt  layers joined that one kernel does together
03-integer.txt     QDQ patterns turned into integer layers
04-kernels/        the calls (main.py) and the scheduled kernel of each, in TVMScript
05-lowered/        each kernel after TVM's passes, as LLVM gets it
06-kernels.ll      LLVM IR, optimised
07-kernels.s       assembly
08-entry.c         the C entry
09-arena.json      where each buffer lies in the arena, and between which calls it is alive
10-dotprod/        04 to 07 and 09 of a further build, where the target has variants
```
"""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from armlet.artifacts import Kernel
from armlet.compile.memory import ArenaPlan
from armlet.errors import UsageError

if TYPE_CHECKING:
    import onnx
    import tvm

    from armlet.compile.frontend.graph import Graph, Layer

_FIRST = "00-onnx.txt"
_LONGEST = 4  # numbers of an array that are written out


class Dump:
    """A folder for the stages of one compilation; what an earlier one left there is removed.

    Raises:
        UsageError: the folder holds something else, or can't be one.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            found = list(folder.iterdir())
        except OSError as error:
            raise UsageError(f"{folder} (--dump) can't be a folder: {error.strerror}") from None
        if found and not (folder / _FIRST).is_file():
            raise UsageError(f"{folder} (--dump) holds other things than a dump: choose another folder")
        for path in found:
            if re.match(r"\d\d-", path.name):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def inside(self, folder: str) -> Dump:
        """Return a dump that writes into a folder in this one."""
        other = copy.copy(self)
        other._folder = self._folder / folder
        return other

    def write(self, name: str, text: str) -> None:
        """Write one file, such as `08-entry.c`."""
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.rstrip("\n") + "\n", encoding="utf-8")

    def onnx(self, file: Path) -> None:
        """Write the nodes of an ONNX file."""
        import onnx

        model = onnx.load(file)
        for weight in model.graph.initializer:
            _shorten(weight)
        self.write(_FIRST, onnx.printer.to_text(model))

    def graph(self, name: str, graph: Graph) -> None:
        """Write a network in the normal form, a line for each layer."""
        lines = [
            f"inputs   {', '.join(_value(n, graph) for n in graph.inputs)}",
            *(_layer(layer, graph) for layer in graph.layers),
            f"outputs  {', '.join(_value(n, graph) for n in graph.outputs)}",
        ]
        self.write(name, "\n".join(lines))

    def module(self, folder: str, module: tvm.IRModule) -> None:
        """Write each function of a module into a file of its own."""
        for variable, function in module.functions.items():
            self.write(f"{folder}/{variable.name_hint}.py", function.script())

    def code(self, built: tvm.runtime.Module) -> None:
        """Write what LLVM made, behind what it made of other kernels of this build."""
        for name, form in (("06-kernels.ll", "ll"), ("07-kernels.s", "s")):
            path = self._folder / name
            before = path.read_text(encoding="utf-8") if path.is_file() else ""
            self.write(name, before + built.inspect_source(form))

    def arena(self, plan: ArenaPlan, kernels: tuple[Kernel, ...]) -> None:
        """Write the arena plan with the calls between which each buffer is alive."""
        buffers = [
            {"offset": offset, "bytes": b.n_bytes, "first_call": b.first, "last_call": b.last}
            for offset, b in zip(plan.offsets, plan.buffers, strict=True)
        ]
        data = {
            "arena_bytes": plan.arena_bytes,
            "lower_bound": plan.lower_bound,
            "calls": [kernel.symbol for kernel in kernels],
            "buffers": buffers,
        }
        self.write("09-arena.json", json.dumps(data, indent=2))


def of_builds(dump: Dump | None, variants: Sequence[str]) -> tuple[Dump | None, ...]:
    """Return the dumps of a program's builds, where there are any: its own, then one for each variant."""
    if dump is None:
        return (None,) * (len(variants) + 1)
    return (dump, *(dump.inside(f"{9 + number}-{name}") for number, name in enumerate(variants, 1)))


def _shorten(weight: onnx.TensorProto) -> None:
    """Leave the numbers of a large weight out: a file of megabytes is no text to read."""
    from math import prod

    if prod(weight.dims) > _LONGEST:
        for name in ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data"):
            weight.ClearField(name)


def _layer(layer: Layer, graph: Graph) -> str:
    names = " + ".join(layer.nodes)
    inputs = ", ".join(_value(name, graph) for name in layer.inputs)
    integer = f" integer {_field(layer.integer)}" if layer.integer else ""
    return f"{names}: {_field(layer.op)}({inputs}) -> {_value(layer.output, graph)}{integer}"


def _value(name: str, graph: Graph) -> str:
    tensor = graph.tensors[name]
    return f"{name} {tensor.dtype}{list(tensor.shape)}"


def _field(value: object) -> str:
    """Return an operator or a part of it, with arrays as type and shape where they are long."""
    import numpy as np

    if isinstance(value, np.ndarray):
        return str(value.tolist()) if value.size <= _LONGEST else f"{value.dtype}{list(value.shape)}"
    if isinstance(value, tuple):
        return f"({', '.join(map(_field, value))})"
    if is_dataclass(value):
        given = ((f.name, getattr(value, f.name), f.default) for f in fields(value))
        shown = (
            f"{name}={_field(part)}"
            for name, part, default in given
            if isinstance(part, np.ndarray) or part != default
        )
        return f"{type(value).__name__}[{', '.join(shown)}]"
    if hasattr(value, "op_type"):  # an ONNX node
        return str(value.op_type)
    return str(value) if not isinstance(value, dict) else str(sorted(value))
