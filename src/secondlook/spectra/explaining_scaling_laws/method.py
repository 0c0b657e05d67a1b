"""How the loss of a random-feature model falls with data and parameters, and how to measure the exponents.

Bahri, Dyer, Kaplan, Lee, Sharma, "Explaining Neural Scaling Laws" (2021). A teacher w . F(x) with S features and
w ~ N(0, I / S) is learned by a student whose features are P random projections, proj F(x), from D points. With
C = E[F F^T] and losses averaged over teachers,

    L(P)    = Tr[C - C proj^T (proj C proj^T)^-1 proj C] / (2 S)         (all the data)
    L(D)    = Tr[C - C X^T (X X^T)^-1 X] / (2 S)                         (all the features; X has D rows F(x))
    L(D, P) = Tr[R^T C R] / (2 S),   R = I - proj^T (X proj^T)^+ X.

`cov` is C as a matrix `[S, S]`, or its diagonal `[S]` where the features are uncorrelated.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "Exponent",
    "TeacherStudent",
    "fit_exponent",
    "kernel_spectrum_exponent",
    "rf_loss",
    "rf_loss_infinite_data",
    "rf_loss_infinite_width",
]


class Exponent(NamedTuple):
    """A loss falls like size^-alpha; `stderr` is the standard error of the log-log fit."""

    alpha: float
    stderr: float


def rf_loss_infinite_data(cov: Tensor, proj: Tensor) -> Tensor:
    """L(P), a 0-d tensor, for projections `[P, S]`: what no combination of the P features explains.

    Raises:
        ValueError: shapes disagree, or the projected features are linearly dependent (P beyond the rank of C).
    """
    _check(cov, proj)
    projected = _times(proj, cov)
    explained = _solve_lower(projected @ proj.T, projected).square().sum()
    return (_trace(cov) - explained) / (2 * proj.shape[1])


def rf_loss_infinite_width(cov: Tensor, X: Tensor) -> Tensor:
    """L(D), a 0-d tensor, for the features `[D, S]` of the training points: interpolation of least norm.

    The dual of `rf_loss_infinite_data`: for X = Z C^(1/2) it is L(P) with Z for the projections.

    Raises:
        ValueError: shapes disagree, or the points' features are linearly dependent (D > S, or a repeated point).
    """
    _check(cov, X)
    basis = _solve_lower(X @ X.T, X)  # orthonormal rows that span the training points
    explained = (_times(basis, cov) * basis).sum()
    return (_trace(cov) - explained) / (2 * X.shape[1])


def rf_loss(cov: Tensor, proj: Tensor, X: Tensor) -> Tensor:
    """L(D, P), a 0-d tensor, for projections `[P, S]` and training features `[D, S]`: least squares of least norm."""
    _check(cov, proj)
    _check(cov, X)
    A = X @ proj.T
    if len(X) >= proj.shape[0]:
        learned = torch.cholesky_solve(A.T @ X, _cholesky(A.T @ A))
    else:
        learned = A.T @ torch.cholesky_solve(X, _cholesky(A @ A.T))
    R = -proj.T @ learned
    R.diagonal().add_(1)
    return (R * _times(R.T, cov).T).sum() / (2 * X.shape[1])


def fit_exponent(
    sizes: Sequence[float] | Tensor,
    losses: Sequence[float] | Tensor,
    offset: float | Sequence[float] | Tensor | None = None,
    window: tuple[float, float] | None = None,
) -> Exponent:
    """Least squares of log(loss - offset) on log size, within `window` (smallest and largest size).

    Give the known limit as `offset` in a variance-limited regime: one that is fitted biases the exponent.

    Raises:
        ValueError: fewer than three sizes, or a loss at or below the offset.
    """
    sizes, losses = (torch.as_tensor(v, dtype=torch.float64, device="cpu") for v in (sizes, losses))
    if offset is not None:
        losses = losses - torch.as_tensor(offset, dtype=torch.float64, device="cpu")
    if window is not None:
        inside = (sizes >= window[0]) & (sizes <= window[1])
        sizes, losses = sizes[inside], losses[inside]
    if len(sizes) < 3:
        raise ValueError(f"an exponent needs at least three sizes, got {len(sizes)}: widen the window")
    if not bool((losses > 0).all()):
        raise ValueError("losses must lie above the offset, or there is no logarithm of the excess")
    x, y = sizes.log(), losses.log()
    x, y = x - x.mean(), y - y.mean()
    slope = (x @ y) / (x @ x)
    left = (y - slope * x).square().sum() / (len(x) - 2)
    return Exponent(-float(slope), float((left / (x @ x)).sqrt()))


def kernel_spectrum_exponent(K: Tensor, window: tuple[int, int]) -> float:
    """alpha_K of a symmetric matrix `[N, N]` whose eigenvalues fall like i^-(1 + alpha_K) for ranks i in `window`.

    Ranks count from 1, both ends included; they are weighted alike per octave, as doubling sizes weigh a loss.
    """
    first, last = window
    if not 1 <= first < last <= len(K):
        raise ValueError(f"a window of ranks within 1 and {len(K)} is needed, got {window}")
    values = torch.linalg.eigvalsh(K).flip(0)
    octaves = math.log2(last / first)
    ranks = (first * 2 ** torch.linspace(0, octaves, max(3, 4 * round(octaves) + 1))).round().long().unique()
    return fit_exponent(ranks, values[ranks.to(values.device) - 1]).alpha - 1


class TeacherStudent:
    """`members` independent pairs of networks on a `dim`-dimensional cube: a random teacher, and a student that learns.

    Both have `depth` hidden ReLU layers (0: a linear map) and one output; the students are `width` wide and the
    teachers `teacher_width`. Inputs are uniform on [-1/2, 1/2]^dim; teachers are scaled to zero mean and variance one.
    """

    def __init__(
        self,
        dim: int,
        width: int,
        depth: int = 2,
        *,
        teacher_width: int = 64,
        teacher_depth: int = 2,
        members: int = 1,
        generator: torch.Generator | None = None,
        device: str | torch.device = "cpu",
    ):
        if min(dim, width, teacher_width, members) < 1 or min(depth, teacher_depth) < 0:
            raise ValueError("dim, widths and members must be positive, depths at least 0")
        self.dim, self.members, self.device, self.generator = dim, members, device, generator
        self.teacher = self._network([dim] + [teacher_width] * teacher_depth + [1])
        self.student = self._network([dim] + [width] * depth + [1])
        self.shift, self.scale = 0.0, 1.0
        values = self.points(4096)[1]
        self.shift, self.scale = values.mean(1, keepdim=True), values.std(1, keepdim=True)

    def points(self, count: int) -> tuple[Tensor, Tensor]:
        """Fresh inputs `[members, count, dim]` and the teachers' values `[members, count]`."""
        shape = (self.members, count, self.dim)
        x = torch.rand(shape, generator=self.generator, device=self.device) - 0.5
        return x, (self._forward(self.teacher, x) - self.shift) / self.scale

    def fit(self, x: Tensor, y: Tensor, steps: int, lr: float) -> Tensor:
        """Train the students by Adam on all points, the rate falling to zero by a cosine; losses `[members]`."""
        params = [p.requires_grad_() for p in self.student]
        optimizer = torch.optim.Adam(params, lr=lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            optimizer.zero_grad()
            self.losses(x, y).sum().backward()
            optimizer.step()
            schedule.step()
        for p in params:
            p.requires_grad_(False)
        return self.losses(x, y)

    def losses(self, x: Tensor, y: Tensor) -> Tensor:
        """Half the mean squared distance of each student to values `[members, N]` at `[members, N, dim]`."""
        return (self._forward(self.student, x) - y).square().mean(1) / 2

    def _network(self, sizes: Sequence[int]) -> list[Tensor]:
        weights = []
        for into, out in pairwise(sizes):
            shape = (self.members, into + 1, out)  # the last row is the bias
            weights.append(torch.randn(shape, generator=self.generator, device=self.device) * math.sqrt(2 / into))
        return weights

    @staticmethod
    def _forward(weights: list[Tensor], x: Tensor) -> Tensor:
        for i, w in enumerate(weights):
            x = torch.baddbmm(w[:, -1:], torch.relu(x) if i else x, w[:, :-1])
        return x.squeeze(2)


def _times(rows: Tensor, cov: Tensor) -> Tensor:
    return rows * cov if cov.ndim == 1 else rows @ cov


def _trace(cov: Tensor) -> Tensor:
    return cov.sum() if cov.ndim == 1 else cov.trace()


def _cholesky(gram: Tensor) -> Tensor:
    L, info = torch.linalg.cholesky_ex(gram)
    if int(info):
        raise ValueError(
            f"the Gram matrix {list(gram.shape)} is not positive definite: take fewer points or projections than the "
            "features have rank, leave out repeated points, and use float64"
        )
    return L


def _solve_lower(gram: Tensor, rows: Tensor) -> Tensor:
    """L^-1 rows for gram = L L^T."""
    return torch.linalg.solve_triangular(_cholesky(gram), rows, upper=False)


def _check(cov: Tensor, rows: Tensor) -> None:
    S = rows.shape[-1]
    if rows.ndim != 2 or tuple(cov.shape) not in ((S,), (S, S)):
        raise ValueError(
            f"cov is [S, S] or [S] and the other matrix [., S], got {list(cov.shape)} and {list(rows.shape)}"
        )
