r"""LiSSA, the stochastic recursion for inverse-Hessian products (Agarwal et al.; Koh & Liang, arXiv:1703.04730).

    v_{k+1} = b + (I - (G_k + Lambda) / s) v_k,    (G + Lambda)^{-1} b ~ v_K / s

with G_k the Gauss-Newton matrix of a fresh mini-batch. It converges when s exceeds the largest eigenvalue, at a rate
of lambda / s a step; unlike EK-FAC nothing is shared between queries except a mini-batch's forward pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from secondlook.curvature.kronecker import linear_layers
from secondlook.influence.ekfac_influence.exact import Solver
from secondlook.influence.ekfac_influence.gauss_newton import Matrices, flatten, product, spread, unflatten, weights
from secondlook.influence.ekfac_influence.losses import OutputLoss, output_loss


def lissa_solver(
    model: nn.Module,
    x: Tensor,
    loss: str | OutputLoss,
    damping: Mapping[str, float],
    *,
    depth: int,
    batch_size: int = 32,
    scale: float | None = None,
    generator: torch.Generator | None = None,
) -> Solver:
    """A solver that runs `depth` recursions on mini-batches of `x`, all right-hand sides at once.

    scale: s; None takes 1.5 times the largest eigenvalue over four mini-batches, found by power iteration. Too small
    a scale makes the recursion diverge, which shows as non-finite results.
    """
    if depth < 1 or batch_size < 1:
        raise ValueError(f"depth and batch_size must be at least 1, got {depth} and {batch_size}")
    layers, value = linear_layers(model, damping), output_loss(loss)
    theta = weights(model, layers)
    lam = spread(damping, theta)

    def multiply(v: Tensor, batch: Tensor) -> Tensor:
        return flatten(product(model, layers, value, batch, unflatten(v, theta))) / len(batch) + lam * v

    if scale is None:
        draws = batches(x, batch_size, generator)
        scale = 1.5 * max(_largest(multiply, next(draws), len(lam), generator) for _ in range(4))
    draws = batches(x, batch_size, generator)

    def solver(grads: Mapping[str, Tensor]) -> Matrices:
        ordered = {name: grads[name] for name in theta}
        b = flatten(ordered)
        rows = b.reshape(-1, len(lam))
        v = rows
        for _ in range(depth):
            v = rows + v - multiply(v, next(draws)) / scale
        return unflatten((v / scale).view_as(b), ordered)

    return solver


def batches(x: Tensor, size: int, generator: torch.Generator | None) -> Iterator[Tensor]:
    """Endless mini-batches, reshuffled every epoch; the last, smaller one of an epoch is left out."""
    size = min(size, len(x))
    while True:
        order = torch.randperm(len(x), generator=generator, device=generator.device if generator else None).to(x.device)
        for start in range(0, len(x) - size + 1, size):
            yield x[order[start : start + size]]


def _largest(multiply, batch: Tensor, width: int, generator: torch.Generator | None, steps: int = 8) -> float:
    """Largest eigenvalue of G_batch + Lambda."""
    device = generator.device if generator else None
    v = torch.randn(1, width, generator=generator, device=device).to(batch)
    size = 0.0
    for _ in range(steps):
        v = multiply(v / v.norm(), batch)
        size = float(v.norm())
    return size
