r"""Exact damped Gauss-Newton solves, the matrix that EK-FAC approximates.

    (G + Lambda)^{-1} v,    Lambda = lambda_l on the weights of layer l

by Cholesky or Woodbury for small networks, by conjugate gradients for larger ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from secondlook.curvature.cg import cg
from secondlook.curvature.kronecker import linear_layers
from secondlook.curvature.linear import FunctionOperator
from secondlook.influence.ekfac_influence.gauss_newton import (
    Matrices,
    flatten,
    product,
    root_rows,
    spread,
    unflatten,
    weights,
)
from secondlook.influence.ekfac_influence.losses import OutputLoss, output_loss

Solver = Callable[[Mapping[str, Tensor]], Matrices]  # gradients [..., out, in] a layer -> the same shapes


def dense_solver(
    model: nn.Module,
    inputs: Sequence[Tensor],
    loss: str | OutputLoss,
    damping: Mapping[str, float],
    *,
    dtype: torch.dtype = torch.float64,
) -> Solver:
    """Factorise once, solve for any number of gradients.

    inputs: batches of x; outputs must be [N, C].  damping: a positive lambda for each layer that takes part.
    Factorises P x P, or N C x N C where that is smaller (Woodbury); memory is the square of that, time the cube.
    """
    _check(inputs, damping)
    layers, value = linear_layers(model, damping), output_loss(loss)
    theta = weights(model, layers)
    lam = spread(damping, theta).to(dtype)
    count = sum(map(len, inputs))
    blocks = [root_rows(model, layers, value, x) / count**0.5 for x in inputs]

    if sum(map(len, blocks)) < len(lam):  # (L + U'U)^-1 = L^-1 - L^-1 U' (I + U L^-1 U')^-1 U L^-1
        u = torch.cat(blocks).to(dtype)
        ul = u / lam
        inner = torch.linalg.cholesky(torch.eye(len(u), dtype=dtype, device=u.device).addmm_(ul, u.T))

        def solve(v: Tensor) -> Tensor:
            return v / lam - torch.cholesky_solve(ul @ v.T, inner).T @ ul
    else:
        gram = torch.diag(lam)
        for u in blocks:
            u = u.to(dtype)
            gram.addmm_(u.T, u)
        factor = torch.linalg.cholesky(gram)

        def solve(v: Tensor) -> Tensor:
            return torch.cholesky_solve(v.T, factor).T

    def solver(grads: Mapping[str, Tensor]) -> Matrices:
        ordered = {name: grads[name] for name in theta}
        v = flatten(ordered)
        solved = solve(v.reshape(-1, len(lam)).to(dtype))
        return unflatten(solved.to(v.dtype).view_as(v), ordered)

    return solver


def cg_solver(
    model: nn.Module,
    inputs: Sequence[Tensor],
    loss: str | OutputLoss,
    damping: Mapping[str, float],
    *,
    tolerance: float = 1e-5,
    max_steps: int = 500,
) -> Solver:
    """Conjugate gradients on Gauss-Newton products over all of `inputs`, all right-hand sides at once.

    Preconditioned with Lambda. Raises RuntimeError when a residual has not shrunk by `tolerance` in `max_steps`.
    """
    _check(inputs, damping)
    layers, value = linear_layers(model, damping), output_loss(loss)
    theta = weights(model, layers)
    lam = spread(damping, theta).unsqueeze(1)
    count = sum(map(len, inputs))

    def multiply(columns: Tensor) -> Tensor:  # [P, Q]
        directions = unflatten(columns.T, theta)
        parts = (product(model, layers, value, x, directions) for x in inputs)
        return lam * columns + sum(flatten(part) for part in parts).T / count

    matrix = FunctionOperator(multiply, len(lam), dtype=lam.dtype, device=lam.device)

    def solver(grads: Mapping[str, Tensor]) -> Matrices:
        ordered = {name: grads[name] for name in theta}
        b = flatten(ordered)
        rows = b.reshape(-1, len(lam)).to(lam.dtype)
        result = cg(matrix, rows.T, preconditioner=lambda r: r / lam, tol=tolerance, max_iterations=max_steps)
        if not bool(result.converged.all()):
            worst = float((result.residuals / rows.norm(dim=1)).max())
            raise RuntimeError(f"{max_steps} steps left a relative residual of {worst:.1e}; raise max_steps or damping")
        return unflatten(result.x.T.reshape(b.shape).to(b.dtype), ordered)

    return solver


def _check(inputs: Sequence[Tensor], damping: Mapping[str, float]) -> None:
    if not inputs:
        raise ValueError("inputs is empty; pass at least one batch")
    if not damping or min(damping.values()) <= 0:
        raise ValueError(f"every layer needs a positive damping for an exact solve, got {dict(damping)}")
