"""What training makes small, by the names that users write."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from armlet.artifacts import TaskKind
from armlet.registry import Registry
from armlet.train.options import TrainOptions

Loss = Callable[[Tensor, Tensor, TrainOptions], Tensor]
"""Mean loss of answers [N, ...] against targets: of classes the shares [N, n_classes], else numbers [N, ...]."""

CLASS_LOSSES: Registry[Loss] = Registry("loss of classes")
NUMBER_LOSSES: Registry[Loss] = Registry("loss of numbers")

_USUAL = {"classification": "cross_entropy"}


def task_loss(task: TaskKind, outputs: Tensor, targets: Tensor, options: TrainOptions) -> Tensor:
    """Return the mean loss of answers [N, *output_shape].

    Args:
        task: decides what the targets are.
        outputs: float32.
        targets: int64 classes [N] or float32 shares of classes [N, n_classes]; or float32 answers like `outputs`.
        options: which loss, and its numbers.
    """
    if task != "classification":
        name = "mse" if options.loss == "auto" else options.loss
        return NUMBER_LOSSES[name](outputs, targets, options)
    shares = targets if targets.is_floating_point() else _one_hot(targets, outputs.shape[1])
    smoothing = options.label_smoothing
    shares = shares * (1 - smoothing) + smoothing / outputs.shape[1]
    return CLASS_LOSSES["cross_entropy" if options.loss == "auto" else options.loss](outputs, shares, options)


@CLASS_LOSSES.register("cross_entropy")
def cross_entropy(logits: Tensor, shares: Tensor, options: TrainOptions) -> Tensor:
    """Negative log-likelihood; label smoothing is in the shares (Szegedy et al. 2016, section 7)."""
    return functional.cross_entropy(logits, shares)


@CLASS_LOSSES.register("focal")
def focal(logits: Tensor, shares: Tensor, options: TrainOptions) -> Tensor:
    """Cross-entropy times (1 - p)^gamma: what is already right counts less (Lin et al. 2017)."""
    log_p = functional.log_softmax(logits, dim=1)
    weight: Tensor = (1 - log_p.exp()) ** options.focal_gamma
    return -(shares * weight * log_p).sum(dim=1).mean()


@CLASS_LOSSES.register("bce")
def bce_of_classes(logits: Tensor, shares: Tensor, options: TrainOptions) -> Tensor:
    """Binary cross-entropy of each class against all others."""
    return functional.binary_cross_entropy_with_logits(logits, shares)


@CLASS_LOSSES.register("kl")
def kl(logits: Tensor, shares: Tensor, options: TrainOptions) -> Tensor:
    """Kullback-Leibler divergence of the answers from the shares: cross-entropy less the shares' own entropy."""
    return functional.kl_div(functional.log_softmax(logits, dim=1), shares, reduction="batchmean")


@CLASS_LOSSES.register("hinge")
def hinge(logits: Tensor, shares: Tensor, options: TrainOptions) -> Tensor:
    """Mean of max(0, 1 - logit of the class + logit of another) (Weston and Watkins 1999), weighted by the shares."""
    margins = (1 - logits[:, :, None] + logits[:, None, :]).clamp(min=0)  # [N, class, other]
    others = 1 - torch.eye(logits.shape[1], device=logits.device)
    return (margins * others * shares[:, :, None]).sum(dim=(1, 2)).mean() / logits.shape[1]


@NUMBER_LOSSES.register("mse")
def mse(outputs: Tensor, targets: Tensor, options: TrainOptions) -> Tensor:
    """Mean squared error."""
    return functional.mse_loss(outputs, targets)


@NUMBER_LOSSES.register("mae")
def mae(outputs: Tensor, targets: Tensor, options: TrainOptions) -> Tensor:
    """Mean absolute error."""
    return functional.l1_loss(outputs, targets)


@NUMBER_LOSSES.register("huber")
def huber(outputs: Tensor, targets: Tensor, options: TrainOptions) -> Tensor:
    """Squared for errors below delta, linear above (Huber 1964)."""
    return functional.huber_loss(outputs, targets, delta=options.huber_delta)


@NUMBER_LOSSES.register("bce")
def bce_of_numbers(outputs: Tensor, targets: Tensor, options: TrainOptions) -> Tensor:
    """Binary cross-entropy of answers from 0 to 1 against targets from 0 to 1."""
    return functional.binary_cross_entropy(outputs, targets)


def _one_hot(labels: Tensor, n_classes: int) -> Tensor:
    return functional.one_hot(labels, n_classes).float()
