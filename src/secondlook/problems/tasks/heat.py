r"""The heat equation $u_t = u_{xx} / \pi^2$ on $[0, 1]^2$ by a physics-informed network.

With $u(0, x) = \sin \pi x$ and zero ends the solution is $e^{-t} \sin \pi x$. The ends and the start are built into the
network, $u = \sin \pi x + t x (1 - x) f(t, x)$, so the loss is the mean squared residual alone; validation compares
$u$ with the solution.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from secondlook.problems.models import mlp
from secondlook.problems.tasks import Task


def _u(model: nn.Module, points: Tensor) -> Tensor:
    t, x = points[:, 0], points[:, 1]
    return (math.pi * x).sin() + t * x * (1 - x) * model(points)[:, 0]


def _residual(model: nn.Module, points: Tensor) -> Tensor:
    points = points.detach().requires_grad_()
    with torch.enable_grad():
        (first,) = torch.autograd.grad(_u(model, points).sum(), points, create_graph=True)
        (second,) = torch.autograd.grad(first[:, 1].sum(), points, create_graph=True)
        return (first[:, 0] - second[:, 1] / math.pi**2).square().mean()


def heat_pinn(device: str) -> Task:
    """128 fresh points a step, two hidden layers of 24 tanh units."""
    grid = torch.cartesian_prod(*(torch.linspace(0, 1, 24),) * 2).to(device)
    exact = (-grid[:, 0]).exp() * (math.pi * grid[:, 1]).sin()

    def batches(generator: torch.Generator) -> Iterator[Tensor]:
        while True:
            yield torch.rand(128, 2, generator=generator, device=device)

    @torch.no_grad()
    def validate(model: nn.Module) -> Tensor:
        return (_u(model, grid) - exact).square().mean()

    return Task(lambda generator: mlp((2, 24, 24, 1), nn.Tanh, generator), batches, _residual, validate)
