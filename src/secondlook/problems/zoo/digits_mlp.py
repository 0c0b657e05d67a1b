"""A two-layer network on the 8x8 digits, small enough (1,810 parameters) for its exact Hessian."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from secondlook.problems import datasets
from secondlook.problems.classifiers import fit_classifier
from secondlook.problems.models.mlp import mlp

_RECIPE = {"hidden": 24, "batch_size": 64, "lr": 1e-2}
SCALES: dict[str, dict[str, Any]] = {
    "smoke": _RECIPE | {"hidden": 8, "steps": 100},
    "laptop": _RECIPE | {"steps": 600},
    "gpu": _RECIPE | {"steps": 600},
}
CHECK = {"hidden": 4, "batch_size": 16, "steps": 2}


def build(settings: dict[str, Any]) -> nn.Module:
    """The network with untrained weights (seed 0)."""
    return mlp((64, settings["hidden"], 10))


def train(
    settings: dict[str, Any], seed: int, device: str, track: Callable[..., Iterable[Any]]
) -> tuple[nn.Module, dict[str, float]]:
    """Adam with a cosine schedule; metrics are accuracies in percent and the final training loss."""
    generator = torch.Generator().manual_seed(seed)
    data = datasets.load("digits").to(device)
    model = mlp((64, settings["hidden"], 10), generator=generator).to(device)
    metrics = fit_classifier(
        model,
        torch.optim.Adam(model.parameters(), lr=settings["lr"]),
        data,
        steps=settings["steps"],
        batch_size=settings["batch_size"],
        generator=generator,
        track=track,
    )
    return model, metrics
