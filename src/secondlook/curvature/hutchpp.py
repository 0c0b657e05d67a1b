r"""Hutch++: the part of the trace that a few directions carry is computed, the rest is estimated.

With $Q$ an orthonormal basis of $A S$ for a random sketch $S$,

    tr A = tr(Q^T A Q) + tr((I - QQ^T) A (I - QQ^T)),

where the second trace is estimated by Hutchinson's probes (Meyer, Musco, Musco and Woodruff 2021). What a probe
adds to the variance falls from $2 \|A\|_F^2$ to about twice the squared norm of what $Q$ left out: much, where a few
eigenvalues stand out, as those of networks do. Given $Q$ the samples are independent, so intervals hold as they do for
Hutchinson.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from secondlook.curvature.estimate import Estimate
from secondlook.curvature.hutchinson import Distribution, as_probes
from secondlook.curvature.linear import SymmetricOperator, check_finite, check_square

__all__ = ["hutchpp"]


def hutchpp(
    A: Tensor | SymmetricOperator,
    probes: Tensor | int = 10,
    *,
    sketch: Tensor | int = 10,
    basis: Tensor | None = None,
    at_once: int | None = None,
    generator: torch.Generator | None = None,
    distribution: Distribution = "rademacher",
) -> Estimate:
    """Trace of `A` from `2 sketch + probes` products.

    Args:
        probes: a number of probes to draw, or the probes, `[n, k]`.
        sketch: likewise for the vectors whose products span what is computed exactly, `[n, s]`.
        basis: orthonormal columns `[n, s]` to use in place of a sketch, such as eigenvectors that are known
            already. They must not depend on the probes. Costs `s + probes` products.
        at_once: probes to hold at a time, where memory is short (default: all).
    """
    n = check_square(A)
    if basis is None:
        basis = span(A @ as_probes(A, sketch, generator, distribution))[0]
    elif basis.ndim != 2 or basis.shape[0] != n:
        raise ValueError(f"the basis must have shape [{n}, s], got {tuple(basis.shape)}")
    exact = (basis * (A @ basis)).sum()
    samples = []
    for z in _groups(A, probes, at_once, generator, distribution):
        rest = z - basis @ (basis.T @ z)
        samples.append((rest * (A @ rest)).sum(0))
    return Estimate.of(exact + torch.cat(samples))


def _groups(
    A: Tensor | SymmetricOperator,
    probes: Tensor | int,
    at_once: int | None,
    generator: torch.Generator | None,
    distribution: Distribution,
) -> Iterator[Tensor]:
    """The probes, at most so many at a time, drawn when they are needed."""
    if isinstance(probes, Tensor):
        given = as_probes(A, probes, generator, distribution)
        yield from given.split(at_once or given.shape[1], dim=1)
        return
    step = at_once or max(probes, 1)
    for start in range(0, max(probes, 1), step):
        yield as_probes(A, min(step, probes - start), generator, distribution)


def span(Y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Thin singular value decomposition `Q [n, r]`, `sigma [r]`, `V [k, r]` of `Y [n, k]`, `r` its numerical rank."""
    check_finite(Y)
    q, triangle = torch.linalg.qr(Y)
    u, sigma, vt = torch.linalg.svd(triangle, full_matrices=False)
    keep = sigma > 100 * torch.finfo(Y.dtype).eps * sigma[0]
    return q @ u[:, keep], sigma[keep], vt[keep].T
