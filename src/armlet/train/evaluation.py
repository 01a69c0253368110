"""What a network answers, and how good that is."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from armlet.artifacts import Score
from armlet.data.splits import Samples
from armlet.metrics import score_classification
from armlet.models.network import Network, executable


def predict(module: nn.Module, inputs: Tensor, batch_size: int = 512) -> Tensor:
    """Return the outputs [n, n_outputs] for inputs [n, *input_shape], computed in batches without gradients."""
    with torch.inference_mode():
        return torch.cat([module(batch) for batch in torch.split(inputs, batch_size)])


def evaluate(network: Network, samples: Samples, split: str, batch_size: int = 512) -> Score:
    """Return the accuracy of a network on `samples`, on the CPU; quantised networks compute as quantised.

    Args:
        network: float or quantised.
        samples: inputs and labels.
        split: its name, for the score: "validation" or "test".
        batch_size: samples computed at once.

    Raises:
        UsageError: there are no samples.
    """
    logits = predict(executable(network), torch.from_numpy(samples.inputs), batch_size)
    return score_classification(logits.numpy(), samples.labels, network.architecture.n_outputs, split)
