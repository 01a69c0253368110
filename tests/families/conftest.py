"""Carries a small network of any family the whole way, and compares what each form of it answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import TypeAdapter
from torch import nn

from armlet import artifact_json
from armlet.artifacts import Compiled, InputSpec, Task
from armlet.compile.pipeline import compile_onnx
from armlet.data.splits import Samples, Splits
from armlet.devices.emulator import Emulator
from armlet.devices.host import HostProgram
from armlet.export import export_onnx
from armlet.metrics import Scorer
from armlet.models.network import Network, architecture_of, build, executable
from armlet.passes import PASSES, PassContext
from armlet.progress import Silent
from armlet.spec.load import load_target
from armlet.spec.passes import PassSpec
from armlet.spec.recipe import Precision

LENGTH = InputSpec("length", (), "int32", 11)
OWN_FILE = Path(__file__).parent / "own_net.py"


def own(factory: str, **arguments: object) -> dict[str, object]:
    """Return the options of a user's own module."""
    code = OWN_FILE.read_text(encoding="utf-8")
    return {"file": OWN_FILE.name, "factory": factory, "arguments": arguments, "code": code}


OWN = own("Net", width=8, n_classes=4)

N = 24


@dataclass(frozen=True)
class Case:
    """One network of a family.

    Attributes:
        inputs: what it takes.
        output_shape: what it answers.
    """

    family: str
    options: dict[str, object]
    inputs: tuple[InputSpec, ...]
    output_shape: tuple[int, ...] = (4,)

    def __str__(self) -> str:
        said = "-".join(
            f"{k}={v}"
            for k, v in self.options.items()
            if k not in ("channels", "hidden", "width", "code", "file")
        )
        shape = "x".join(map(str, self.inputs[0].shape))
        return f"{self.family}-{shape}-{said}".replace(" ", "")

    def build(self) -> Network:
        """Build it with weights that leave no layer without effect."""
        network = build(architecture_of(self.family, self.options, self.inputs, self.output_shape), 0)
        inputs = tuple(map(torch.from_numpy, self.samples(seed=7, n=64).inputs))
        return Network(randomize(network.module, inputs), network.architecture)

    def samples(self, seed: int = 0, n: int = N) -> Samples:
        """Draw inputs of its kind, with targets that mean nothing."""
        rng = np.random.default_rng(seed)
        arrays = []
        for spec in self.inputs:
            if spec.name == "length":
                arrays.append(rng.integers(1, (spec.n_values or 1), n).astype("int32"))
            elif spec.dtype == "int32":
                arrays.append(rng.integers(1, spec.n_values or 1, (n, *spec.shape)).astype("int32"))
            else:
                arrays.append(rng.standard_normal((n, *spec.shape), "float32"))
        return Samples(tuple(arrays), np.zeros((n, *self.output_shape), "float32"))


def randomize(module: nn.Module, inputs: tuple[torch.Tensor, ...], seed: int = 1) -> nn.Module:
    """Give normalisations random parameters, batch normalisations the statistics of some inputs, and weights a mean.

    Freshly drawn convolutions behind batch normalisations are chaotic: over fifty layers one step of one pixel becomes
    a quarter of the answer's span, and two ways to add up the same sums in torch itself differ as far. In trained
    networks, whose channels agree with each other, it stays a few steps. Weights with a mean above zero make them
    agree: what all of them say is passed on, what one of them rounds otherwise is averaged away.
    """
    generator = torch.Generator().manual_seed(seed)
    hooks = []
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d):
                layer.weight.add_(0.5 * layer.weight.std(correction=0))  # of one weight it is 0
            if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d | nn.LayerNorm):
                layer.weight.copy_(0.8 + 0.4 * torch.rand(layer.weight.shape, generator=generator))
                layer.bias.copy_(torch.randn(layer.bias.shape, generator=generator) * 0.2)
            if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
                hooks.append(layer.register_forward_pre_hook(take_statistics))
        module.eval()(
            *inputs
        )  # not in training: what that leaves out at random would change with each test's order
    for hook in hooks:
        hook.remove()
    return module


def take_statistics(layer: nn.BatchNorm1d | nn.BatchNorm2d, arguments: tuple[torch.Tensor]) -> None:
    """Set a batch normalisation's statistics to those of what it is about to normalise."""
    values = arguments[0].transpose(0, 1).flatten(1)
    layer.running_mean.copy_(values.mean(1))
    layer.running_var.copy_(values.var(1))


def answers(network: Network, samples: Samples) -> np.ndarray:
    """Return what torch answers; for a quantised network, computed as quantised."""
    with torch.inference_mode():
        return executable(network)(*map(torch.from_numpy, samples.inputs)).numpy()


def quantized(
    network: Network, samples: Samples, options: dict[str, object] | None = None, work: Path = Path("unused")
) -> Network:
    """Return the network after quantisation on the samples, static unless a recipe's options say otherwise."""
    splits = Splits(samples, samples, samples, network.architecture.inputs, Task("forecast", (4,)))
    context = PassContext(splits, network, Scorer(splits.task), 0, work, Silent())
    spec = options or {"kind": "quantize_static", "calibration_samples": N}
    step = PASSES[str(spec["kind"])](TypeAdapter(PassSpec).validate_python(spec))
    return step.run(network, context).network


def program(
    network: Network, samples: Samples, folder: Path, target: str = "host", precision: Precision = "float32"
) -> Compiled:
    """Export the network, which compares it with ONNX Runtime, and compile it into `folder`."""
    onnx_folder = folder / "onnx"
    if not onnx_folder.exists():
        onnx_folder.mkdir(parents=True)
        export_onnx(network, samples, onnx_folder)
    place = folder / target
    place.mkdir()
    model = onnx_folder / "model.onnx"
    compiled = compile_onnx(model, load_target(target), "network", place, precision=precision)
    artifact_json.save(compiled, place)
    return compiled


def on_host(compiled: Compiled, folder: Path, samples: Samples) -> np.ndarray:
    """Return what the compiled program answers on this machine."""
    return HostProgram.load(folder / "host", compiled).run_batch(samples.inputs)[0]


def on_board(compiled: Compiled, folder: Path, samples: Samples, name: str = "raspberry-pi-4") -> np.ndarray:
    """Return what the compiled program answers on an emulated board."""
    board = Emulator(load_target(name))
    return board.run_all(folder / name / "bin" / "run", samples.inputs, compiled.outputs)[0]
