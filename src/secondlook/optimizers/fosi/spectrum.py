"""The extreme eigenpairs of a symmetric operator from one Lanczos run."""

import math

import torch
from torch import Tensor

from secondlook.curvature import FunctionOperator, SymmetricOperator, lanczos, probe_vectors


def lanczos_extreme(
    A: Tensor | SymmetricOperator, k: int, l: int = 0, order: int | None = None, *, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The `l` smallest and `k` largest Ritz pairs of one Lanczos run, in float64 whatever the type of `A`.

    Smallest and largest are meant with their sign. What is returned is what `order` products with a random start give,
    converged or not (`secondlook.curvature.eigsh` goes on until pairs have converged).

    Args:
        A: symmetric `[n, n]`.
        order: products with `A`, at most n; by default max(4 (k + l), 2 ln n).

    Returns:
        Values `[m]`, ascending, and orthonormal vectors in rows, `[m, n]`; m = min(k + l, order, n), or fewer where
        the start lies in an invariant subspace.
    """
    n = A.shape[0]
    order = max(4 * (k + l), math.ceil(2 * math.log(n)), 1) if order is None else order
    exact = FunctionOperator(lambda x: (A @ x.to(A.dtype)).double(), n, device=A.device)
    start = probe_vectors(n, 1, generator=generator, distribution="gaussian", device=A.device)
    (T,), (basis,), _ = lanczos(exact, start, order)
    size = 1 + int((T.diagonal(1) != 0).cumprod(0).sum())  # an invariant subspace ends with a zero
    values, s = torch.linalg.eigh(T[:size, :size])
    low = min(l, size)
    chosen = [*range(low), *range(max(size - k, low), size)]
    return values[chosen], s[:, chosen].T @ basis[:size]
