"""Gaussian mixtures with an exact score: a diffusion model without approximation error."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


class GaussianMixture:
    """sum_k weights_k N(means_k, covariances_k), and the same after noising to alpha x0 + sigma z, exactly.

    Each covariance is diagonalised once, C_k = U_k diag(lambda_k) U_k^T; the noised component then has the
    covariance U_k diag(alpha^2 lambda_k + sigma^2) U_k^T, so one evaluation is two matrix products for a
    whole batch. Differentiable in x and in the scales (also under torch.func).

    Args: weights [K] (positive, normalised here), means [K, d], covariances [K, d, d] (symmetric, positive
    semidefinite).
    """

    def __init__(self, weights: Tensor, means: Tensor, covariances: Tensor) -> None:
        K, d = means.shape
        if weights.shape != (K,) or covariances.shape != (K, d, d):
            raise ValueError(
                f"means of shape {(K, d)} need weights {(K,)} and covariances {(K, d, d)}, "
                f"got {tuple(weights.shape)} and {tuple(covariances.shape)}"
            )
        if not (weights > 0).all():
            raise ValueError("mixture weights must be positive; drop empty components")
        self.weights, self.means, self.covariances = weights / weights.sum(), means, covariances
        self.variances, vectors = torch.linalg.eigh(covariances)
        if self.variances.min() < -1e-9:
            raise ValueError(f"a covariance has the eigenvalue {self.variances.min():.3g}; it must not be negative")
        self.variances = self.variances.clamp(min=0)
        self._axes = vectors.permute(1, 0, 2).reshape(d, K * d).contiguous()  # [d, K d], columns U_k
        self._centres = torch.einsum("kd,kde->ke", means, vectors)  # U_k^T mean_k

    def _posterior(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Log of each weighted component density [N, K] and U_k^T C_k^-1 (x - alpha mean_k) [N, K, d]."""
        K, d = self.means.shape
        if x.ndim != 2 or x.shape[1] != d:
            raise ValueError(f"x must have shape [N, {d}], got {tuple(x.shape)}")
        variances = alpha**2 * self.variances + sigma**2
        offsets = torch.addmm(-alpha * self._centres.flatten(), x, self._axes).unflatten(1, (K, d))
        whitened = offsets * variances.reciprocal()
        constants = self.weights.log() - (2 * torch.pi * variances).log().sum(-1) / 2
        return constants - (offsets * whitened).sum(-1) / 2, whitened

    def log_prob(self, x: Tensor, alpha: Tensor | float = 1.0, sigma: Tensor | float = 0.0) -> Tensor:
        """Log density [N] of alpha x0 + sigma z at x [N, d]."""
        return self._posterior(x, alpha, sigma)[0].logsumexp(-1)

    def score(self, x: Tensor, alpha: Tensor | float = 1.0, sigma: Tensor | float = 0.0) -> Tensor:
        """Gradient of `log_prob` in x: [N, d]."""
        logits, whitened = self._posterior(x, alpha, sigma)
        weighted = logits.softmax(-1)[..., None] * whitened
        return -weighted.flatten(-2) @ self._axes.T

    def eps(self, x: Tensor, alpha: Tensor | float, sigma: Tensor | float) -> Tensor:
        """The ideal noise prediction E[z | x] = -sigma score: [N, d]."""
        return -sigma * self.score(x, alpha, sigma)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n draws [n, d]."""
        K, d = self.means.shape
        which = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        normal = torch.randn(n, d, dtype=self.means.dtype, generator=generator)
        axes = self._axes.reshape(d, K, d).permute(1, 0, 2)
        return self.means[which] + torch.einsum("nde,ne->nd", axes[which], self.variances[which].sqrt() * normal)


@lru_cache(maxsize=4)
def digits_mixture(components: int = 20, floor: float = 1e-3) -> GaussianMixture:
    """Full-covariance float64 mixture of the training digits, 64 pixels scaled to [-1, 1].

    `floor` is added to every covariance's diagonal. Fitted by expectation maximisation from a fixed start;
    the same on every run.
    """
    from sklearn.mixture import GaussianMixture as Fit

    from secondlook.problems import datasets

    x = datasets.load("digits").train.x.flatten(1).double() * 2 - 1
    fit = Fit(components, reg_covar=floor, random_state=0, max_iter=200, tol=1e-3).fit(x.numpy())
    return GaussianMixture(*(torch.from_numpy(a) for a in (fit.weights_, fit.means_, fit.covariances_)))
