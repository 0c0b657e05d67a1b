r"""The kernel polynomial method: spectral densities from Chebyshev moments, with error bars.

With the spectrum scaled into [-1, 1], $\mu_k = \mathrm{tr}\, T_k(A) / n$ is estimated from random vectors, and

    density(t) = (mu_0 + 2 sum_k g_k mu_k T_k(t)) / (pi sqrt(1 - t^2)),

where Jackson's factors $g_k$ smooth each eigenvalue to a bump of width about $\pi / K$ that is nowhere negative
(Weisse, Wellein, Alvermann and Fehske 2006). No basis is kept: memory is that of a few blocks of vectors, whatever the
resolution. m products give $K = 2 m$ moments, by $T_{j+k} = 2 T_j T_k - T_{j-k}$.
"""

from dataclasses import dataclass
from math import pi

import torch
from torch import Tensor

from secondlook.curvature.estimate import Estimate
from secondlook.curvature.hutchinson import Distribution, as_probes
from secondlook.curvature.linear import SymmetricOperator, check_finite

__all__ = ["ChebyshevDensity", "kpm"]


@dataclass(frozen=True)
class ChebyshevDensity:
    """Moments `[p, K + 1]` of the spectrum, one row a probe, scaled from `bounds` into [-1, 1]."""

    moments: Tensor
    bounds: tuple[float, float]

    def density(self, grid: Tensor) -> Estimate:
        """Density of the eigenvalues at `grid`, `[g]`, smoothed by Jackson's kernel; zero outside the bounds."""
        low, high = self.bounds
        t = (2 * grid - low - high) / (high - low)
        inside = t.abs() < 1
        angle = torch.arccos(torch.where(inside, t, 0))
        order = torch.arange(self.moments.shape[1], dtype=grid.dtype, device=grid.device)
        waves = torch.cos(order[:, None] * angle) * (_jackson(order) * torch.where(order > 0, 2, 1)).unsqueeze(1)
        values = self.moments @ waves / (pi * torch.sin(angle)) * 2 / (high - low)
        return Estimate.of(torch.where(inside, values, 0))


def kpm(
    A: Tensor | SymmetricOperator,
    bounds: tuple[float, float],
    steps: int = 100,
    probes: Tensor | int = 10,
    *,
    generator: torch.Generator | None = None,
    distribution: Distribution = "gaussian",
) -> ChebyshevDensity:
    """Spectral density of `A` from `steps` products with each of `probes` (a number, or vectors `[n, p]`).

    `bounds` must hold the whole spectrum, as `eigsh(A, ...).bounds()` does; `ValueError` where the moments show that
    they do not.
    """
    low, high = bounds
    if not low < high or not high - low < torch.inf:
        raise ValueError(f"bounds must be finite and in order, got {bounds}")
    if steps < 1:
        raise ValueError(f"the method needs at least one step, got {steps}")
    z = as_probes(A, probes, generator, distribution)
    before = z / torch.linalg.vector_norm(z, dim=0)

    def scaled(v: Tensor) -> Tensor:
        return (2 * (A @ v) - (low + high) * v) / (high - low)

    now = scaled(before)
    first = (before * now).sum(0)
    moments = [torch.ones_like(first), first, 2 * (now * now).sum(0) - 1]
    for _ in range(1, steps):
        before, now = now, 2 * scaled(now) - before
        moments += [2 * (before * now).sum(0) - first, 2 * (now * now).sum(0) - 1]
    found = torch.stack(moments, 1)
    check_finite(found)
    if float(found.abs().max()) > 1 + 1e-3:
        raise ValueError(f"the spectrum reaches beyond the bounds {bounds}: widen them")
    return ChebyshevDensity(found, (low, high))


def _jackson(order: Tensor) -> Tensor:
    n = len(order) + 1
    angle = pi * order / n
    return ((n - order) * torch.cos(angle) + torch.sin(angle) / torch.tan(torch.tensor(pi / n))) / n
