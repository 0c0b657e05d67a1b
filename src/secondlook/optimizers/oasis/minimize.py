"""OASIS for one smooth function that comes with its gradient and its Hessian-vector products."""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from secondlook.curvature import probe_vectors
from secondlook.optimizers.oasis.method import check, step_length, truncate

WARMUP = 10  # sign vectors of the first D


@dataclass(frozen=True)
class Result:
    """Where `oasis_minimize` ended and how it got there.

    `values` and `grad_norms` (2-norms) start at x0, so they are one longer than `steps`, the lengths eta_k.
    """

    x: Tensor
    converged: bool
    values: list[float]
    grad_norms: list[float]
    steps: list[float]


def oasis_minimize(
    f: Callable[[Tensor], Tensor],
    grad: Callable[[Tensor], Tensor],
    hvp: Callable[[Tensor, Tensor], Tensor],
    x0: Tensor,
    beta2: float = 0.99,
    alpha: float = 1e-3,
    eta0: float = 1e-3,
    max_iter: int = 1000,
    tol: float = 1e-8,
    probes0: Tensor | None = None,
    probes: Tensor | None = None,
    *,
    target: float = -inf,
    generator: torch.Generator | None = None,
) -> Result:
    """Minimise with one gradient and one Hessian product an iteration, and ten products before the first.

    Args:
        f, grad: the function and its gradient at `[d]`.
        hvp: the Hessian at the first argument times the second.
        x0: start, `[d]`.
        beta2, alpha, eta0: as for `OASIS`.
        max_iter, tol, target: stop after so many iterations, at a gradient of 2-norm `tol`, or at a value of `target`.
        probes0, probes: sign vectors for the first D, `[m, d]`, and one for each later iteration,
            `[max_iter - 1, d]`; drawn from `generator` (by default one of seed 0) where not given.
    """
    check(beta2=beta2, alpha=alpha, eta0=eta0)
    generator = generator or torch.Generator(x0.device).manual_seed(0)

    def diagonal(x: Tensor, signs: Tensor | None, count: int) -> Tensor:
        if signs is None:
            signs = probe_vectors(len(x), count, generator=generator, dtype=x.dtype, device=x.device).T
        return torch.stack([z * hvp(x, z) for z in signs]).mean(0)

    x, g = before = x0, grad(x0)
    eta, theta = x.new_tensor(eta0), x.new_tensor(inf)
    values, norms, steps = [float(f(x))], [float(torch.linalg.vector_norm(g))], []
    while len(steps) < max_iter and norms[-1] > tol and values[-1] > target:
        k = len(steps)
        if k == 0:
            average = diagonal(x, probes0, WARMUP)
        else:
            seen = diagonal(x, None if probes is None else probes[k - 1 : k], 1)
            average = beta2 * average + (1 - beta2) * seen
        (scale,) = truncate([average], alpha)
        eta, theta = step_length(eta, theta, [x - before[0]], [g - before[1]], [scale])
        before = x, g
        x = x - eta * g / scale
        g = grad(x)
        values.append(float(f(x)))
        norms.append(float(torch.linalg.vector_norm(g)))
        steps.append(float(eta))
    return Result(x, norms[-1] <= tol or values[-1] <= target, values, norms, steps)
