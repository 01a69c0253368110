"""Generated pictures against real ones, in the features of a trained classifier.

The Fréchet distance is that of Heusel et al. 2017, but not in the features of Inception: it is no "FID" and compares
only with others from the same judge. Precision is the share of generated samples that lie within the real ones, recall
the share of real samples that lie within the generated ones (Kynkäänniemi et al. 2019, with their 3 neighbours).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from armlet.artifacts import Score
from armlet.data.splits import Samples
from armlet.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from armlet.models.network import Network

N_NEIGHBOURS = 3
N_COMPARED = 5000  # for precision and recall, which compare each with each
_BATCH = 500


def score_generation(
    outputs: npt.NDArray[Any], samples: Samples, judge: Network, untrained: float | None, split: str
) -> Score:
    """Return the Fréchet distance of generated pictures from the samples' targets, precision and recall.

    Args:
        outputs: generated pictures [N, C, H, W] from -1 to 1.
        samples: as many real pictures, the targets.
        judge: a classifier of pictures from 0 to 1, whose last layer is named `classifier`.
        untrained: Fréchet distance of the network before training, where it is known.
        split: name of the split that the real pictures come from.

    Raises:
        UsageError: fewer than two pictures, or the judge has no such layer.
    """
    import torch

    if len(samples) < 2:
        raise UsageError(f"the {split} split has {len(samples)} pictures; a distance needs at least two")
    made, real = (
        features(judge.module, torch.from_numpy((x.astype(np.float32) + 1) / 2).clamp(0, 1))
        for x in (outputs, samples.targets)
    )
    distance = frechet_distance(made, real)
    others = {} if untrained is None else {"frechet_ratio": distance / untrained}
    others |= {
        "sample_precision": share_within(made[:N_COMPARED], real[:N_COMPARED]),
        "sample_recall": share_within(real[:N_COMPARED], made[:N_COMPARED]),
    }
    return Score("frechet_distance", distance, len(samples), split, others=tuple(others.items()))


def features(judge: nn.Module, pictures: Tensor) -> Tensor:
    """Return what goes into the judge's layer `classifier`, [N, width], for pictures [N, C, H, W]."""
    import torch

    found: list[Tensor] = []
    try:
        classifier = judge.get_submodule("classifier")
    except AttributeError:
        raise UsageError(
            f"a {type(judge).__name__} has no layer `classifier`, so it can't be a judge"
        ) from None
    hook = classifier.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
    try:
        with torch.inference_mode():
            for batch in torch.split(pictures, _BATCH):
                judge(batch)
    finally:
        hook.remove()
    return torch.cat(found)


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Return the Fréchet distance between the normal distributions that fit features [N, width] and [M, width]."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    distance = FrechetInceptionDistance(feature=_as_they_are(a.shape[1])).set_dtype(a.double().dtype)
    distance.update(a.double(), real=False)
    distance.update(b.double(), real=True)
    return float(distance.compute())


def share_within(queries: Tensor, references: Tensor) -> float:
    """Return the share of queries [N, width] nearer to any reference [M, width] than its third neighbour is."""
    import torch

    n_neighbours = min(N_NEIGHBOURS, len(references) - 1)
    radii = torch.cat(
        [
            torch.cdist(part, references).kthvalue(n_neighbours + 1, dim=1).values
            for part in torch.split(references, _BATCH)
        ]
    )
    within = [(torch.cdist(part, references) <= radii).any(dim=1) for part in torch.split(queries, _BATCH)]
    return float(torch.cat(within).float().mean())


def _as_they_are(width: int) -> nn.Module:
    """Return a module that takes features for torchmetrics, which calls one on pictures."""
    from torch import nn

    class AsTheyAre(nn.Identity):
        num_features = width

    return AsTheyAre()
