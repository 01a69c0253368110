"""A network of the user's own: the torch module that a function or class in a Python file of theirs makes.

The file's text is among the network's options, so that a saved network can be built again wherever it is read, and
whoever reads one runs that text. What the file imports must be installed there.
"""

from __future__ import annotations

import linecache
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import nn

from armlet import digest
from armlet.analysis.graph import example_inputs
from armlet.artifacts import InputSpec
from armlet.errors import UsageError
from armlet.models.families import FAMILIES, parse_options
from armlet.models.torch_layers import with_own_layers


@dataclass(frozen=True, slots=True)
class ModuleOptions:
    """Where the module comes from.

    Attributes:
        file: as the recipe names it, for messages.
        factory: function or class in it.
        arguments: that the factory is called with, by name.
        code: the file's text.
    """

    file: str
    factory: str
    arguments: Mapping[str, object]
    code: str


@FAMILIES.register("module")
def build_module(options: str, inputs: tuple[InputSpec, ...], output_shape: tuple[int, ...]) -> nn.Module:
    """Build the module: one tensor [N, *shape] for each input -> [N, *output_shape].

    Raises:
        UsageError: the file or the factory fails, or what it makes is no module of these shapes.
    """
    chosen = parse_options(ModuleOptions, options)
    name = f"{chosen.file}: {chosen.factory}"
    factory = getattr(_loaded(chosen), chosen.factory, None)
    if not callable(factory):
        raise UsageError(f"{chosen.file} has no function or class {chosen.factory}")
    try:
        module = factory(**chosen.arguments)
    except Exception as error:
        raise UsageError(f"{name} failed{_place(error, chosen)}: {_said(error)}") from error
    if not isinstance(module, nn.Module):
        raise UsageError(f"{name} gives a {type(module).__name__}, not a torch.nn.Module")
    module = with_own_layers(module)
    _check_shapes(module, chosen, inputs, output_shape)
    return module


def _loaded(chosen: ModuleOptions) -> ModuleType:
    """Return the module of the file's text, run once in each process."""
    name = f"armlet_module_{digest.of_bytes(chosen.code.encode())[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    module = ModuleType(name)
    module.__file__ = f"<{chosen.file}>"
    lines = chosen.code.splitlines(keepends=True)
    linecache.cache[module.__file__] = (len(chosen.code), None, lines, module.__file__)  # for tracebacks
    sys.modules[name] = module  # dataclasses look for the module of their class
    try:
        exec(compile(chosen.code, module.__file__, "exec"), module.__dict__)
    except Exception as error:
        del sys.modules[name]
        raise UsageError(f"{chosen.file} can't be run{_place(error, chosen)}: {_said(error)}") from error
    return module


def _check_shapes(
    module: nn.Module, chosen: ModuleOptions, inputs: tuple[InputSpec, ...], output_shape: tuple[int, ...]
) -> None:
    """Run two samples through the module, which stays as it is."""
    name, training = f"{chosen.file}: {chosen.factory}", module.training
    takes = ", ".join(f"{spec.name} {list(spec.shape)} ({spec.dtype})" for spec in inputs)
    try:
        with torch.no_grad():
            found = module.eval()(*example_inputs(inputs, 2))
    except Exception as error:
        raise UsageError(
            f"{name} does not compute on {takes}{_place(error, chosen)}: {_said(error)}"
        ) from error
    finally:
        module.train(training)
    if not isinstance(found, torch.Tensor) or tuple(found.shape) != (2, *output_shape):
        gives = list(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
        raise UsageError(f"{name} gives {gives} for 2 samples of {takes}; {[2, *output_shape]} is asked for")


def _place(error: BaseException, chosen: ModuleOptions) -> str:
    """Return the last line of the file that an error went through, as text."""
    if isinstance(error, SyntaxError) and error.filename == f"<{chosen.file}>":
        return f" in line {error.lineno}"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == f"<{chosen.file}>"]
    return f" in line {frames[-1].lineno}" if frames else ""


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"
