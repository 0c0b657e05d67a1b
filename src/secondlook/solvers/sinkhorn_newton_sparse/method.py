"""Sinkhorn-Newton-Sparse: entropic optimal transport with sparsified Newton steps (Tang et al., 2024).

With weak regularisation (large eta) the entropic transport problem

    min_P <C, P> + (1/eta) sum_ij P_ij log P_ij,   P 1 = r,  P' 1 = c

takes Sinkhorn tens of thousands of sweeps. Its concave dual potential

    f(x, y) = -(1/eta) sum_ij P_ij + r'x + c'y,    P_ij = exp(eta (x_i + y_j - C_ij) - 1)

has the Hessian -eta [[diag(P 1), P], [P', diag(P' 1)]], and a good P is almost a permutation: a few sweeps
make that Hessian nearly sparse, its largest entries are enough for a Newton step, and CG solves it in O(n).
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Callback = Callable[[int, float], None]
Select = Callable[[Tensor, int], Tensor]

ABSORB = 1e8  # scalings beyond this go into the potentials
TRUNCATE = 1e-50  # kernel entries below this are dropped: they could not reach 1e-34 before the next absorption
SPARSE = 0.25  # below this density a CSR product beats a dense one


@dataclass(frozen=True)
class OTResult:
    """A transport plan with its dual potentials and the way there.

    plan: [n, m]; x: [n]; y: [m], defined up to the shift (x + t, y - t).
    errors: ||grad f||_1 = ||r - P 1||_1 + ||c - P' 1||_1 after every sweep and Newton step.
    n_sinkhorn: how many of the `n_iter` iterations were Sinkhorn sweeps.
    """

    plan: Tensor
    x: Tensor
    y: Tensor
    errors: list[float]
    n_sinkhorn: int
    converged: bool

    @property
    def n_iter(self) -> int:
        return len(self.errors)

    @property
    def error(self) -> float:
        """The last of `errors`; infinite when not even the first Newton step succeeded."""
        return self.errors[-1] if self.errors else math.inf


def transport_plan(C: Tensor, x: Tensor, y: Tensor, eta: float) -> Tensor:
    """P_ij = exp(eta (x_i + y_j - C_ij) - 1), [n, m]."""
    return ((x[:, None] - C).add_(y).mul_(eta).sub_(1.0)).exp_()


def dual_value(C: Tensor, r: Tensor, c: Tensor, x: Tensor, y: Tensor, eta: float) -> Tensor:
    """The concave dual potential f(x, y), 0-d; its gradient is (r - P 1, c - P' 1)."""
    return -transport_plan(C, x, y, eta).sum() / eta + r @ x + c @ y


def dual_hessian(P: Tensor, eta: float) -> Tensor:
    """The dense Hessian of f at the plan P, [n + m, n + m]: negative semidefinite, null vector (1, -1)."""
    return -eta * torch.cat([torch.cat([P.sum(1).diag(), P], dim=1), torch.cat([P.mT, P.sum(0).diag()], dim=1)], dim=0)


def sinkhorn(
    C: Tensor,
    r: Tensor,
    c: Tensor,
    eta: float,
    *,
    max_iter: int = 100_000,
    tol: float = 1e-12,
    check_every: int = 10,
    callback: Callback | None = None,
    dtype: torch.dtype = torch.float64,
) -> OTResult:
    """Stabilised Sinkhorn: matrix scaling, with the scalings absorbed into a truncated kernel when they grow.

    Absorption and truncation as in Schmitzer (2019); neither changes the iterates beyond roundoff. Starts at
    x = y = 0; one sweep updates x, then y. The first sweep is done in the log domain; after it every row of the
    kernel holds at least the mass r_i min(c), so that the plain products are safe.

    C: cost [n, m]; r [n] and c [m]: positive marginals of equal mass; eta: inverse regularisation strength.
    tol: stop when ||grad f||_1 < tol, looked at every `check_every` sweeps; callback(sweep, error) at each look.
    The count of sweeps is exact; the plan is that of the last look, at most check_every - 1 sweeps further.
    """
    C, r, c = _checked(C, r, c, eta, dtype)
    if max_iter < 1:
        raise ValueError(f"max_iter must be at least 1, got {max_iter}")
    x = (r.log() + 1.0 - torch.logsumexp(-eta * C, dim=1)) / eta
    y = (c.log() + 1.0 - torch.logsumexp(eta * (x[:, None] - C), dim=0)) / eta
    rows, columns = _kernel_products(transport_plan(C, x, y, eta))
    u, v = torch.ones_like(r), torch.ones_like(c)
    errors: list[float] = []
    pending: list[Tensor] = []
    for sweep in range(1, max_iter + 1):
        # After a sweep the columns are exact, so the error is that of the rows: its product is needed anyway.
        Kv = rows @ v
        pending.append((u * Kv - r).abs().sum())
        if sweep % check_every == 0 or sweep == max_iter:
            errors += torch.stack(pending).tolist()
            pending.clear()
            if callback is not None:
                callback(sweep, errors[-1])
            if min(errors[-check_every:]) < tol or sweep == max_iter:
                break
            if max(u.abs().max(), v.abs().max(), 1 / u.min(), 1 / v.min()) > ABSORB:
                x, y = x + u.log() / eta, y + v.log() / eta
                rows, columns = _kernel_products(transport_plan(C, x, y, eta))
                u, v = torch.ones_like(r), torch.ones_like(c)
                Kv = rows @ v
        u = r / Kv
        v = c / (columns @ u)
    first = next((i + 1 for i, e in enumerate(errors) if e < tol), None)
    x, y = x + u.log() / eta, y + v.log() / eta
    return OTResult(transport_plan(C, x, y, eta), x, y, errors[:first], len(errors[:first]), first is not None)


def largest(P: Tensor, k: int) -> Tensor:
    """Flat indices of the k largest entries of P."""
    return P.flatten().topk(k, sorted=False).indices


def newton_direction(
    P: Tensor, gradient: Tensor, eta: float, keep: int, *, select: Select = largest, rtol: float = 1e-12
) -> Tensor:
    """Solve M dz = grad f for the ascent direction, with M the negative Hessian after sparsification.

    Only `keep` entries of P (each stands twice in the Hessian) survive, picked by `select(P, keep)`; the
    diagonal holds the sums of the whole P, which keeps M diagonally dominant. Keeping all of P means a dense
    factorisation, anything less CG to the relative residual `rtol`. gradient: [n + m]; returns [n + m].
    """
    n, m = P.shape
    if keep >= n * m:
        return _full_newton(P, gradient) / eta
    index = select(P, keep)
    i, j, entries = index // m, n + index % m, P.flatten()[index]
    places = torch.stack([torch.cat([i, j]), torch.cat([j, i])])
    S = _compressed(torch.sparse_coo_tensor(places, entries.repeat(2), (n + m, n + m), check_invariants=False))
    diagonal = torch.cat([P.sum(1), P.sum(0)])
    return _conjugate_gradients(S, diagonal, gradient, rtol=rtol, max_iter=4 * (n + m)) / eta


def sns(
    C: Tensor,
    r: Tensor,
    c: Tensor,
    eta: float,
    *,
    n_sinkhorn: int = 20,
    n_newton: int = 50,
    sparsity: float | None = None,
    tol: float = 1e-12,
    select: Select = largest,
    callback: Callback | None = None,
    dtype: torch.dtype = torch.float64,
) -> OTResult:
    """Sinkhorn-Newton-Sparse: `n_sinkhorn` sweeps, then up to `n_newton` Newton steps on sparsified Hessians.

    C: cost [n, m]; r [n] and c [m]: positive marginals of equal mass; eta: inverse regularisation strength.
    sparsity: share of the (n + m)^2 Hessian entries to keep beside the diagonal; None means 4 / (n + m), the
        paper's 2/n for square problems: 2 (n + m) entries of P stay. 1 is Newton's method with the full Hessian.
    tol: stop when ||grad f||_1 < tol. select: which entries survive, (P, k) -> flat indices [k].
    Raises ValueError for marginals that are not positive or differ in mass.
    """
    C, r, c = _checked(C, r, c, eta, dtype)
    n, m = C.shape
    if sparsity is None:
        sparsity = min(1.0, 4 / (n + m))
    if not 0 < sparsity <= 1:
        raise ValueError(f"sparsity must lie in (0, 1], got {sparsity}: it is a share of the Hessian's entries")
    if n_sinkhorn < 0 or n_newton < 0 or n_sinkhorn + n_newton == 0:
        raise ValueError(f"need a positive number of iterations, got {n_sinkhorn=} and {n_newton=}")
    keep = min(-int(-sparsity * (n + m) ** 2 // 2), n * m)

    x, y, errors = torch.zeros_like(r), torch.zeros_like(c), []
    if n_sinkhorn > 0:
        start = sinkhorn(C, r, c, eta, max_iter=n_sinkhorn, tol=tol, callback=callback, dtype=dtype)
        if start.converged:
            return start
        x, y, errors = start.x, start.y, start.errors
    swept = len(errors)
    z, marginals = torch.cat([x, y]), torch.cat([r, c])
    P = transport_plan(C, x, y, eta)
    value = marginals @ z - P.sum() / eta
    for _ in range(n_newton):
        gradient = marginals - torch.cat([P.sum(1), P.sum(0)])
        step = newton_direction(P, gradient, eta, keep, select=select)
        slope = gradient @ step
        # Near the optimum the gain falls below the roundoff of f although the marginals still improve.
        trust = bool(slope < 1e-14 * value.abs().clamp_min(1.0))
        # A step of more than 2^10 nats overflows; the halvings that lead there need no trial.
        first = max(0, math.ceil(math.log2(max(eta * float(step.abs().max()), 1.0)) - 10))
        for alpha in (0.5**k for k in range(first, first + 40)):
            trial = z + alpha * step
            trial_P = transport_plan(C, trial[:n], trial[n:], eta)
            trial_value = marginals @ trial - trial_P.sum() / eta
            if trust or bool(trial_value >= value + 1e-4 * alpha * slope):
                break
        else:
            break  # no ascent along the direction: keep the last point
        z, P, value = trial, trial_P, trial_value
        errors.append(float((marginals - torch.cat([P.sum(1), P.sum(0)])).abs().sum()))
        if callback is not None:
            callback(len(errors), errors[-1])
        if errors[-1] < tol:
            break
    return OTResult(P, z[:n], z[n:], errors, swept, bool(errors) and errors[-1] < tol)


def _kernel_products(K: Tensor) -> tuple[Tensor, Tensor]:
    """K and its transpose, truncated (denormals alone slow a product tenfold), and compressed if sparse."""
    K = torch.where(K > TRUNCATE, K, 0.0)
    if torch.count_nonzero(K) > SPARSE * K.numel():
        return K, K.mT
    return _compressed(K), _compressed(K.mT)


def _compressed(A: Tensor) -> Tensor:
    """CSR, without torch's notices about the layout."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse")
        return A.to_sparse_csr()


def _full_newton(P: Tensor, gradient: Tensor) -> Tensor:
    """Eliminate x: the Schur complement diag(P' 1) - P' diag(P 1)^-1 P is a graph Laplacian, null vector 1.

    Its diagonal is summed from the other entries, for the printed difference cancels when P is a permutation.
    """
    n, m = P.shape
    rows = P.sum(1)
    scaled = P / rows[:, None]
    laplacian = -(P.mT @ scaled)
    laplacian.diagonal().zero_()
    laplacian.diagonal().copy_(-laplacian.sum(1))
    laplacian += laplacian.diagonal().mean() / m  # lifts the null vector and leaves the rest alone
    factor, failed = torch.linalg.cholesky_ex(laplacian)
    if bool(failed):  # the plan has fallen apart into blocks, each with a null vector of its own
        full = torch.zeros(n + m, n + m, dtype=P.dtype, device=P.device)
        full[:n, n:], full[n:, :n] = P, P.mT
        return _conjugate_gradients(full, torch.cat([rows, P.sum(0)]), gradient, rtol=1e-12, max_iter=4 * (n + m))
    y = torch.cholesky_solve((gradient[n:] - gradient[:n] @ scaled)[:, None], factor)[:, 0]
    return torch.cat([gradient[:n] / rows - scaled @ y, y])


def _conjugate_gradients(S: Tensor, diagonal: Tensor, b: Tensor, *, rtol: float, max_iter: int) -> Tensor:
    """Solve (diag + S) z = b by Jacobi-preconditioned CG from zero; b in the range keeps null vectors out."""
    solution, residual, inverse = torch.zeros_like(b), b.clone(), 1 / diagonal
    direction = residual * inverse
    rho = residual @ direction
    stop = rtol**2 * rho
    for _ in range(max_iter):
        image = torch.addcmul(S @ direction, diagonal, direction)
        curvature = direction @ image
        if bool((rho <= stop) | (curvature <= 0)):  # one wait for the device, not two
            break
        alpha = rho / curvature
        solution.addcmul_(direction, alpha)
        residual.addcmul_(image, alpha, value=-1)
        scaled = residual * inverse
        rho, previous = residual @ scaled, rho
        direction = torch.addcmul(scaled, direction, rho / previous)
    return solution


def _checked(C: Tensor, r: Tensor, c: Tensor, eta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    if C.ndim != 2 or r.shape != C.shape[:1] or c.shape != C.shape[1:]:
        raise ValueError(f"need C [n, m], r [n], c [m]; got {(*C.shape,)}, {(*r.shape,)}, {(*c.shape,)}")
    if not eta > 0:
        raise ValueError(f"eta must be positive, got {eta}: it is the inverse of the regularisation strength")
    C, r, c = (t.to(dtype) for t in (C, r, c))
    if not bool(C.isfinite().all()):
        raise ValueError("the cost has entries that are not finite; use a large finite cost instead")
    for name, mass in (("r", r), ("c", c)):
        if not bool((mass > 0).all()):
            raise ValueError(f"{name} has entries that are not positive; drop those points or give them a little mass")
    if not torch.isclose(r.sum(), c.sum(), rtol=1e-5, atol=0.0):
        raise ValueError(f"the marginals differ in mass: {float(r.sum())} and {float(c.sum())}; normalise both")
    return C, r, c * (r.sum() / c.sum())
