r"""Lanczos and block Lanczos with full reorthogonalisation, and eigenpairs that come with their errors.

$A Q_m = Q_m T_m + r_m e_m^T$ (Lanczos 1950; Golub and Underwood 1977 for blocks). For a Ritz pair
$T s = \theta s$, $x = Q s$, the residual is $\|A x - \theta x\| = \|r_m\| |s_m|$, known without another product, and
some eigenvalue of the symmetric `A` lies within it of $\theta$: that is the certificate. It bounds the distance to
an eigenvalue; that none was skipped rests on the starting vector having a part along each, as a random one does,
and a simple Lanczos run sees one copy of a multiple eigenvalue: use a block at least as wide as the multiplicity.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from secondlook.curvature.eigenpairs import Eigenpairs
from secondlook.curvature.hutchinson import probe_vectors
from secondlook.curvature.linear import SymmetricOperator, check_finite, check_square

__all__ = ["Eigenpairs", "Krylov", "block_lanczos", "eigsh", "lanczos"]


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


def lanczos(A: Tensor | SymmetricOperator, start: Tensor, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Independent Lanczos runs from every column of `start`, `[n, p]`, one block product a step.

    Returns the tridiagonal matrices `[p, m, m]`, the bases `[p, m, n]` and the norms of the last residuals `[p]`,
    with `m = min(steps, n)`. A run that has exhausted its invariant subspace early goes on with zero vectors, so
    that what follows is decoupled from its first basis vector.
    """
    n = check_square(A)
    if start.ndim != 2 or start.shape[0] != n:
        raise ValueError(f"start must have shape [{n}, p], got {tuple(start.shape)}")
    _check_steps(steps)
    m, p = min(steps, n), start.shape[1]
    Q = start.new_zeros(p, m, n)
    T = start.new_zeros(p, m, m)
    norms = torch.linalg.vector_norm(start, dim=0)
    if not bool((norms > 0).all()):
        raise ValueError("a starting vector is zero or not finite")
    Q[:, 0] = (start / norms).T
    tiny, scale = _tiny(start), start.new_zeros(p)
    for j in range(m):
        w = (A @ Q[:, j].T).T.unsqueeze(-1)  # [p, n, 1]
        known = Q[:, : j + 1]
        first = known @ w
        T[:, j, j] = first[:, j, 0]
        w = w - known.mT @ first
        w = w - known.mT @ (known @ w)  # twice is enough (Kahan, Parlett)
        beta = torch.linalg.vector_norm(w, dim=(1, 2))
        scale = torch.maximum(scale, T[:, j, j].abs() + beta)
        alive = beta > tiny * scale
        beta = torch.where(alive, beta, 0)
        if j + 1 < m:
            Q[:, j + 1] = torch.where(alive, 1 / beta, 0).unsqueeze(1) * w.squeeze(-1)
            T[:, j, j + 1] = T[:, j + 1, j] = beta
    check_finite(T)  # what is not finite stays in T: one look at the device is enough
    return T, Q, beta


def block_lanczos(A: Tensor | SymmetricOperator, start: Tensor, steps: int) -> Krylov:
    """The block Krylov space of `start`, `[n, b]`, grown by `steps` block products.

    Columns that have become dependent are dropped, so blocks may shrink and the space may turn out invariant
    before `steps` (then the coupling is zero). Memory: the basis, `n * b * steps` numbers.
    """
    grow = _BlockLanczos(A, start)
    _check_steps(steps)
    for _ in range(steps):
        if not grow.step():
            break
    return grow.krylov()


def eigsh(
    A: Tensor | SymmetricOperator,
    k: int = 1,
    *,
    which: Literal["largest", "smallest", "both", "magnitude"] = "largest",
    tol: float = 1e-6,
    block: int = 1,
    max_products: int | None = None,
    basis: int | None = None,
    start: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Eigenpairs:
    """`k` extreme eigenpairs (with "both", `k` at either end) whose residuals are below `tol` times the norm of `A`.

    Args:
        block: width of the Krylov block; as wide as the multiplicities one must tell apart.
        max_products: give up after so many products (default: as many as the matrix has columns) and return the
            best so far with `converged=False`.
        basis: hold at most so many vectors of length n (default: no limit). A full basis is cut down to its best
            Ritz vectors, from which the run goes on (thick restart; Wu and Simon 2000): less memory, more products.
        start: `[n, block]`, else Gaussian, drawn from `generator`.

    Values come ascending for "smallest" and "both", descending for "largest", by descending magnitude for
    "magnitude". Raises `ValueError` for a `k` the matrix does not have.
    """
    n = check_square(A)
    wanted = 2 * k if which == "both" else k
    if k < 1 or wanted > n:
        raise ValueError(f"cannot take {wanted} eigenvalues of a {n} x {n} matrix")
    if which not in ("largest", "smallest", "both", "magnitude"):
        raise ValueError(f"which must be 'largest', 'smallest', 'both' or 'magnitude', got {which!r}")
    if start is None:
        if generator is None:
            raise ValueError("a random start needs a generator: pass generator= or start=")
        start = probe_vectors(n, block, generator=generator, distribution="gaussian", dtype=A.dtype, device=A.device)
    most = n if basis is None else min(basis, n)
    if most < min(n, 2 * wanted + 2 * start.shape[1]):
        raise ValueError(f"a basis of {basis} is too small for {wanted} eigenvalues: allow {2 * wanted + 2 * block}")
    grow = _BlockLanczos(A, start, most)
    budget = n if max_products is None else max_products
    check_at, low, high, steps = wanted + 1, torch.inf, -torch.inf, 0.0
    while True:
        more = grow.step()
        stop = not more or grow.products >= budget
        full = grow.size + len(grow.next) > most
        if not stop and not full and grow.products < check_at:
            continue
        # The tridiagonal problem is small, but solving it at every step would not be.
        check_at = grow.products + max(2, grow.size // 10)
        values, s, residuals = grow.ritz()
        low, high = min(low, float(values[0])), max(high, float(values[-1]))
        if not grow.restarts:
            steps = grow.steps if more else torch.inf
        order = _extreme(values, which, k)
        scale = max(abs(low), abs(high))
        small = bool((residuals[order] <= tol * scale).all()) and len(order) == wanted
        if stop or small:
            ends = (low, high)
            return Eigenpairs(
                values[order], grow.basis() @ s[:, order], residuals[order], grow.products, small, ends, steps
            )
        if full:
            kept = _extreme(values, which, (most + wanted) // (4 if which == "both" else 2))
            grow.restart(values[kept], s[:, kept])


class _BlockLanczos:
    """The recurrence, one block product a step; the basis lies in rows of a buffer that doubles when full."""

    def __init__(self, A: Tensor | SymmetricOperator, start: Tensor, most: int | None = None) -> None:
        n = check_square(A)
        if start.ndim != 2 or start.shape[0] != n or start.shape[1] < 1:
            raise ValueError(f"start must have shape [{n}, b], got {tuple(start.shape)}")
        self.A, self.n, self.size, self.scale = A, n, 0, 0.0
        self.most = n if most is None else most
        self.steps = self.products = self.restarts = 0
        self.tiny = float(_tiny(start))
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
        check_finite(w)
        known = self.rows[:new]
        first = known @ w
        self.T[:new, old:new] = first
        self.T[old:new, :new] = first.T
        w = w - known.T @ first
        w = w - known.T @ (known @ w)
        self.scale = max(self.scale, float(first.abs().max()))
        if b == 1:
            norm = torch.linalg.vector_norm(w)
            u, sing, vt = w / norm, norm.reshape(1), w.new_ones(1, 1)
        else:
            u, sing, vt = torch.linalg.svd(w, full_matrices=False)
        keep = sing > self.tiny * max(self.scale, float(sing[0]))
        self.coupling = sing[:, None] * vt  # all of it, also what is dropped: residuals stay true
        room = self.n - new
        u = u[:, keep][:, :room]
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


def _extreme(values: Tensor, which: str, k: int) -> Tensor:
    """Where the `k` wanted ones of ascending `values` are, in the order in which they are handed out."""
    if which == "magnitude":
        return values.abs().argsort(descending=True)[:k]
    order = values.argsort(descending=which == "largest")
    if which == "both":
        return torch.cat([order[:k], order[-k:]]) if len(order) >= 2 * k else order
    return order[:k]


def _padded(x: Tensor, rows: int, columns: int) -> Tensor:
    out = x.new_zeros(rows, columns)
    out[: x.shape[0], : x.shape[1]] = x
    return out


def _tiny(like: Tensor) -> float:
    """Relative size below which a new direction is rounding error."""
    return 100 * torch.finfo(like.dtype).eps


def _check_steps(steps: int) -> None:
    if steps < 1:
        raise ValueError(f"Lanczos needs at least one step, got {steps}")
