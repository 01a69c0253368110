"""What a network answers, and how good that is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from armlet.artifacts import Score
from armlet.data.splits import Samples
from armlet.errors import UsageError
from armlet.metrics import Scorer
from armlet.models.network import Network, executable


def predict(module: nn.Module, inputs: Sequence[Tensor], batch_size: int = 512) -> Tensor:
    """Return the outputs [n, *output_shape] for inputs [n, *shape], computed in batches without gradients."""
    with torch.inference_mode():
        batches = zip(*(torch.split(x, batch_size) for x in inputs), strict=True)
        return torch.cat([module(*batch) for batch in batches])


def evaluate(network: Network, samples: Samples, scorer: Scorer, split: str, batch_size: int = 512) -> Score:
    """Return the score of a network on `samples`, on the CPU; quantised networks compute as quantised.

    Args:
        network: float or quantised.
        samples: inputs and targets.
        scorer: of the task.
        split: its name, for the score: "validation" or "test".
        batch_size: samples computed at once.

    Raises:
        UsageError: there are no samples.
    """
    if len(samples) == 0:
        raise UsageError(f"the {split} split has no samples to score")
    outputs = predict(executable(network), tuple(map(torch.from_numpy, samples.inputs)), batch_size)
    return scorer.score(outputs.numpy(), samples, split)
