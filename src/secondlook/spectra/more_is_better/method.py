"""The risk of random-feature ridge regression from the eigenvalues of its kernel, and what follows from it.

Simon, Karkada, Ghosh, Belkin, "More is Better in Modern Machine Learning" (2023). A target with squared coefficients
v_i^2 in the eigenbasis of a kernel with eigenvalues l_i, label noise of variance sigma^2, n samples, k random
features, ridge delta added to the unnormalised feature Gram matrix. Two constants decide everything:

    sum_i l_i / (l_i + gamma) + delta / kappa = n,    sum_i l_i / (l_i + gamma) + k kappa / gamma = k.

Below, `n`, `k` and `ridge` are numbers or tensors that broadcast to a shape `[...]`; results have that shape, in
float64. `k` may be infinite: then gamma = kappa, and this is kernel ridge regression.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "fitting_ratio_curve",
    "interpolation_noise",
    "kernel_path",
    "krr_risk",
    "optimal_fitting_ratio",
    "optimal_ridge",
    "rf_risk",
    "ridge_at_fitting_ratio",
    "ridge_path",
    "solve_rf_framework",
]

Number = float | Tensor


class Errors(NamedTuple):
    """Mean squared errors on the training points (with their noise) and on fresh noisy points."""

    train: Tensor
    test: Tensor


def solve_rf_framework(eigvals: Tensor, n: Number, k: Number, ridge: Number) -> tuple[Tensor, Tensor]:
    """The two constants (kappa, gamma) for eigenvalues `[M]`.

    Eliminating kappa leaves (n - S)(k - S) gamma = k delta with S = sum_i l_i / (l_i + gamma) < min(n, k), symmetric
    in n and k and monotone in gamma: bisection in log gamma. A ridge of zero is the ridgeless limit, which exists
    where more than min(n, k) eigenvalues are positive.

    Raises:
        ValueError: eigenvalues, sizes or ridge out of range.
    """
    eigvals, n, k, ridge = _checked(eigvals, n, k, ridge)
    few, many = torch.minimum(n, k), torch.maximum(n, k)
    # The scalar equation divided by (many - S): S + drive / (gamma (1 - S / many)) = few, finite at k = infinity.
    drive = ridge * torch.where(k >= n, torch.ones_like(n), k / n)
    positive = eigvals[eigvals > 0].sort(descending=True).values
    enough = len(positive) > few
    if bool((~enough & (ridge == 0)).any()):
        raise ValueError(
            f"without a ridge, more than min(n, k) eigenvalues must be positive, there are {len(positive)}: "
            "give a positive ridge"
        )
    # S >= few at the lower end, because the first m = few + 1 terms alone reach it, or the second term does.
    m = (few.floor().long() + 1).clamp(max=len(positive))
    by_rank = torch.where(enough, positive[m - 1] * (m / few - 1), 0)
    low = torch.maximum(by_rank, drive / few).log()
    high = torch.maximum(2 * positive.sum() / few, 4 * drive / few).log()
    for _ in range(60):
        middle = (low + high) / 2
        S = _learnability(eigvals, middle.exp()).sum(-1)
        below = (few <= S) | (S + drive / (middle.exp() * (1 - S / many)) > few)
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    gamma = ((low + high) / 2).exp()
    S = _learnability(eigvals, gamma).sum(-1)
    # Each of the two equations gives kappa; the one with the larger difference does not cancel.
    kappa = torch.where(k <= n, ridge / (n - S), gamma * (1 - S / k))
    return kappa, gamma


def rf_risk(eigvals: Tensor, coeffs2: Tensor, n: Number, k: Number, ridge: Number, noise: float = 0.0) -> Tensor:
    """Test mean squared error of random-feature ridge regression, noise variance included."""
    _, gamma = solve_rf_framework(eigvals, n, k, ridge)
    eigvals, n, k, _ = _checked(eigvals, n, k, ridge)
    return _risk(eigvals, coeffs2, n, k, gamma, noise)


def krr_risk(eigvals: Tensor, coeffs2: Tensor, n: Number, ridge: Number, noise: float = 0.0) -> Errors:
    """Training and test error of kernel ridge regression, the limit of infinitely many features.

    The fitting ratio train / test is (delta / (n kappa))^2, whatever the target.
    """
    eigvals, n, _, ridge = _checked(eigvals, n, math.inf, ridge)
    kappa, _ = solve_rf_framework(eigvals, n, math.inf, ridge)
    L = _learnability(eigvals, kappa)
    test = n / (n - L.square().sum(-1)) * ((1 - L).square() @ coeffs2.to(L) + noise)
    return Errors((ridge / (n * kappa)).square() * test, test)


def optimal_ridge(
    eigvals: Tensor, coeffs2: Tensor, n: Number, k: Number, noise: float = 0.0, *, points: int = 240
) -> tuple[Tensor, Tensor]:
    """The ridge >= 0 of lowest risk, and that risk.

    The search runs over gamma, of which risk and ridge are explicit functions: a grid of `points` values from the
    ridgeless end on, then four times a finer grid about the best one.
    """
    eigvals, n, k, _ = _checked(eigvals, n, k, 0.0)
    positive = eigvals[eigvals > 0]
    few = torch.minimum(n, k)
    start = 1e-9 * positive.min().expand_as(few).clone()  # where the spectrum ends before min(n, k): nearly no ridge
    enough = len(positive) > few
    if bool(enough.any()):
        start[enough] = solve_rf_framework(eigvals, few[enough], math.inf, 0.0)[1]
    low, high = start.log(), (1e3 * positive.sum()).log().expand_as(start)
    first, risk, count = low, None, points
    for _ in range(5):
        steps = torch.linspace(0, 1, count, dtype=low.dtype, device=low.device)
        grid = low.unsqueeze(-1) + (high - low).unsqueeze(-1) * steps
        risks = _risk(eigvals, coeffs2, n.unsqueeze(-1), k.unsqueeze(-1), grid.exp(), noise)
        risk, at = risks.min(-1)
        best = grid.gather(-1, at.unsqueeze(-1)).squeeze(-1)
        spacing = (high - low) / (count - 1)
        low, high, count = torch.maximum(best - spacing, first), best + spacing, 21
    gamma = best.exp()
    S = _learnability(eigvals, gamma).sum(-1)
    return (gamma * (1 - S / k) * (n - S)).clamp(min=0), risk


def ridge_at_fitting_ratio(eigvals: Tensor, n: float, ratio: Number) -> Tensor:
    """The ridge at which kernel ridge regression has the fitting ratio (train / test error) 0 <= ratio < 1.

    With rho = sqrt(ratio): kappa from sum_i l_i / (l_i + kappa) = n (1 - rho), and delta = n kappa rho.
    """
    eigvals = torch.as_tensor(eigvals, dtype=torch.float64)
    rho = torch.as_tensor(ratio, dtype=torch.float64, device=eigvals.device).sqrt()
    if not bool(((rho >= 0) & (rho < 1)).all()):
        raise ValueError(f"a fitting ratio lies in [0, 1), got {ratio}")
    kappa, _ = solve_rf_framework(eigvals, n * (1 - rho), math.inf, 0.0)
    return n * kappa * rho


def interpolation_noise(alpha: float, beta: float) -> float:
    """The largest noise at which interpolation is optimal (Corollary 1), relative to the noise-free ridgeless risk.

    For l_i = i^-alpha and v_i^2 = i^-beta; a negative value says that no noise is little enough.
    """
    if not (alpha > 1 and 1 < beta < 2 * alpha + 1):
        raise ValueError(f"power laws need alpha > 1 and 1 < beta < 2 alpha + 1, got {alpha} and {beta}")
    return (beta - alpha) / (alpha * (alpha - 1))


def fitting_ratio_curve(alpha: float, beta: float, noise_rel: float, ratios: Tensor) -> Tensor:
    """Test error at the given fitting ratios over that at ratio zero, for power laws in the limit of large n.

    With rho = sqrt(ratio) it is proportional to ((1 - rho)^-(beta - 1) + alpha noise_rel) / (1 + rho (alpha - 1)).
    """
    interpolation_noise(alpha, beta)  # checks the exponents
    rho = torch.as_tensor(ratios, dtype=torch.float64).sqrt()
    noisy = alpha * noise_rel
    return ((1 - rho) ** (1 - beta) + noisy) / ((1 + rho * (alpha - 1)) * (1 + noisy))


def optimal_fitting_ratio(alpha: float, beta: float, noise_rel: float) -> float:
    """The fitting ratio of lowest test error in that limit: zero up to `interpolation_noise`."""
    if noise_rel <= interpolation_noise(alpha, beta):
        return 0.0

    def slope(rho: float) -> float:  # the curve's derivative times a positive factor; it increases
        return (beta - 1) * (1 - rho) ** -beta * (1 + rho * (alpha - 1)) - (alpha - 1) * (
            (1 - rho) ** (1 - beta) + alpha * noise_rel
        )

    low, high = 0.0, 1.0 - 1e-12
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return low**2


def kernel_path(kernel: Tensor, y: Tensor, ridges: Tensor) -> Tensor:
    """(kernel + delta I)^-1 y for ridges `[R]` and targets `[n, T]`: `[R, n, T]`, one eigendecomposition."""
    s, U = torch.linalg.eigh(kernel)
    return U @ ((U.T @ y) / (s.clamp(min=0) + ridges.unsqueeze(-1)).unsqueeze(-1))


def ridge_path(features: Tensor, y: Tensor, ridges: Tensor) -> Tensor:
    """Weights `[R, k, T]` of ridge regression on features `[n, k]` and targets `[n, T]`, for ridges `[R]`."""
    n, k = features.shape
    if n <= k:
        return features.T @ kernel_path(features @ features.T, y, ridges)
    return kernel_path(features.T @ features, features.T @ y, ridges)


def _learnability(eigvals: Tensor, gamma: Tensor) -> Tensor:
    """l_i / (l_i + gamma), `[..., M]`."""
    return eigvals / (eigvals + gamma.unsqueeze(-1))


def _risk(eigvals: Tensor, coeffs2: Tensor, n: Tensor, k: Tensor, gamma: Tensor, noise: float) -> Tensor:
    """The risk at a given gamma; the ratio kappa / gamma is 1 - z / k, and every k / (k - q) stays finite."""
    L = _learnability(eigvals, gamma)
    rest = gamma.unsqueeze(-1) / (eigvals + gamma.unsqueeze(-1))
    z, q = L.sum(-1), L.square().sum(-1)
    spread = 1 / (1 - q / k)
    bias = rest @ coeffs2.to(L) - (1 - z / k) * spread * ((L * rest) @ coeffs2.to(L))
    inflation = 1 - (q * (1 - 2 * z / k) + z.square() / k) * spread / n
    # At n = k and no ridge the risk is infinite; rounding must not turn it negative.
    return torch.where(inflation > 1e-13, (bias + noise) / inflation, torch.inf)


def _checked(eigvals: Tensor, n: Number, k: Number, ridge: Number) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    eigvals = torch.as_tensor(eigvals, dtype=torch.float64)
    if eigvals.ndim != 1 or not bool((eigvals >= 0).all() and (eigvals > 0).any()):
        raise ValueError("eigenvalues must be a vector of numbers >= 0, one of them positive")
    sizes = [torch.as_tensor(v, dtype=torch.float64, device=eigvals.device) for v in (n, k, ridge)]
    n, k, ridge = torch.broadcast_tensors(*sizes)
    if not bool(((n > 0) & n.isfinite() & (k > 0) & (ridge >= 0)).all()):
        raise ValueError("n must be positive and finite, k positive (or infinite), and ridge at least 0")
    return eigvals, n, k, ridge
