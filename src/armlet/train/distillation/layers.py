"""The values of a network's modules while it answers, and which modules are compared unless others are named."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from armlet.analysis.graph import example_inputs
from armlet.artifacts import InputSpec

_N_PROBES = 2


def observe(
    module: nn.Module, inputs: Sequence[Tensor], layers: Iterable[str]
) -> tuple[Any, dict[str, Tensor]]:
    """Return what a module answers, and the values of those of its layers that ran, in the order that they did.

    Of a layer that gives several values the first counts, of one that runs several times the last.
    """
    seen: dict[str, Tensor] = {}

    def hook(name: str) -> Callable[[nn.Module, object, Any], None]:
        def keep(_: nn.Module, __: object, value: Any) -> None:  # noqa: ANN401 - a module gives anything
            seen.pop(name, None)
            seen[name] = value[0] if isinstance(value, tuple) else value

        return keep

    handles = [module.get_submodule(name).register_forward_hook(hook(name)) for name in layers]
    try:
        return module(*inputs), seen
    finally:
        for handle in handles:
            handle.remove()


def unknown_layers(layers: Iterable[str], module: nn.Module) -> list[str]:
    """Return a problem for each name that none of the module's parts has."""
    known = dict(module.named_modules())
    return [
        f"layers has {name!r}, and the network has no such module" for name in layers if name not in known
    ]


def shapes_of(
    module: nn.Module, inputs: Sequence[InputSpec], layers: Iterable[str]
) -> dict[str, tuple[int, ...]]:
    """Return the shapes of layers' values for one sample, without the batch; of those that ran.

    Args:
        module: in eval mode; neither changed nor trained.
        inputs: what it takes.
        layers: names of its modules.
    """
    device = next(module.parameters()).device
    with torch.no_grad():
        _, seen = observe(module, example_inputs(inputs, _N_PROBES, device), layers)
    return {name: tuple(value.shape[1:]) for name, value in seen.items()}


def stages_of(module: nn.Module, inputs: Sequence[InputSpec]) -> dict[str, tuple[int, ...]]:
    """Return the parts that a network is made of with the shapes of their values, but for the one that answers.

    Parts are the outermost modules with weights; lists of modules are opened.
    """
    found = shapes_of(module, inputs, list(_outermost(module, "")))
    return dict(list(found.items())[:-1])


def _outermost(module: nn.Module, prefix: str) -> Iterable[str]:
    for name, child in module.named_children():
        if isinstance(child, nn.ModuleList):
            yield from _outermost(child, f"{prefix}{name}.")
        elif any(True for _ in child.parameters()):
            yield f"{prefix}{name}"


def valid_frames(value: Tensor, inputs: Sequence[Tensor]) -> Tensor | None:
    """Return which frames of a sequence's value are within its length, bool [N, T]; None where nothing has a length.

    Args:
        value: of a layer, [N, T, C] where frames were put together to T tokens.
        inputs: of the network: frames or tokens first, and lengths [N] in frames.
    """
    if value.dim() != 3 or len(inputs) < 2:
        return None
    n_tokens = value.shape[1]
    starts = torch.arange(n_tokens, device=value.device) * (inputs[0].shape[1] // n_tokens)
    return starts < inputs[1][:, None]
