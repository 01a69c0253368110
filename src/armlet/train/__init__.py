"""Training: one explicit loop, resumable and reproducible, on one or several processes."""

from __future__ import annotations

from armlet.train.distillation.options import DistillationOptions, Term
from armlet.train.evaluation import evaluate, predict
from armlet.train.group_lasso import GroupLasso
from armlet.train.job import TrainingRun
from armlet.train.options import TrainOptions
from armlet.train.pruning import PruningSchedule
from armlet.train.train import train_network

__all__ = [
    "DistillationOptions",
    "GroupLasso",
    "PruningSchedule",
    "Term",
    "TrainOptions",
    "TrainingRun",
    "evaluate",
    "predict",
    "train_network",
]
