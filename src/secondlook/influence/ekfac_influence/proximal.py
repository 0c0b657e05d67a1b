r"""The proximal Bregman response function, the counterfactual that influence functions approximate (Section 2.1.1).

    theta*(eps) = argmin  (1/N) sum_i D(h(theta, x_i), h(theta_s, x_i)) + eps L(z_m, theta)
                          + sum_l (lambda_l / 2) ||theta_l - theta_s,l||^2

D is the Bregman divergence of the output loss: the network stays close to itself in function and in weights while one
example gains weight eps. Its Hessian at theta_s is G + Lambda, so d theta*/d eps = -(G + Lambda)^{-1} grad L(z_m).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from secondlook.curvature.kronecker import linear_layers
from secondlook.influence.ekfac_influence.exact import Solver
from secondlook.influence.ekfac_influence.gauss_newton import Matrices, flatten, forward, spread, unflatten, weights
from secondlook.influence.ekfac_influence.losses import OutputLoss, output_loss


def pbrf(
    model: nn.Module,
    inputs: Sequence[Tensor],
    examples: tuple[Tensor, Tensor],
    loss: str | OutputLoss,
    damping: Mapping[str, float],
    precondition: Solver,
    *,
    eps: float,
    tolerance: float = 1e-4,
    max_steps: int = 30,
) -> tuple[Matrices, float]:
    """Solve the PBRF problem for each of M examples at once; weights [M, out, in] a layer, and the relative residual.

    precondition: an approximate inverse of G + Lambda. It only sets the speed: the iteration theta <- theta - step
    precondition(gradient), the step halved where a gradient would grow, stops when the largest gradient has shrunk by
    `tolerance` from the largest at theta_s. Look at the residual, the factor that was reached: it stays large when
    |eps| is too large, the inverse too poor, or the minimum on a kink of a ReLU network, where no gradient vanishes.
    """
    layers, value = linear_layers(model, damping), output_loss(loss)
    theta = weights(model, layers)
    origin, lam = flatten(theta), spread(damping, theta)
    count = sum(map(len, inputs))
    with torch.no_grad():
        references = [model(x) for x in inputs]

    def divergence(v: Tensor, x: Tensor, reference: Tensor) -> Tensor:
        return value.divergence(forward(model, layers, unflatten(v, theta), x), reference).sum() / count

    def tilt(v: Tensor, x: Tensor, y: Tensor) -> Tensor:
        outputs = forward(model, layers, unflatten(v, theta), x.unsqueeze(0))
        return eps * value.loss(outputs, y.unsqueeze(0)).sum() + 0.5 * (lam * (v - origin).square()).sum()

    def gradient(v: Tensor) -> Tensor:  # [M, P]
        total = vmap(grad(tilt))(v, *examples)
        for x, reference in zip(inputs, references, strict=True):
            total = total + vmap(grad(divergence), in_dims=(0, None, None))(v, x, reference)
        return total

    v = origin.expand(len(examples[0]), -1)
    g = gradient(v)
    start = float(g.norm(dim=1).max())
    step = torch.ones(len(v), 1, dtype=v.dtype, device=v.device)
    for _ in range(max_steps):
        if float(g.norm(dim=1).max()) <= tolerance * start:
            break
        trial = v - step * flatten(precondition(unflatten(g, theta)))
        slope = gradient(trial)
        better = slope.norm(dim=1, keepdim=True) < g.norm(dim=1, keepdim=True)
        v, g = torch.where(better, trial, v), torch.where(better, slope, g)
        step = torch.where(better, (2 * step).clamp_max(1), step / 2)
    return unflatten(v, theta), float(g.norm(dim=1).max() / start)


def response(
    model: nn.Module,
    responded: Mapping[str, Tensor],
    queries: tuple[Tensor, Tensor],
    loss: str | OutputLoss,
    eps: float,
) -> Tensor:
    """(f(theta*(eps)) - f(theta_s)) / eps for every query and response, [Q, M]: the finite-difference influence."""
    layers, value = linear_layers(model, responded), output_loss(loss)
    theta = weights(model, layers)
    x, y = queries

    def measure(matrices: Matrices) -> Tensor:
        return value.loss(forward(model, layers, matrices, x), y)

    with torch.no_grad():
        return ((vmap(measure)(dict(responded)) - measure(theta)) / eps).T
