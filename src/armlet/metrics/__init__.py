"""Task metrics, on the answers of a torch network and of a compiled program alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from armlet.artifacts import Score, Task
from armlet.data.splits import Samples
from armlet.errors import ArmletError, UsageError
from armlet.metrics.anomaly import score_anomaly
from armlet.metrics.changes import find_changes
from armlet.metrics.classification import score_classification
from armlet.metrics.denoising import score_denoising
from armlet.metrics.exhibits import make_exhibits, n_of_trained
from armlet.metrics.forecast import score_forecast
from armlet.metrics.generation import score_generation

if TYPE_CHECKING:
    from armlet.models.network import Network

__all__ = [
    "Scorer",
    "find_changes",
    "make_exhibits",
    "n_of_trained",
    "score_anomaly",
    "score_classification",
    "score_denoising",
    "score_forecast",
    "score_generation",
]


@dataclass(frozen=True, slots=True)
class Scorer:
    """Says how good answers to a task are.

    Attributes:
        judge: the classifier in whose features generated samples are compared; other tasks have none.
        untrained: score of the network before training, where the task is scored by how much better it became.
    """

    task: Task
    judge: Network | None = None
    untrained: float | None = None

    def score(self, outputs: npt.NDArray[Any], samples: Samples, split: str) -> Score:
        """Score answers.

        Args:
            outputs: [N, *output_shape] of any type.
            samples: what was asked.
            split: name of the split that the samples come from.

        Raises:
            UsageError: there are no samples, or the shapes don't fit.
            ArmletError: an answer is not a number.
        """
        if len(samples) == 0:
            raise UsageError(f"the {split} split has no samples to score")
        if outputs.shape != (len(samples), *self.task.output_shape):
            raise UsageError(
                f"answers of shape {outputs.shape} to {len(samples)} samples, each of {list(self.task.output_shape)}"
            )
        if np.isnan(outputs).any():
            raise ArmletError(f"answers to the {split} split are not numbers (NaN)")
        match self.task.kind:
            case "classification":
                return score_classification(outputs, samples.targets, self.task.output_shape[0], split)
            case "forecast":
                return score_forecast(outputs, samples.targets, split)
            case "anomaly":
                return score_anomaly(outputs, samples, split)
            case "denoising":
                return score_denoising(outputs, samples, split)
            case "generation":
                if self.judge is None:
                    raise UsageError(
                        "generated samples are compared in a judge's features: there is no judge"
                    )
                return score_generation(outputs, samples, self.judge, self.untrained, split)
