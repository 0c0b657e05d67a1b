"""Regression problems, 60% of the rows for training, 20% each for validation and test, redrawn with every seed."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from secondlook.problems import datasets


class Parts(NamedTuple):
    """Inputs [P, N] and targets [P, M] in float64, both scaled to mean 0 and variance 1 by the training rows."""

    train: tuple[Tensor, Tensor]
    val: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def inversion(rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """2x2 matrices with entries from U(0, 1) and |determinants| between 0.3 and 2, and their inverses."""
    a = torch.rand(10 * rows, 2, 2, generator=generator, dtype=torch.float64)
    a = a[(a.det().abs() >= 0.3)][:rows]
    return a.flatten(1), a.inverse().flatten(1)


def sensing(rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Eight measurements, smooth in seven quantities and 1% noisy; the quantities are to be found."""
    q = torch.rand(rows, 7, generator=generator, dtype=torch.float64)
    mix, turn = (torch.randn(7, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    measured = q @ mix + torch.sin(2 * q @ turn)
    return measured + 0.01 * measured.std(0) * torch.randn(rows, 8, generator=generator, dtype=torch.float64), q


def bundled(name: str) -> tuple[Tensor, Tensor]:
    """All rows of a data set; of classes the target is whether they are odd."""
    data = datasets.load(name)
    x, y = (torch.cat(parts) for parts in zip(data.train, data.val, data.test, strict=True))
    return x.double().flatten(1), y.double() if data.classes == 0 else (y % 2).double()[:, None]


def draw(name: str, rows: int, seed: int) -> Parts:
    """At most `rows` rows of a problem: inversion, sensing, diabetes, breast-cancer or digits."""
    made = {"inversion": inversion, "sensing": sensing}
    x, y = made[name](rows, torch.Generator().manual_seed(0)) if name in made else bundled(name)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:rows]
    cuts = order.tensor_split([int(0.6 * len(order)), int(0.8 * len(order))])
    both = [_scaled(z, cuts[0]) for z in (x, y)]
    return Parts(*(tuple(z[cut] for z in both) for cut in cuts))


def _scaled(z: Tensor, rows: Tensor) -> Tensor:
    std, mean = torch.std_mean(z[rows], 0)
    return (z - mean) / torch.where(std > 0, std, 1)  # an input that never changes stays 0
