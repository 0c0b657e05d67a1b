"""The recipe that the reference classifiers share: one schedule, and accuracies beside the final loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from secondlook.problems.datasets import Dataset
from secondlook.problems.training import accuracy, cosine, cross_entropy, fit, minibatches


def fit_classifier(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: Dataset,
    *,
    steps: int,
    batch_size: int,
    generator: torch.Generator,
    track: Callable[..., Iterable[Any]],
) -> dict[str, float]:
    """Train with a cosine schedule; returns validation and test accuracy in percent and the final training loss."""
    history = fit(
        model,
        optimizer,
        minibatches(*data.train, batch_size, generator),
        cross_entropy,
        steps=steps,
        schedule=cosine(steps, warmup=steps // 20),
        every=max(1, steps // 10),
        track=track,
    )
    return {
        "train_loss": history.last("loss"),
        "val_accuracy": accuracy(model, *data.val),
        "test_accuracy": accuracy(model, *data.test),
    }
