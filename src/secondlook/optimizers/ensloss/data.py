"""Two-class problems with few training rows, on many features."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from secondlook.problems import datasets

MATTERING, FLIPPED, GENERATED = 10, 0.1, 2000  # two clusters: features that differ, share of wrong labels, rows


@dataclass(frozen=True)
class Rows:
    """Inputs [features, n], scaled by the training rows, and targets [n] of 0 and 1."""

    train: tuple[Tensor, Tensor]
    val: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Problem:
    """All rows [n, features]; the second half tests and is never seen while tuning."""

    x: Tensor
    y: Tensor

    @classmethod
    def load(cls, name: str, features: int | None, device: str) -> Problem:
        """DATA or DATA-a-b (classes a and b of it), on `features` random ReLU features where given; or clusters."""
        g = torch.Generator().manual_seed(0)
        if name == "clusters":  # Gaussian, one standard deviation apart in each of the features that differ
            y = torch.arange(GENERATED) % 2
            x = torch.randn(GENERATED, features or 256, generator=g)
            x[:, :MATTERING] += y[:, None]
            y = y ^ (torch.rand(GENERATED, generator=g) < FLIPPED)
            return cls(x.to(device), y.float().to(device))
        x, y = both_classes(name)
        order = torch.randperm(len(y), generator=g)
        x = x[order] / x.std()
        if features:
            x = torch.relu(x @ torch.randn(x.shape[1], features, generator=g) / x.shape[1] ** 0.5)
        return cls(x.to(device), y[order].to(device))

    def draw(self, rows: int, seed: int) -> Rows:
        """Training rows drawn from the first half; what is left of it validates."""
        half = len(self.y) // 2
        order = torch.randperm(half, generator=torch.Generator().manual_seed(seed)).to(self.x.device)
        std, mean = torch.std_mean(self.x[order[:rows]], 0)
        x = ((self.x - mean) / (std + 1e-3)).T
        parts = (order[:rows], order[rows:], torch.arange(half, len(self.y), device=order.device))
        return Rows(*((x[:, part].contiguous(), self.y[part]) for part in parts))


def both_classes(name: str) -> tuple[Tensor, Tensor]:
    """Rows of two classes of a data set, all its parts together, flat; targets 1 for the second class."""
    if name in datasets.DATASETS:
        name, classes = name, (0, 1)
    else:
        name, low, high = name.rsplit("-", 2)
        classes = (int(low), int(high))
    data = datasets.load(name)
    x, y = (torch.cat(parts) for parts in zip(data.train, data.val, data.test, strict=True))
    kept = (y == classes[0]) | (y == classes[1])
    return x[kept].flatten(1), (y[kept] == classes[1]).float()
