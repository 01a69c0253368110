"""The state between two epochs in one safetensors file, replaced atomically; private to one training job."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from armlet import artifact_json
from armlet.artifacts import Epoch

CHECKPOINT_FILE = "checkpoint.safetensors"
_MODULE, _BEST, _OPTIMIZER = "module.", "best.", "optimizer."


@dataclass(frozen=True, slots=True)
class _Header:
    """What stands beside the tensors."""

    fingerprint: str
    history: tuple[Epoch, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Learner:
    """What changes while training.

    Attributes:
        modules: by name, the moving average among them.
        optimizers: by name of the module they move.
    """

    modules: Mapping[str, nn.Module]
    optimizers: Mapping[str, torch.optim.Optimizer]


@dataclass(frozen=True, slots=True)
class Resumed:
    """What a checkpoint holds besides the modules and the optimisers.

    Attributes:
        history: the epochs that are done.
        best: the network's state after the epoch with the best validation score, empty where it isn't kept.
    """

    history: tuple[Epoch, ...]
    best: Mapping[str, Tensor]


def save_checkpoint(folder: Path, fingerprint: str, learner: Learner, so_far: Resumed) -> None:
    """Replace the folder's checkpoint; a kill at any moment leaves the old one or the new one."""
    tensors = {f"{_BEST}{name}": value for name, value in so_far.best.items()}
    for module_name, module in learner.modules.items():
        state = module.state_dict().items()
        tensors |= {f"{_MODULE}{module_name}.{name}": value for name, value in state}
    for module_name, optimizer in learner.optimizers.items():
        for index, state in optimizer.state_dict()["state"].items():
            kept = {name: value for name, value in state.items() if value is not None}
            tensors |= {f"{_OPTIMIZER}{module_name}.{index}.{name}": value for name, value in kept.items()}
    header = artifact_json.to_json(_Header(fingerprint, so_far.history))
    partial = folder / f"{CHECKPOINT_FILE}.partial"
    save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, partial, {"header": header})
    with partial.open("rb") as stream:
        os.fsync(stream.fileno())
    partial.replace(folder / CHECKPOINT_FILE)


def resume(folder: Path, fingerprint: str, learner: Learner) -> Resumed | None:
    """Load the folder's checkpoint into the modules and the optimisers.

    Returns:
        None, and nothing is changed, where there is no checkpoint or it is another job's.
    """
    try:
        with safe_open(folder / CHECKPOINT_FILE, framework="pt") as file:
            header = artifact_json.from_json(_Header, file.metadata()["header"])
            if header.fingerprint != fingerprint:
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (FileNotFoundError, SafetensorError):
        return None
    for module_name, module in learner.modules.items():
        module.load_state_dict(_below(tensors, f"{_MODULE}{module_name}."))
    for module_name, optimizer in learner.optimizers.items():
        states: dict[int, dict[str, Tensor]] = {}
        for name, value in _below(tensors, f"{_OPTIMIZER}{module_name}.").items():
            index, _, key = name.partition(".")
            states.setdefault(int(index), {})[key] = value
        optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
    return Resumed(header.history, _below(tensors, _BEST))


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
