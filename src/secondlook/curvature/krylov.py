r"""Block Krylov spaces with full reorthogonalisation, and eigenpairs that come with their errors.

$A Q_m = Q_m T_m + r_m e_m^T$ (Lanczos 1950; Golub and Underwood 1977 for blocks). For a Ritz pair
$T s = \theta s$, $x = Q s$, the residual is $\|A x - \theta x\| = \|r_m\| |s_m|$, known without another product, and
some eigenvalue of the symmetric `A` lies within it of $\theta$: that is the certificate. It bounds the distance to
an eigenvalue; that none was skipped rests on the starting vector having a part along each, as a random one does,
and a simple Lanczos run sees one copy of a multiple eigenvalue: use a block at least as wide as the multiplicity.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from secondlook.curvature.eigenpairs import Eigenpairs
from secondlook.curvature.linear import SymmetricOperator, check_finite, check_square

__all__ = ["BlockLanczos", "Krylov", "block_lanczos"]


@dataclass(frozen=True)
class Krylov:
    """A Krylov basis `[n, m]`, the projection `T = Q^T A Q` `[m, m]`, and the coupling `[b, b']` to what is left.

    `coupling` multiplies the last `b'` rows of an eigenvector of T; it is zero when the space is invariant.
    """

    basis: Tensor
    projection: Tensor
    coupling: Tensor

    def ritz(self) -> Eigenpairs:
        """All Ritz pairs in ascending order, with residuals."""
        values, s = torch.linalg.eigh(self.projection)
        tail = s[len(s) - self.coupling.shape[1] :]
        residuals = torch.linalg.vector_norm(self.coupling @ tail, dim=0)
        return Eigenpairs(values, self.basis @ s, residuals, self.projection.shape[0])


def block_lanczos(A: Tensor | SymmetricOperator, start: Tensor, steps: int) -> Krylov:
    """The block Krylov space of `start`, `[n, b]`, grown by `steps` block products.

    Columns that have become dependent are dropped, so blocks may shrink and the space may turn out invariant
    before `steps` (then the coupling is zero). Memory: the basis, `n * b * steps` numbers.
    """
    grow = BlockLanczos(A, start)
    check_steps(steps)
    for _ in range(steps):
        if not grow.step():
            break
    return grow.krylov()


class BlockLanczos:
    """The recurrence, one block product a step; the basis lies in rows of a buffer that doubles when full."""

    def __init__(self, A: Tensor | SymmetricOperator, start: Tensor, most: int | None = None) -> None:
        n = check_square(A)
        if start.ndim != 2 or start.shape[0] != n or start.shape[1] < 1:
            raise ValueError(f"start must have shape [{n}, b], got {tuple(start.shape)}")
        self.A, self.n, self.size, self.scale = A, n, 0, 0.0
        self.most = n if most is None else most
        self.steps = self.products = self.restarts = 0
        self.tiny = float(tiny(start))
        u, sing, _ = torch.linalg.svd(start, full_matrices=False)
        if not bool(torch.isfinite(sing).all()) or float(sing[0]) == 0:
            raise ValueError("the starting block is zero or not finite")
        self.next = u[:, sing > self.tiny * sing[0]].T.contiguous()
        self.rows = start.new_zeros(min(self.most, 16 * len(self.next)), n)
        self.T = start.new_zeros(len(self.rows), len(self.rows))
        self.coupling = start.new_zeros(0, 0)

    def step(self) -> bool:
        """Take in the next block; False once the space is invariant."""
        b, old = len(self.next), self.size
        new = old + b
        if new > len(self.rows):
            grown = min(self.most, max(new, 2 * len(self.rows)))
            self.rows = _padded(self.rows, grown, self.n)
            self.T = _padded(self.T, grown, grown)
        self.rows[old:new] = self.next
        self.size, self.steps, self.products = new, self.steps + 1, self.products + b
        w = self.A @ self.next.T
        known = self.rows[:new]
        first = known @ w
        self.T[:new, old:new] = first
        self.T[old:new, :new] = first.T
        w = w - known.T @ first
        w = w - known.T @ (known @ w)
        if b == 1:
            norm = torch.linalg.vector_norm(w)
            u, sing, vt = w / norm, norm.reshape(1), w.new_ones(1, 1)
        else:
            check_finite(w)  # before svd fails on it
            u, sing, vt = torch.linalg.svd(w, full_matrices=False)
        found = torch.cat([first.abs().max().view(1), sing]).cpu()  # all that the host has to wait for
        check_finite(found)
        peak, *sizes = found.tolist()
        self.scale = max(self.scale, peak)
        rank = sum(size > self.tiny * max(self.scale, sizes[0]) for size in sizes)
        self.coupling = sing[:, None] * vt  # all of it, also what is dropped: residuals stay true
        u = u[:, : min(rank, self.n - new)]
        if u.shape[1]:
            # Directions of small singular values carry the rounding errors of the large ones.
            u = u - known.T @ (known @ u)
            self.next = torch.linalg.qr(u)[0].T.contiguous() if b > 1 else (u / u.norm()).T.contiguous()
        return u.shape[1] > 0

    def restart(self, values: Tensor, s: Tensor) -> None:
        """Go on from these Ritz pairs alone; all their residuals lie along the next block, which stays."""
        kept = len(values)
        self.rows[:kept] = s.T @ self.rows[: self.size]
        self.T[:kept, :kept] = torch.diag(values)
        self.size, self.restarts = kept, self.restarts + 1

    def ritz(self) -> tuple[Tensor, Tensor, Tensor]:
        T = self.T[: self.size, : self.size]
        values, s = torch.linalg.eigh((T + T.T) / 2)
        tail = s[self.size - self.coupling.shape[1] :]
        return values, s, torch.linalg.vector_norm(self.coupling @ tail, dim=0)

    def basis(self) -> Tensor:
        return self.rows[: self.size].T

    def krylov(self) -> Krylov:
        T = self.T[: self.size, : self.size]
        return Krylov(self.basis(), (T + T.T) / 2, self.coupling)


def _padded(x: Tensor, rows: int, columns: int) -> Tensor:
    out = x.new_zeros(rows, columns)
    out[: x.shape[0], : x.shape[1]] = x
    return out


def tiny(like: Tensor) -> float:
    """Relative size below which a new direction is rounding error."""
    return 100 * torch.finfo(like.dtype).eps


def check_steps(steps: int) -> None:
    if steps < 1:
        raise ValueError(f"Lanczos needs at least one step, got {steps}")
