r"""XTrace and XDiag: every product helps both to find the large directions and to estimate the rest.

From $Y = A \Omega$ with $k$ random columns, let $P_i$ project onto the span of all columns of $Y$ but the $i$-th. Then

    t_i = tr(P_i A P_i) + w_i^T (I - P_i) A (I - P_i) w_i

is unbiased for every $i$, for $P_i$ knows nothing of $w_i$; the estimate is their mean (Epperly, Tropp and Webber
2024). One decomposition of $Y$ serves all $i$: with $Y = Q \Sigma V^T$, $P_i = Q (I - s_i s_i^T) Q^T$, where $s_i$ is
the unit vector along column $i$ of $\Sigma^{-1} V^T$. If the others span column $i$ as well, $s_i$ is zero.

The samples share most of their projections, so they are exchangeable and not independent. Their spread, the error
estimate of the paper, falls short of the true error: by 3 to 28 percent for the trace and up to 11 for an entry of the
diagonal, on spectra i^-1/2 to i^-4 with 6 to 25 vectors for 60 columns. Standard errors are widened by `HIDDEN` for it.

For the diagonal the paper projects $A$ from the left alone. Here $A$ is symmetric, and the rest is projected from both
sides, which costs no product more and leaves less to chance:

    d_i = diag(P_i A + A P_i - P_i A P_i) + w_i * (I - P_i) A (I - P_i) w_i
"""

import torch
from torch import Tensor

from secondlook.curvature.estimate import Estimate
from secondlook.curvature.hutchinson import Distribution, as_probes
from secondlook.curvature.hutchpp import span
from secondlook.curvature.linear import SymmetricOperator

__all__ = ["xdiag", "xtrace"]

HIDDEN = {"trace": 1.25, "diagonal": 1.1}


def xtrace(
    A: Tensor | SymmetricOperator,
    probes: Tensor | int = 15,
    *,
    generator: torch.Generator | None = None,
    distribution: Distribution = "gaussian",
) -> Estimate:
    """Trace of `A` from `2 k` products; `probes` is `k`, or the vectors `[n, k]` drawn from `distribution`.

    Gaussian probes are scaled to the length that the part outside the projection should have, which takes the
    chance in their lengths away; Rademacher probes are used as they are.
    """
    parts = _LeaveOneOut(A, as_probes(A, probes, generator, distribution))
    H, S = parts.inner, parts.left_out
    exact = H.trace() - (S * (H @ S)).sum(0)
    rest = (parts.outside * parts.product).sum(0)
    if distribution == "gaussian":
        freedom = A.shape[0] - parts.rank
        rest = torch.where(freedom > 0, rest * freedom / (parts.outside**2).sum(0), 0)
    return Estimate.of(exact + rest, HIDDEN["trace"])


def xdiag(
    A: Tensor | SymmetricOperator,
    probes: Tensor | int = 15,
    *,
    generator: torch.Generator | None = None,
    distribution: Distribution = "rademacher",
) -> Estimate:
    """Diagonal of `A`, `[n]`, from `2 k` products; `probes` as in `xtrace`, memory some `8 n k` numbers."""
    w = as_probes(A, probes, generator, distribution)
    parts = _LeaveOneOut(A, w)
    Q, Z, H, S = parts.basis, parts.images, parts.inner, parts.left_out
    QH, QS = Q @ H, Q @ S
    whole = (Q * (2 * Z - QH)).sum(1, keepdim=True)
    exact = whole - 2 * QS * (Z @ S) + 2 * QS * (QH @ S) - QS**2 * (S * (H @ S)).sum(0)
    return Estimate.of((exact + w * parts.project_out(parts.product)).T, HIDDEN["diagonal"])


class _LeaveOneOut:
    """What all leave-one-out projections share: `basis` Q and `images` A Q `[n, r]`, `inner` Q^T A Q `[r, r]`.

    Column i of `left_out` `[r, k]` is s_i, `rank[i]` that of P_i; `outside` holds (I - P_i) w_i, `product` A times it.
    """

    def __init__(self, A: Tensor | SymmetricOperator, w: Tensor) -> None:
        Y = A @ w
        self.basis, sigma, V = span(Y)
        self.images = A @ self.basis
        H = self.basis.T @ self.images
        self.inner = (H + H.T) / 2
        # Column i is needed for the span of Y exactly where row i of V has unit length.
        needed = (V**2).sum(1) > 1 - torch.finfo(w.dtype).eps ** 0.5
        S = (V / sigma).T
        self.left_out = torch.where(needed, S / torch.linalg.vector_norm(S, dim=0), 0)
        self.rank = len(sigma) - needed.to(w.dtype)
        inside = self._without(self.basis.T @ w)
        self.outside = w - self.basis @ inside
        self.product = Y - self.images @ inside

    def project_out(self, x: Tensor) -> Tensor:
        """(I - P_i) x_i for every column."""
        return x - self.basis @ self._without(self.basis.T @ x)

    def _without(self, coordinates: Tensor) -> Tensor:
        return coordinates - self.left_out * (self.left_out * coordinates).sum(0)
