r"""Spectral density of a Hessian by stochastic Lanczos quadrature, and two criteria read off it.

Gabdullin, "Investigating generalization capabilities of neural networks by means of loss landscapes and Hessian
analysis" (2024). With the Ritz values $\theta_i$ and weights $\tau_i$ ($\sum_i \tau_i = 1$) of one random probe,

    r_e  = |min_i theta_i / max_i theta_i|
    K_Hn = sum_{theta_i < 0} (|theta_i| tau_i)^n / sum_{theta_i > 0} (theta_i tau_i)^n,   n = 1/2 by default (K_H05),

each averaged over probes. Both are zero for a positive semi-definite Hessian; $K_{Hn}$ is one for a spectrum that is
symmetric about zero. For n < 1 its value depends on the number of Lanczos steps, so compare only equal ones.
"""

from collections.abc import Callable, Iterable
from typing import Literal

import torch
from torch import Tensor, nn

from secondlook.curvature import (
    Eigenpairs,
    Estimate,
    HessianOperator,
    SpectralDensity,
    SymmetricOperator,
    eigsh,
    probe_vectors,
    slq,
    trace,
)

__all__ = ["HessianSpectrum", "hessian_criteria", "smoothed_density", "windowed_lanczos"]


class HessianSpectrum:
    """Eigenpairs, trace and spectral density of the Hessian of a loss on one fixed batch.

    Args:
        model_or_params: a module (its parameters that require grad), or those tensors.
        loss_closure: `loss_closure()` evaluates the model on the batch and returns the 0-d loss. Its mode (batch
            norm, dropout) is the caller's: call `eval()` first, and keep batch and mode fixed across comparisons.
        generator: draws starts and probes that are not handed in; seed 0 by default.

    The loss is evaluated once and its graph kept; every product is one more backward pass.
    """

    def __init__(
        self,
        model_or_params: nn.Module | Iterable[Tensor],
        loss_closure: Callable[[], Tensor],
        generator: torch.Generator | None = None,
    ) -> None:
        params = model_or_params.parameters() if isinstance(model_or_params, nn.Module) else model_or_params
        params = [p for p in params if p.requires_grad]
        if not params:
            raise ValueError("no parameter requires grad: hand in a module or tensors that the loss depends on")
        self.operator = HessianOperator.of_loss(lambda _: loss_closure(), params)
        self.generator = generator or torch.Generator().manual_seed(0)

    def top(self, k: int = 1, tol: float = 1e-6) -> Eigenpairs:
        """The `k` eigenpairs of largest magnitude, as power iteration finds them, with residual certificates.

        The released code stops power iteration when an eigenvalue changes by less than 1e-3; Lanczos needs fewer
        products for more digits. On shifted data the first of them may be negative.
        """
        return eigsh(self.operator, k, which="magnitude", tol=tol, generator=self.generator)

    def trace(self, probes: int | Tensor = 100) -> Estimate:
        """Hutchinson's estimate from Rademacher probes (a number, or vectors `[P, k]`), with its standard error."""
        return trace(self.operator, probes, generator=self.generator)

    def slq(
        self, steps: int = 100, probes: int | Tensor = 1, reorth: Literal["full"] | int = "full"
    ) -> tuple[Tensor, Tensor]:
        """Ritz values and weights, both `[p, m]` with `m = min(steps, P)`, of Rademacher probes.

        `reorth` is "full", or the number of last basis vectors that stay orthogonal; the released code keeps 10,
        which brings ghost copies of converged eigenvalues.
        """
        if reorth == "full":
            found = slq(self.operator, steps, probes, generator=self.generator, distribution="rademacher")
            return found.nodes, found.weights
        n = self.operator.shape[0]
        if isinstance(probes, int):
            probes = probe_vectors(n, probes, generator=self.generator, dtype=self.operator.dtype)
            probes = probes.to(self.operator.device)
        theta, s = torch.linalg.eigh(windowed_lanczos(self.operator, probes, steps, reorth))
        return theta, s[:, 0] ** 2


def windowed_lanczos(A: Tensor | SymmetricOperator, start: Tensor, steps: int, keep: int) -> Tensor:
    """Tridiagonal matrices `[p, m, m]` of Lanczos runs from `start`, `[n, p]`, that stay orthogonal to the last `keep`.

    Memory: `keep * n * p` numbers instead of `steps * n * p`.
    """
    if steps < 1 or keep < 1:
        raise ValueError(f"steps and keep must be at least 1, got {steps} and {keep}")
    m = min(steps, start.shape[0])
    q = start / torch.linalg.vector_norm(start, dim=0)
    T, window, before, beta = start.new_zeros(start.shape[1], m, m), [q], torch.zeros_like(q), start.new_zeros(())
    for j in range(m):
        w = A @ q - beta * before
        T[:, j, j] = alpha = (q * w).sum(0)
        w = w - alpha * q
        for old in window:
            w = w - (old * w).sum(0) * old
        beta, before = torch.linalg.vector_norm(w, dim=0), q
        q = torch.where(beta > 0, w / beta, 0)
        window = [*window, q][-keep:]
        if j + 1 < m:
            T[:, j, j + 1] = T[:, j + 1, j] = beta
    return T


def hessian_criteria(theta: Tensor, tau: Tensor, n: float = 0.5) -> dict[str, float]:
    """`r_e` and `k_hn` of Ritz values and weights, `[m]` or `[p, m]`, averaged over probes.

    The power acts on the products |theta| tau. Infinite when a probe sees no positive eigenvalue. Raises
    `ValueError` for shapes that differ, a power that is not positive, or values that are not finite.
    """
    if theta.shape != tau.shape or theta.ndim not in (1, 2):
        raise ValueError(f"need values and weights of one shape [m] or [p, m], got {theta.shape} and {tau.shape}")
    if n <= 0:
        raise ValueError(f"the power n must be positive (0.5 gives K_H05), got {n}")
    if not bool(torch.isfinite(theta).all()):
        raise ValueError("Ritz values must be finite: has the model diverged?")
    ratio = (theta.amin(-1) / theta.amax(-1)).abs()
    negative, positive = ((sign * theta * tau).clamp(min=0).pow(n).sum(-1) for sign in (-1, 1))
    return {"r_e": float(ratio.mean()), "k_hn": float((negative / positive).mean())}


def smoothed_density(
    theta: Tensor, tau: Tensor, points: int = 10_000, variance: float = 1e-5, margin: float = 1e-3
) -> tuple[Tensor, Tensor]:
    """Grid `[points]` and density `[points]` as the released code smooths them, for Ritz values and weights `[p, m]`.

    Normal bumps of variance `variance * max(1, range)`, divided by their Riemann sum over the grid. Eigenvalues
    closer than a few thousandths cannot be told apart in it.
    """
    low, high = float(theta.amin(-1).mean()) - margin, float(theta.amax(-1).mean()) + margin
    grid = torch.linspace(low, high, points, dtype=theta.dtype, device=theta.device)
    width = (variance * max(1.0, high - low)) ** 0.5
    density = SpectralDensity(theta, tau, theta.shape[-1]).density(grid, width).value
    return grid, density / (density.sum() * (grid[1] - grid[0]))
