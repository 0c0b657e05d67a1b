"""Preconditioned conjugate gradients for one or many right-hand sides (Hestenes and Stiefel 1952)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from secondlook.curvature.linear import SymmetricOperator, check_square

__all__ = ["CGResult", "cg"]


@dataclass(frozen=True)
class CGResult:
    """Solution `x`, shaped like the right-hand side, and for each column how it was reached.

    `iterations`, `residuals` (norm of `b - A x`, computed afresh), `converged` and `negative` (stopped at a
    direction of curvature <= 0) have shape `[k]`, or `[]` for a single right-hand side.
    """

    x: Tensor
    iterations: Tensor
    residuals: Tensor
    converged: Tensor
    negative: Tensor


def cg(
    A: Tensor | SymmetricOperator,
    b: Tensor,
    *,
    x0: Tensor | None = None,
    damping: float = 0.0,
    preconditioner: Callable[[Tensor], Tensor] | None = None,
    tol: float = 1e-6,
    max_iterations: int | None = None,
    indefinite: Literal["raise", "stop"] = "raise",
) -> CGResult:
    """Solve `(A + damping I) x = b` for `b` of shape `[n]` or `[n, k]`, to `|b - A x| <= tol |b|` in every column.

    Columns share each block product and stop on their own. `preconditioner` maps residuals `[n, k]` to
    approximately `A^-1` times them and must be symmetric positive definite.

    Running out of iterations (default `2 n`) is no error: look at `converged`. Meeting curvature <= 0 is one
    (`ValueError`), unless `indefinite="stop"`, which keeps the iterate reached so far, as truncated Newton wants it.
    """
    n = check_square(A)
    if b.ndim not in (1, 2) or b.shape[0] != n:
        raise ValueError(f"the right-hand side must have shape [{n}] or [{n}, k], got {tuple(b.shape)}")
    if tol <= 0 or damping < 0:
        raise ValueError(f"tol must be positive and damping not negative, got {tol} and {damping}")
    if indefinite not in ("raise", "stop"):
        raise ValueError(f"indefinite must be 'raise' or 'stop', got {indefinite!r}")
    if x0 is not None and x0.shape != b.shape:
        raise ValueError(f"x0 has shape {tuple(x0.shape)}, the right-hand side {tuple(b.shape)}")
    if not bool(torch.isfinite(b).all()):
        raise ValueError("the right-hand side is not finite")
    limit = 2 * n if max_iterations is None else max_iterations
    single, B = b.ndim == 1, b.reshape(n, -1)

    def multiply(v: Tensor) -> Tensor:
        return (A @ v).add(v, alpha=damping) if damping else A @ v

    X = torch.zeros_like(B) if x0 is None else x0.reshape(n, -1).clone()
    R = B.clone() if x0 is None else B - multiply(X)
    goal = tol * torch.linalg.vector_norm(B, dim=0)
    running = torch.linalg.vector_norm(R, dim=0) > goal
    negative = torch.zeros_like(running)
    iterations = torch.zeros(B.shape[1], dtype=torch.long, device=B.device)
    Z = R if preconditioner is None else preconditioner(R)
    P, rz = Z.clone(), (R * Z).sum(0)
    going = bool(running.any())
    for _ in range(limit):
        if not going:
            break
        AP = multiply(P)
        curvature = (P * AP).sum(0)
        bad = running & ~(curvature > 0)
        negative |= bad
        running &= ~bad
        step = torch.where(running, rz / curvature, 0)
        X += step * P
        R = R - step * AP
        iterations += running
        running &= torch.linalg.vector_norm(R, dim=0) > goal
        fatal = bad if indefinite == "raise" else bad & ~torch.isfinite(curvature)
        going, failed = torch.stack([running.any(), fatal.any()]).tolist()  # an iteration's one wait for the device
        if failed:
            column = int(fatal.nonzero()[0])
            worst = float(curvature[column] / (P[:, column] ** 2).sum())
            raise ValueError(
                f"the matrix is not positive definite: curvature {worst:.3g} in iteration "
                f"{int(iterations[column]) + 1} of column {column}; raise damping, or use the GGN"
            )
        Z = R if preconditioner is None else preconditioner(R)
        rz, old = (R * Z).sum(0), rz
        # Columns that are done get a zero direction, so that nothing can overflow in them.
        P = torch.where(running, Z + torch.where(running, rz / old, 0) * P, 0)
    residuals = torch.linalg.vector_norm(B - multiply(X), dim=0)
    # The recurrence's residual drifts from the true one by rounding; a factor of two is allowed for it.
    parts = (iterations, residuals, residuals <= 2 * goal, negative)
    return CGResult(X.reshape(b.shape), *(p.squeeze(0) if single else p for p in parts))
