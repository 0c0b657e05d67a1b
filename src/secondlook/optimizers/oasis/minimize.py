"""OASIS for one smooth function that comes with its gradient and its Hessian-vector products."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from secondlook.curvature import probe_vectors
from secondlook.optimizers.oasis.method import check, limited, truncate

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

    def signs(k: int) -> Tensor:
        given, count = (probes0, WARMUP) if k == 0 else (None if probes is None else probes[k - 1 : k], 1)
        if given is not None:
            return given
        return probe_vectors(len(x0), count, generator=generator, dtype=x0.dtype, device=x0.device).T

    values, norms, steps = [], [], []
    for x, g, eta in iterates(grad, hvp, x0, signs, beta2, alpha, eta0):
        values.append(float(f(x)))
        norms.append(float(torch.linalg.vector_norm(g)))
        steps.append(float(eta))
        if len(steps) > max_iter or norms[-1] <= tol or values[-1] <= target:
            break
    return Result(x, norms[-1] <= tol or values[-1] <= target, values, norms, steps[1:])


def iterates(
    grad: Callable[[Tensor], Tensor],
    hvp: Callable[[Tensor, Tensor], Tensor],
    x0: Tensor,
    signs: Callable[[int], Iterable[Tensor]],
    beta2: float = 0.99,
    alpha: float = 1e-3,
    eta0: float | Sequence[float] = 1e-3,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Point, gradient and step length, at the start (where that is `eta0`) and after each iteration, for ever.

    The points are `[d]`, or `[d, m]` with every column on a way of its own. `signs(k)` are the sign vectors of
    iteration k, each like `x0`: several for the first, one for the others. `eta0` is one number or one a column.
    """
    x, g, eta = x0, grad(x0), x0.new_tensor(eta0).expand(x0.shape[1:])
    theta, average = torch.full_like(eta, inf), torch.zeros_like(x)
    before = x, g
    yield x, g, eta
    for k in itertools.count():
        seen = torch.stack([z * hvp(x, z) for z in signs(k)]).mean(0)
        average = beta2 * average + (1 - beta2) * seen if k else seen
        (scale,) = truncate([average], alpha)
        root = scale.sqrt()
        span, bend = (torch.linalg.vector_norm(v, dim=0) for v in ((x - before[0]) * root, (g - before[1]) / root))
        eta, theta = limited(eta, theta, span / (2 * bend))
        before = x, g
        x = x - eta * g / scale
        g = grad(x)
        yield x, g, eta
