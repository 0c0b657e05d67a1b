"""Inverse p-th roots of positive semidefinite matrices by the coupled Newton iteration, in batches."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

SQUARINGS = 7  # of the power method for the largest eigenvalue, which only sets the ridge
CLOSE = 0.1  # the entrywise error may rise before it gets this small, in runs that converge


class RootInfo(NamedTuple):
    """How it went, for every matrix of the batch."""

    ridge: Tensor  # what was added to the diagonal
    error: Tensor  # max |M - I| of the root returned
    iterations: Tensor


def inverse_pth_root(
    A: Tensor,
    p: int,
    eps: float = 1e-6,
    tol: float = 1e-6,
    max_iter: int = 100,
    *,
    guard: float = CLOSE,
) -> tuple[Tensor, RootInfo]:
    """X = (A + ridge I)^(-1/p) with ridge = eps * largest eigenvalue, by Newton on X and M = X^p (A + ridge I).

        T = (1 + 1/p) I - M / p,    X <- X T,    M <- T^p M,    until max |M - I| < tol.

    A matrix stops, and keeps the better X, when its error grows by a fifth: rounding then has the upper hand.

    Args:
        A: symmetric positive semidefinite matrices `[..., n, n]`, float32 or float64.
        p: which root, at least 1.
        eps: ridge relative to the largest eigenvalue, so the condition number is at most 1 / eps.
        tol: largest entry of M - I to stop at. In float64, 1e-13 can be reached.
        max_iter: most rounds.
        guard: an error that grows ends the run only when it has been below this. The released code has no such guard
            (infinity here) and then now and then returns the starting point.

    Returns:
        X `[..., n, n]`, and `RootInfo` with tensors `[...]`.

    Raises:
        ValueError: A is not square, or an option is out of range.
    """
    if A.ndim < 2 or A.shape[-1] != A.shape[-2]:
        raise ValueError(f"A must have shape [..., n, n], got {tuple(A.shape)}")
    if not isinstance(p, int) or p < 1:
        raise ValueError(f"p must be a whole number of at least 1, got {p!r}")
    if not eps >= 0 or not tol > 0 or max_iter < 1:
        raise ValueError(f"needs eps >= 0, tol > 0 and max_iter >= 1, got {eps!r}, {tol!r} and {max_iter!r}")
    batch = A.shape[:-2]
    A = A.reshape(-1, *A.shape[-2:])
    eye = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
    largest = largest_eigenvalue(A).clamp_min(1e-16)[:, None, None]  # a zero matrix becomes eps * 1e-16 * I
    M = A / largest + eps * eye
    z = (1 + p) / (2 * torch.linalg.matrix_norm(M, keepdim=True))
    X, M = z ** (1 / p) * eye, z * M
    error = (M - eye).abs().amax((1, 2))
    rounds = torch.zeros_like(error, dtype=torch.long)
    running, near = error >= tol, error < guard
    start = (1 + 1 / p) * eye
    for _ in range(max_iter):
        if not running.any():
            break
        T = torch.sub(start, M, alpha=1 / p)
        new_X, M = X @ T, torch.matrix_power(T, p) @ M  # M of a matrix that has stopped is not looked at again
        new_error = (M - eye).abs().amax((1, 2))
        running = running & ~(near & (new_error > 1.2 * error)) & (new_error < math.inf)
        X = torch.where(running[:, None, None], new_X, X)
        error, rounds = torch.where(running, new_error, error), rounds + running
        running, near = running & (error >= tol), near | (error < guard)
    X = X * largest ** (-1 / p)
    return X.view(*batch, *X.shape[1:]), RootInfo((eps * largest).view(batch), error.view(batch), rounds.view(batch))


def largest_eigenvalue(A: Tensor) -> Tensor:
    """Largest eigenvalues `[batch]` of `[batch, n, n]`, from below: 128 power steps, done as 7 squarings."""
    start = torch.randn(A.shape[-1], 1, generator=torch.Generator().manual_seed(0), dtype=A.dtype).to(A.device)
    power = A
    for _ in range(SQUARINGS):
        power = power / torch.linalg.matrix_norm(power, keepdim=True).clamp_min(torch.finfo(A.dtype).tiny)
        power = power @ power
    v = torch.nn.functional.normalize(power @ start, dim=1)
    return (v.mT @ A @ v)[:, 0, 0]
