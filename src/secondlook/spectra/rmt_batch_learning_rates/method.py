r"""Batch Hessians by random matrix theory, and the largest stable learning rate (arXiv 2006.09092).

The Hessian of a batch of b out of N examples is modelled as $H_b = H + E$ with independent symmetric noise, entries
of variance $\sigma^2 / B$, $B = b / (1 - b / N)$. With P parameters the noise alone reaches $2 s$, $s = \sqrt{P/B}\,
\sigma$, and an eigenvalue $\lambda > s$ of $H$ appears at $\lambda + s^2 / \lambda$ (Baik, Ben Arous, Peche 2005;
Benaych-Georges and Nadakuditi 2011). Gradient descent is stable up to $2 / \lambda_{\max}$.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from secondlook.curvature import HessianOperator, eigsh, probe_vectors

Criterion = Callable[[Tensor, Tensor], Tensor]
Points = tuple[Tensor, Tensor]
TAIL = 4  # the last quarter of a run says whether it was stable


def effective_batch(batch: float, n_data: int | None = None) -> float:
    """B = b / (1 - b / N): examples drawn without replacement are less noisy; infinite at b = N."""
    if batch <= 0 or (n_data is not None and batch > n_data):
        raise ValueError(f"a batch lies between 1 and the {n_data or 'any number of'} examples, got {batch}")
    if n_data is None:
        return batch
    return math.inf if batch == n_data else batch / (1 - batch / n_data)


def _noise_radius(dim: int, sigma: float, batch: float, n_data: int | None) -> float:
    """s = sqrt(P / B) sigma, half the largest eigenvalue of the noise."""
    if dim < 1 or sigma < 0:
        raise ValueError(f"the dimension must be positive and sigma not negative, got {dim} and {sigma}")
    return sigma * math.sqrt(dim / effective_batch(batch, n_data))


def spiked_top_eigenvalue(lam: float, dim: int, sigma: float, batch: float, n_data: int | None = None) -> float:
    """Largest eigenvalue of a batch Hessian whose full Hessian has the largest eigenvalue `lam`, limit of large `dim`.

    Args:
        lam: largest eigenvalue of the full Hessian.
        dim: number of parameters.
        sigma: standard deviation of the noise's entries at batch size one.
        batch: examples in the batch.
        n_data: examples in all, by default infinitely many.
    """
    s = _noise_radius(dim, sigma, batch, n_data)
    return lam + s**2 / lam if lam > s else 2 * s


def spike_overlap(lam: float, dim: int, sigma: float, batch: float, n_data: int | None = None) -> float:
    """Squared cosine between the top eigenvectors of batch and full Hessian, 1 - (s / lam)^2, and 0 for lam <= s."""
    s = _noise_radius(dim, sigma, batch, n_data)
    return 1 - (s / lam) ** 2 if lam > s else 0.0


def spiked_covariance_top(lam: float, dim: int, sigma: float, batch: float) -> float:
    r"""The same for the Gauss-Newton matrix, a sample covariance of `batch` vectors.

    Their covariance has one eigenvalue `lam` >= sigma^2 and otherwise sigma^2. With $\gamma = P / b$ the bulk ends at
    $\sigma^2 (1 + \sqrt\gamma)^2$; `lam` appears at $\lambda (1 + \gamma \sigma^2 / (\lambda - \sigma^2))$ when it
    exceeds $\sigma^2 (1 + \sqrt\gamma)$.
    """
    if sigma <= 0 or lam < sigma**2:
        raise ValueError(f"the covariance needs lam >= sigma^2 > 0, got lam {lam} and sigma {sigma}")
    gamma = dim / effective_batch(batch)
    if lam > sigma**2 * (1 + math.sqrt(gamma)):
        return lam * (1 + gamma * sigma**2 / (lam - sigma**2))
    return (sigma * (1 + math.sqrt(gamma))) ** 2


def batch_hessians(
    model: nn.Module, criterion: Criterion, data: Points, batch: int, repeats: int, generator: torch.Generator
) -> Iterator[HessianOperator]:
    """Hessians on `repeats` random batches, each drawn without replacement."""
    x, y = data
    for _ in range(repeats):
        rows = torch.randperm(len(x), generator=generator, device=generator.device)[:batch].to(x.device)
        yield HessianOperator(model, criterion, (x[rows], y[rows]))


def batch_hessian_extremes(
    model: nn.Module,
    criterion: Criterion,
    data: Points,
    batch: int,
    repeats: int,
    *,
    generator: torch.Generator,
    tol: float = 1e-3,
) -> tuple[Tensor, Tensor]:
    """Largest and smallest eigenvalues of batch Hessians, `[repeats]` each, to residuals of `tol` times the norm."""
    pairs = [
        eigsh(H, 1, which="both", tol=tol, generator=generator).values
        for H in batch_hessians(model, criterion, data, batch, repeats, generator)
    ]
    smallest, largest = torch.stack(pairs).unbind(1)
    return largest, smallest


def noise_level(
    full: HessianOperator, batches: Sequence[HessianOperator], effective: float, probes: int, generator: torch.Generator
) -> float:
    r"""sigma from $E\|E\|_F^2 = P^2 \sigma^2 / B$, the norm by Hutchinson's probes: $E_z \|E z\|^2 = \|E\|_F^2$.

    Args:
        full: Hessian of all data.
        batches: Hessians of batches of one size.
        effective: their effective batch size B.
    """
    n = full.shape[0]
    z = probe_vectors(n, probes, generator=generator, dtype=full.dtype, device=full.device)
    expected = full @ z
    squares = [float((H @ z - expected).square().sum(0).mean()) for H in batches]
    return math.sqrt(effective * sum(squares) / len(squares)) / n


def stable(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    criterion: Criterion,
    data: Points,
    batch: int,
    steps: int,
    generator: torch.Generator,
) -> bool:
    """Whether training in random batches stays finite and ends (mean over the last quarter) below its first loss."""
    x, y = data
    with torch.no_grad():
        first = float(criterion(model(x), y))
    tail: list[Tensor] = []
    for step in range(steps):
        rows = torch.randperm(len(x), generator=generator, device=generator.device)[:batch].to(x.device)
        optimizer.zero_grad()
        loss = criterion(model(x[rows]), y[rows])
        loss.backward()
        optimizer.step()
        if step >= steps - max(1, steps // TAIL):
            tail.append(loss.detach())
    mean = float(torch.stack(tail).mean())
    return math.isfinite(mean) and mean < first


def max_stable_lr(
    make_optimizer: Callable[[list[nn.Parameter], float], torch.optim.Optimizer],
    model_fn: Callable[[], nn.Module],
    data: Points,
    batch: int,
    grid: Sequence[float],
    steps: int,
    *,
    criterion: Criterion = nn.functional.cross_entropy,
    seed: int = 0,
) -> float:
    """The largest rate of an ascending grid with which training is `stable`, by bisection.

    Every rate gets a new model from `model_fn` and the batches of the same `seed`. Returns NaN when the first rate of
    the grid is unstable, and infinity when its last is stable.
    """
    if list(grid) != sorted(set(grid)) or not grid:
        raise ValueError("the grid of learning rates must be ascending and not empty")
    low, high = -1, len(grid)  # all up to `low` are stable, all from `high` on are not
    while high - low > 1:
        middle = (low + high) // 2
        model = model_fn()
        optimizer = make_optimizer(list(model.parameters()), grid[middle])
        generator = torch.Generator().manual_seed(seed)
        good = stable(optimizer, model, criterion, data, batch, steps, generator)
        low, high = (middle, high) if good else (low, middle)
    return math.nan if low < 0 else math.inf if high == len(grid) else grid[low]
