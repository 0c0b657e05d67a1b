"""Filling in a low-rank matrix of which some entries are seen."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from secondlook.problems.tasks import Task
from secondlook.problems.training import minibatches, mse

ROWS, COLUMNS, RANK, SEEN, NOISE = 80, 60, 4, 0.5, 0.1


class Factors(nn.Module):
    """Entries (U V')[i, j] for index pairs [N, 2]."""

    def __init__(self, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        self.u = nn.Parameter(0.3 * torch.randn(ROWS, rank, generator=generator))
        self.v = nn.Parameter(0.3 * torch.randn(COLUMNS, rank, generator=generator))

    def forward(self, places: Tensor) -> Tensor:
        return (self.u[places[:, 0]] * self.v[places[:, 1]]).sum(1)


def matrix_completion(device: str) -> Task:
    """80 x 60 of rank 4 with noise 0.1; two fifths of the entries train, a tenth validates. The factors have rank 6."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(n, RANK, generator=generator) for n in (ROWS, COLUMNS))
    full = left @ right.T / RANK**0.5 + NOISE * torch.randn(ROWS, COLUMNS, generator=generator)
    order = torch.randperm(ROWS * COLUMNS, generator=generator)[: int(SEEN * ROWS * COLUMNS)]
    places = torch.stack([order // COLUMNS, order % COLUMNS], 1)
    x, y = places.to(device), full.flatten()[order].to(device)
    cut = len(order) * 4 // 5
    return Task(
        model=lambda g: Factors(6, g),
        batches=partial(minibatches, x[:cut], y[:cut], 128),
        loss=mse,
        validate=torch.no_grad()(partial(mse, batch=(x[cut:], y[cut:]))),
    )
