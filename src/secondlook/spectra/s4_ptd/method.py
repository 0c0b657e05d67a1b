r"""Perturb, then diagonalise: A + E = V diag(lam) V^{-1} with a small E and a well-conditioned V.

    minimise  kappa(V) + gamma |E|

Yu et al., Robustifying state-space models for long sequences via approximate diagonalization (2023). HiPPO-LegS has
eigenvectors too ill-conditioned to use. S4D drops a rank-one part of it instead, and what that does to the transfer
function is a factor (1 + g) / 2, see `low_rank_gain`.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from secondlook.spectra.s4d.method import S4D
from secondlook.spectra.state_space import hippo_legs, normal_modes, state_response

__all__ = [
    "Diagonalization",
    "S4DLayer",
    "low_rank_gain",
    "paired_modes",
    "perturb_then_diagonalize",
    "ptd_bound",
]

MARGIN = 0.1  # eigenvalues are kept this far left of the imaginary axis


class Diagonalization(NamedTuple):
    """A + E = V diag(lam) V^{-1}: lam `[n]`, V `[n, n]` with unit columns, E `[n, n]`, cond = kappa(V), eps = |E|_2."""

    lam: Tensor
    V: Tensor
    E: Tensor
    cond: float
    eps: float


def diagonalize(A: Tensor, E: Tensor) -> Diagonalization:
    """The eigendecomposition of A + E."""
    lam, V = torch.linalg.eig(A + E)
    return Diagonalization(lam, V, E, float(torch.linalg.cond(V)), float(torch.linalg.matrix_norm(E, 2)))


def ginibre(n: int, eps: float, generator: torch.Generator) -> Tensor:
    """A real matrix of independent normal entries, scaled to spectral norm `eps`."""
    X = torch.randn(n, n, generator=generator, dtype=torch.float64)
    return eps * X / torch.linalg.matrix_norm(X, 2)


def perturb_then_diagonalize(
    A: Tensor,
    gamma: float = 1.0,
    steps: int = 150,
    seed: int = 0,
    *,
    lr: float = 3e-3,
    generator: torch.Generator | None = None,
) -> Diagonalization:
    """A well-conditioned eigendecomposition of a matrix near the real matrix A `[n, n]`.

    Adam on log kappa(V) + gamma |E|_2 / |A|_2, with a penalty on eigenvalues right of -0.1, from a random E of about a
    hundredth of |A|; the logarithm and the relative norm make one gamma fit all sizes. The paper's own solver is not
    known in detail. `lr` is in units of |A|_2 / (2 sqrt n); E starts from `generator`, or from `seed`.

    Raises:
        ValueError: A is not a square real matrix.
        RuntimeError: no iterate was stable.
    """
    if A.ndim != 2 or A.shape[0] != A.shape[1] or A.is_complex():
        raise ValueError(f"A must be a real square matrix, got {A.dtype} of shape {tuple(A.shape)}")
    if gamma < 0 or steps < 1:
        raise ValueError(f"need gamma >= 0 and steps >= 1, got {gamma} and {steps}")
    A, n = A.double(), len(A)
    norm = float(torch.linalg.matrix_norm(A, 2))
    unit = norm / (2 * math.sqrt(n))  # a standard normal matrix has norm 2 sqrt n
    generator = generator or torch.Generator().manual_seed(seed)
    X = (0.01 * torch.randn(n, n, generator=generator, dtype=A.dtype)).requires_grad_()
    optimizer = torch.optim.Adam([X], lr=lr)
    best, E_best = math.inf, None
    for _ in range(steps):
        with torch.enable_grad():
            E = unit * X
            lam, V = torch.linalg.eig(A + E)
            sizes = torch.linalg.svdvals(V)
            rightmost = lam.real.max()
            value = (sizes[0] / sizes[-1]).log() + gamma * torch.linalg.matrix_norm(E, 2) / norm
            loss = value + torch.relu(rightmost + MARGIN)
        reached = float(loss.detach())
        if float(rightmost.detach()) < 0 and reached < best:
            best, E_best = reached, E.detach()
        (X.grad,) = torch.autograd.grad(loss, X)
        optimizer.step()
    if E_best is None:
        raise RuntimeError(f"no stable A + E in {steps} steps; take more steps or a smaller lr than {lr}")
    return diagonalize(A, E_best)


def paired_modes(lam: Tensor, V: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues and inputs V^{-1} B `[m]` of a real system with one of each conjugate pair kept, y = 2 Re(C x).

    Real eigenvalues have no partner and count half.
    """
    inputs = torch.linalg.solve(V, B.to(V.dtype))
    keep = lam.imag >= 0
    share = torch.where(lam.imag == 0, 0.5, 1.0).to(inputs.dtype)
    return lam[keep], (share * inputs)[keep]


def low_rank_gain(n: int, freqs: Tensor) -> Tensor:
    """g(i w) = P^T (i w I - A_N)^{-1} P, complex `[F]`.

    By Sherman and Morrison the diagonal system's transfer function is G_D = G (1 + g) / 2 for every C, G that of
    HiPPO-LegS; g(0) = 1.
    """
    lam, V = normal_modes(n)
    weights = (V.mH @ hippo_legs(n).P.to(V.dtype)).abs().square()
    return state_response(lam, weights.to(lam.dtype), freqs).sum(1)


def ptd_bound(n: int, eps: float) -> float:
    """(2 ln n + 4) eps: the paper's first-order bound on |G_PTD - G| on the imaginary axis, for |B| = |C| = 1."""
    return (2 * math.log(n) + 4) * eps


@functools.lru_cache(maxsize=8)
def _legs_ptd(n: int) -> tuple[Tensor, Tensor]:
    A, B, _ = hippo_legs(n)
    found = perturb_then_diagonalize(A)
    return paired_modes(found.lam, found.V, B)


class S4DLayer(S4D):
    """An S4D layer that also starts from init="ptd": HiPPO-LegS perturbed and diagonalised (with the defaults above).

    Other diagonalisations are handed in as init=(A, B), see `paired_modes`.
    """

    def __init__(self, d_model: int, n: int = 64, init: str | tuple[Tensor, Tensor] = "ptd", *args, **options) -> None:
        super().__init__(
            d_model, n, _legs_ptd(n) if isinstance(init, str) and init == "ptd" else init, *args, **options
        )
