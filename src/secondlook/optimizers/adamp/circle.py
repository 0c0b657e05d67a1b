"""The 2-D example of the project page: minimise -cos(w, w*), to which the norm of w does not matter."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from secondlook.optimizers.adamp.method import project


def descend(start: Tensor, lr: Tensor, momentum: Tensor, steps: int, projected: bool = False) -> tuple[Tensor, Tensor]:
    """Momentum descent of many independent problems from |w| = 1; each goes by its own learning rate and momentum.

    Args:
        start: angles from the optimum in radians, `[problems]`.
        lr: learning rates, `[problems]`.
        momentum: `[problems]`; 0 is plain gradient descent.
        projected: take SGDP's steps.

    Returns:
        Angles from the optimum after each step, and norms, both `[steps, problems]`.
    """
    w = torch.stack([start.cos(), start.sin()], -1)[:, None]  # [problems, 1, 2]
    target = w.new_tensor([1.0, 0.0])
    lr, momentum = lr[:, None, None], momentum[:, None, None]
    p, angles, norms = torch.zeros_like(w), [], []
    for _ in range(steps):
        norm = w.norm(dim=-1, keepdim=True)
        direction = w / norm
        gradient = (direction[..., :1] * direction - target) / norm
        p = momentum * p + gradient
        w = w - lr * (project(w, gradient, p)[0] if projected else p)
        angles.append(torch.atan2(w[:, 0, 1], w[:, 0, 0]).abs())
        norms.append(w.norm(dim=-1)[:, 0])
    return torch.stack(angles), torch.stack(norms)


def settled(angles: Tensor, tolerance: float) -> Tensor:
    """Steps after which angles `[steps, problems]` stay below the tolerance; the number of steps if they never do."""
    after = torch.arange(1, len(angles) + 1, device=angles.device)[:, None] * (angles >= tolerance)
    return (after.amax(0) + 1).clamp(max=len(angles)).double()


def starts(seeds: Sequence[int], n: int = 1) -> Tensor:
    """`n` angles a seed, between a quarter and almost half a turn from the optimum, `[len(seeds) * n]`."""
    draws = [torch.rand(n, generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in seeds]
    return math.pi * (0.5 + 0.45 * torch.cat(draws))
