"""The von Mises-Fisher distribution on the unit sphere of R^d: density C_d(k) exp(k mu.x), in any dimension."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from secondlook.scientific.log_bessel_gpu.method import Array, bessel_ratio, log_iv


class Fit(NamedTuple):
    """Mean direction `[d]`, concentration, and mean log-likelihood in nats a sample."""

    mu: Tensor
    kappa: float
    loglik: float


@dataclass(frozen=True)
class VonMisesFisher:
    """Maximum likelihood, density and samples in dimension `d >= 2`.

    >>> mu, kappa, loglik = VonMisesFisher(2048).fit(X)        # X [n, 2048], rows of length 1
    """

    d: int

    def __post_init__(self) -> None:
        if self.d < 2:
            raise ValueError(f"the sphere needs at least 2 dimensions, got d={self.d}")

    def log_normalizer(self, kappa: Array) -> Tensor:
        """log C_d(k) = (d/2 - 1) log k - d/2 log 2 pi - log I_(d/2-1)(k), for k > 0, any shape."""
        k = torch.as_tensor(kappa, dtype=torch.float64)
        return (self.d / 2 - 1) * k.log() - self.d / 2 * math.log(2 * math.pi) - log_iv(self.d / 2 - 1, k)

    def log_prob(self, X: Array, mu: Tensor, kappa: float) -> Tensor:
        """Log-density of the rows of X `[n, d]`, in nats, shape `[n]`."""
        return self._rows(X) @ torch.as_tensor(mu, dtype=torch.float64) * kappa + self.log_normalizer(kappa)

    def mean_resultant(self, kappa: Array) -> Tensor:
        """A_d(k) = I_(d/2)(k) / I_(d/2-1)(k), the expected projection on the mean direction."""
        return bessel_ratio(self.d / 2 - 1, torch.as_tensor(kappa, dtype=torch.float64))

    def fit(self, X: Array) -> Fit:
        """Maximum likelihood from unit vectors X `[n, d]`: A_d(kappa) equals the length of their mean.

        Raises:
            ValueError: another width than d, rows that are not of length 1, or rows that are all the same.
        """
        mean = self._rows(X).mean(0)
        rbar = float(mean.norm())
        if rbar >= 1 - 1e-14:
            raise ValueError("all rows are the same direction: the likelihood grows without bound; add samples")
        if rbar < 1e-14:
            raise ValueError("the rows' mean is zero: the uniform distribution, with no mean direction; kappa is 0")
        kappa = self.concentration(rbar)
        return Fit(mean / rbar, kappa, kappa * rbar + float(self.log_normalizer(kappa)))

    def concentration(self, rbar: float, steps: int = 50) -> float:
        """Solve A_d(k) = rbar by Newton with A' = 1 - A^2 - (d-1)/k A, from Banerjee et al.'s (2005) start."""
        k = rbar * (self.d - rbar**2) / (1 - rbar**2)
        for _ in range(steps):
            a = float(self.mean_resultant(k))
            change = (a - rbar) / (1 - a * a - (self.d - 1) / k * a)
            k = max(k - change, k / 2)
            if abs(change) <= 4e-16 * k:
                break
        return k

    def score(self, rbar: float, kappa: float) -> float:
        """Derivative of the mean log-likelihood in kappa."""
        return rbar - float(self.mean_resultant(kappa))

    def sample(self, mu: Tensor, kappa: float, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Exact samples `[n, d]` by Wood's (1994) rejection of the projection on `mu`, uniform around it."""
        if not (kappa > 0 and math.isfinite(kappa)):
            raise ValueError(f"kappa must be positive and finite, got {kappa}")
        mu = torch.as_tensor(mu, dtype=torch.float64)
        if mu.shape != (self.d,) or abs(float(mu.norm()) - 1) > 1e-6:
            raise ValueError(f"mu must be a vector of length 1 in dimension {self.d}; divide it by its norm")
        w = self._projections(kappa, n, generator)[:, None]
        around = torch.randn(n, self.d, generator=generator, dtype=torch.float64)
        around -= (around @ mu)[:, None] * mu
        around *= torch.sqrt(1 - w * w) / around.norm(dim=1, keepdim=True)
        return around.add_(w * mu)

    def _projections(self, kappa: float, n: int, generator: torch.Generator | None) -> Tensor:
        m = self.d - 1
        b = m / (2 * kappa + math.hypot(2 * kappa, m))
        x0 = (1 - b) / (1 + b)
        c = kappa * x0 + m * math.log1p(-x0 * x0)
        half = torch.full((2, 2 * n + 16), m / 2, dtype=torch.float64)
        kept: list[Tensor] = []
        while sum(map(len, kept)) < n:
            g = torch._standard_gamma(half, generator=generator)
            z = g[0] / g.sum(0)
            w = (1 - (1 + b) * z) / (1 - (1 - b) * z)
            u = torch.rand(len(w), generator=generator, dtype=torch.float64)
            kept.append(w[kappa * w + m * torch.log1p(-x0 * w) - c >= u.log()])
        return torch.cat(kept)[:n]

    def _rows(self, X: Array) -> Tensor:
        X = torch.as_tensor(np.asarray(X) if not isinstance(X, Tensor) else X).to(torch.float64)
        if X.ndim != 2 or X.shape[1] != self.d or not len(X):
            raise ValueError(f"X must be [n, {self.d}] with n > 0, got {list(X.shape)}")
        worst = (X.norm(dim=1) - 1).abs().max()
        if not worst < 1e-5:
            raise ValueError(
                f"rows must have length 1 (one is off by {worst:.2g}); divide: X / X.norm(dim=1, keepdim=True)"
            )
        return X
