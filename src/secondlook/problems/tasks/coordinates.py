"""An image as a function of its coordinates."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn

from secondlook.problems.models import mlp
from secondlook.problems.tasks import Task
from secondlook.problems.training import minibatches, mse

SIDE, FREQUENCIES = 64, 16


class Waves(nn.Module):
    """sin and cos of fixed random projections of the coordinates (random Fourier features)."""

    def __init__(self, count: int, generator: torch.Generator) -> None:
        super().__init__()
        self.register_buffer("projection", 2 * math.pi * 3 * torch.randn(2, count, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([(x @ self.projection).sin(), (x @ self.projection).cos()], 1)


def coordinate_image(device: str) -> Task:
    """scikit-image's photographer at 64 x 64; a tenth of the pixels validates."""
    from skimage import data, transform

    image = transform.resize(data.camera(), (SIDE, SIDE), anti_aliasing=True)
    line = torch.linspace(-1, 1, SIDE)
    x = torch.cartesian_prod(line, line)
    y = torch.as_tensor(image, dtype=torch.float32).reshape(-1, 1)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = x[order].to(device), y[order].to(device)
    cut = len(x) * 9 // 10

    def model(generator: torch.Generator) -> nn.Module:
        return nn.Sequential(Waves(FREQUENCIES, generator), mlp((2 * FREQUENCIES, 32, 32, 1), nn.Tanh, generator))

    return Task(
        model=model,
        batches=partial(minibatches, x[:cut], y[:cut], 256),
        loss=mse,
        validate=torch.no_grad()(partial(mse, batch=(x[cut:], y[cut:]))),
    )
