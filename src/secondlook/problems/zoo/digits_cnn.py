"""A small convolutional network on the 8x8 digits: the suite's cheapest trained classifier."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from secondlook.problems import datasets
from secondlook.problems.classifiers import fit_classifier
from secondlook.problems.models.convnets import digits_cnn

_RECIPE = {"channels": [16, 32], "batch_size": 64, "lr": 3e-3}
SCALES: dict[str, dict[str, Any]] = {
    "smoke": _RECIPE | {"steps": 100},
    "laptop": _RECIPE | {"steps": 1000},
    "gpu": _RECIPE | {"steps": 1000},
}
CHECK = {"channels": [2, 2], "batch_size": 16, "steps": 2}


def build(settings: dict[str, Any]) -> nn.Module:
    """The network with untrained weights (seed 0)."""
    return digits_cnn(settings["channels"])


def train(
    settings: dict[str, Any], seed: int, device: str, track: Callable[..., Iterable[Any]]
) -> tuple[nn.Module, dict[str, float]]:
    """AdamW with a cosine schedule; metrics are accuracies in percent and the final training loss."""
    generator = torch.Generator().manual_seed(seed)
    data = datasets.load("digits").to(device)
    model = digits_cnn(settings["channels"], generator=generator).to(device)
    metrics = fit_classifier(
        model,
        torch.optim.AdamW(model.parameters(), lr=settings["lr"]),
        data,
        steps=settings["steps"],
        batch_size=settings["batch_size"],
        generator=generator,
        track=track,
    )
    return model, metrics
