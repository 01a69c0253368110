"""A network as armlet holds it: a torch module with its architecture, saved as JSON and safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from armlet import artifact_json
from armlet.artifacts import InputSpec
from armlet.errors import Problem, UsageError
from armlet.models import (  # noqa: F401 - registers the families
    autoencoder,
    cnn,
    ds_cnn,
    fnn,
    gan,
    lstm,
    mobilenet,
    own_module,
    resnet,
    rnn,
    transformer,
)
from armlet.models.constraints import WeightConstraint
from armlet.models.families import FAMILIES
from armlet.models.shapes import fit_to_shapes

if TYPE_CHECKING:
    from armlet.models.quantization import Quantization

MANIFEST_FILE = "network.json"
WEIGHTS_FILE = "network.safetensors"
SCHEMA_VERSION = 3

__all__ = [
    "Architecture",
    "Network",
    "architecture_of",
    "build",
    "executable",
    "fit_to_shapes",
    "load_network",
    "save_network",
]


@dataclass(frozen=True, slots=True)
class Architecture:
    """What a network was built as; pruned sizes are in its tensors' shapes, not here.

    Attributes:
        kind: the family.
        options: the family's own options as canonical JSON (sorted keys, no white space).
        inputs: what the module takes, in this order.
        output_shape: of the answer to one sample, without the batch.
    """

    kind: str
    options: str
    inputs: tuple[InputSpec, ...]
    output_shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Network:
    """A network on the CPU, in evaluation mode; treat it as immutable.

    Attributes:
        module: one tensor [N, *shape] for each input -> [N, *output_shape].
        quantization: what static quantisation found, None for a float network.
        constraints: what training and later passes must keep of some weights, such as their zeros.
    """

    module: nn.Module
    architecture: Architecture
    quantization: Quantization | None = None
    constraints: tuple[WeightConstraint, ...] = ()


def architecture_of(
    kind: str, options: Mapping[str, object], inputs: tuple[InputSpec, ...], output_shape: tuple[int, ...]
) -> Architecture:
    """Describe a network of family `kind`; `options` must be JSON-able and without the kind itself."""
    text = json.dumps(options, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return Architecture(kind, text, tuple(inputs), tuple(output_shape))


def build(architecture: Architecture, seed: int) -> Network:
    """Build a freshly initialised network; the same seed gives the same weights on every machine.

    Raises:
        UsageError: unknown family, or options that it lacks.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        module = FAMILIES[architecture.kind](
            architecture.options, architecture.inputs, architecture.output_shape
        )
    return Network(module.eval(), architecture)


def save_network(network: Network, folder: Path) -> None:
    """Write `network.json` and `network.safetensors`; the same network gives the same bytes.

    Raises:
        UsageError: the module can't be rebuilt from its architecture and the shapes of its tensors.
    """
    tensors = {name: value.detach().contiguous() for name, value in network.module.state_dict().items()}
    rebuilt = build(network.architecture, seed=0).module
    fit_to_shapes(rebuilt, tensors)
    if str(rebuilt) != str(network.module):
        raise UsageError(
            f"the network is not what {network.architecture} and its tensors' shapes describe, "
            f"so it could not be loaded again:\n{network.module}\nwould become\n{rebuilt}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS_FILE)
    manifest = {
        "schema": SCHEMA_VERSION,
        "architecture": artifact_json.to_data(network.architecture),
        "quantization": None if network.quantization is None else artifact_json.to_data(network.quantization),
        "constraints": [artifact_json.to_data(constraint) for constraint in network.constraints],
    }
    text = json.dumps(manifest, indent=2, sort_keys=True, allow_nan=False)
    (folder / MANIFEST_FILE).write_text(text + "\n", encoding="utf-8")


def load_network(folder: Path) -> Network:
    """Read a network that `save_network` wrote; its outputs are the same bit for bit.

    Raises:
        UsageError: the folder has no network, one of another schema, or a damaged one.
    """
    manifest_file = folder / MANIFEST_FILE
    try:
        manifest = dict(json.loads(manifest_file.read_bytes()))
        tensors = load_file(folder / WEIGHTS_FILE)
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise UsageError(Problem(f"holds no readable network: {error}", file=folder)) from None
    if manifest.get("schema") != SCHEMA_VERSION:
        raise UsageError(
            Problem(
                f"has schema {manifest.get('schema')!r}, this armlet reads {SCHEMA_VERSION}", manifest_file
            )
        )
    try:
        architecture = artifact_json.from_json(Architecture, json.dumps(manifest["architecture"]))
        quantization = _quantization(manifest["quantization"])
        constraints = tuple(
            artifact_json.from_json(WeightConstraint, json.dumps(data)) for data in manifest["constraints"]
        )
    except (KeyError, ValueError, TypeError) as error:
        raise UsageError(Problem(f"describes no network: {error}", manifest_file)) from None
    module = build(architecture, seed=0).module
    fit_to_shapes(module, tensors)
    return Network(module.eval(), architecture, quantization, constraints)


def executable(network: Network) -> nn.Module:
    """Return what computes the network's outputs: a tensor [N, *shape] for each input -> [N, *output_shape].

    That is the module itself, or its graph with quantize and dequantize nodes where it is quantised.
    """
    if network.quantization is None:
        return network.module
    from armlet.models.quantization import quantized_module

    return quantized_module(network.module, network.architecture.inputs, network.quantization)


def _quantization(data: object) -> Quantization | None:
    if data is None:
        return None
    from armlet.models.quantization import Quantization

    return artifact_json.from_json(Quantization, json.dumps(data))
