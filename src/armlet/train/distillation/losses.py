"""What makes a student like its teacher: each a mean over the batch.

Values of layers are rows [N, C], pictures [N, C, H, W] or sequences [N, T, C]; `valid`, bool [N, T], says which frames
of a sequence are within its length, None that all are.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

_N_VERTICES = 64
"""Samples of a batch whose triples are compared: all triples of more take longer than the network."""


def distillation_loss(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Mean divergence of a student's softened answers from its teacher's; both logits are [N, n_classes].

    The factor T² keeps the gradient's size the same at every temperature.

    Source: Hinton, Vinyals and Dean 2015, "Distilling the Knowledge in a Neural Network", section 2.
    """
    student = functional.log_softmax(logits / temperature, dim=1)
    teacher = functional.log_softmax(teacher_logits / temperature, dim=1)
    return functional.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


def decoupled_loss(
    logits: Tensor, teacher_logits: Tensor, classes: Tensor, temperature: float, weights: tuple[float, float]
) -> Tensor:
    """Mean of the divergence's two parts, weighted apart: right class against all others, and among the others.

    Source: Zhao et al. 2022, "Decoupled Knowledge Distillation", equation 7.

    Args:
        logits: [N, n_classes].
        teacher_logits: [N, n_classes].
        classes: the right ones, int64 [N].
        temperature: as of `distillation_loss`.
        weights: of the first part (alpha in the paper) and of the second (beta).
    """
    wrong = ~functional.one_hot(classes, logits.shape[1]).bool()
    softened = logits / temperature, teacher_logits / temperature
    sides, others = [], []
    for values in softened:
        of_wrong = values[wrong].reshape(len(values), -1)
        side = torch.stack([values.gather(1, classes[:, None])[:, 0], of_wrong.logsumexp(dim=1)], dim=1)
        sides.append(functional.log_softmax(side, dim=1))
        others.append(functional.log_softmax(of_wrong, dim=1))
    parts = [
        functional.kl_div(student, teacher, reduction="batchmean", log_target=True)
        for student, teacher in (sides, others)
    ]
    return (weights[0] * parts[0] + weights[1] * parts[1]) * temperature**2


def hint_loss(student: Tensor, teacher: Tensor, valid: Tensor | None) -> Tensor:
    """Mean squared difference of a layer's values, the student's mapped to the teacher's width.

    Source: Romero et al. 2015, "FitNets: Hints for Thin Deep Nets", equation 3, over the number of values.
    """
    return _mean((student - teacher).square(), valid)


def attention_loss(student: Tensor, teacher: Tensor, valid: Tensor | None) -> Tensor:
    """Mean distance of normalised attention maps: sums over the channels of a layer's squared values.

    Source: Zagoruyko and Komodakis 2017, "Paying More Attention to Attention", equation 2 with p = 2.
    """
    maps = []
    for values in (student, teacher):
        squares = values.square()
        sums = squares.sum(dim=2) if values.dim() == 3 else squares.sum(dim=1).flatten(1)
        if valid is not None:
            sums = torch.where(valid, sums, 0.0)
        maps.append(functional.normalize(sums, dim=1))
    distance: Tensor = torch.linalg.vector_norm(maps[0] - maps[1], dim=1)
    return distance.mean()


def relations_loss(
    student: Tensor, teacher: Tensor, valid: Tensor | None, weights: tuple[float, float]
) -> Tensor:
    """Mean Huber loss of how the samples of a batch lie to each other: distances of pairs, angles of triples.

    Source: Park et al. 2019, "Relational Knowledge Distillation", equations 6 to 10.

    Args:
        student: a layer's values.
        teacher: the same, of any width.
        valid: frames that count.
        weights: of distances, over their mean, and of the cosines of angles; those between the batch's first samples.
    """
    pairs = [_distances(_rows(values, valid)) for values in (student, teacher)]
    triples = [_cosines(_rows(values, valid)[:_N_VERTICES]) for values in (student, teacher)]
    losses = []
    for ours, theirs in (pairs, triples):
        apart = ~torch.eye(len(ours), dtype=torch.bool, device=ours.device)
        if ours.dim() == 3:  # sample j is the vertex; i, j and k are three samples
            apart = apart[:, :, None] & apart[None, :, :] & apart[:, None, :]
        gaps = functional.huber_loss(ours, theirs, reduction="none")
        losses.append((gaps * apart).sum() / apart.sum())
    return weights[0] * losses[0] + weights[1] * losses[1]


def hidden_states_loss(student: Tensor, teacher: Tensor, valid: Tensor | None) -> Tensor:
    """Mean squared distance of the frames' normalised states, the student's mapped to the teacher's width.

    Source: Sun et al. 2019, "Patient Knowledge Distillation for BERT Model Compression", equation 7, of every token.
    """
    difference = functional.normalize(student, dim=2) - functional.normalize(teacher, dim=2)
    return _mean(difference.square().sum(dim=2, keepdim=True), valid)


def _mean(values: Tensor, valid: Tensor | None) -> Tensor:
    """Return the mean of a layer's values, or of those of the frames that count."""
    if valid is None:
        return values.mean()
    counts = valid[:, :, None].to(values.dtype)
    return (values * counts).sum() / (counts.sum().clamp(min=1.0) * values.shape[2])


def _rows(values: Tensor, valid: Tensor | None) -> Tensor:
    return (values if valid is None else torch.where(valid[:, :, None], values, 0.0)).flatten(1)


def _products(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the products of all pairs of rows, less their mean, and the distances of all pairs, [N, N] each.

    The differences of all pairs themselves would be N² rows.
    """
    rows = rows - rows.mean(dim=0)  # nothing but rounding changes
    products = rows @ rows.T
    lengths = products.diagonal()
    # Equal samples have no direction; the floor keeps their gradient finite.
    return products, (lengths[:, None] + lengths[None] - 2 * products).clamp(min=1e-10).sqrt()


def _distances(rows: Tensor) -> Tensor:
    """Return the distances of all pairs over their mean, [N, N]."""
    _, distances = _products(rows)
    n = len(rows)
    return distances * (n * (n - 1)) / (distances.sum() - distances.diagonal().sum())


def _cosines(rows: Tensor) -> Tensor:
    """Return the cosine of the angle at sample j between i and k, [N, N, N]."""
    products, distances = _products(rows)
    # (i - j) · (k - j) = i·k - i·j - j·k + j·j, of [i, j, k]
    inner = products[:, None, :] - products[:, :, None] - products[None]
    inner = inner + products.diagonal()[None, :, None]
    return inner / (distances[:, :, None] * distances[None])
