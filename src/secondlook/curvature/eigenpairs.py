r"""Eigenpairs, and what is certain about them.

For a unit vector x with residual $r = \|A x - \theta x\|$ some eigenvalue of the symmetric A lies within r of
$\theta$. Orthonormal vectors whose intervals overlap share one statement: c of them with residuals $r_1 \dots r_c$
can be paired with c eigenvalues, each within $\sqrt{r_1^2 + \dots + r_c^2}$ (Kahan 1967). So k intervals always
speak of k different eigenvalues, counted with multiplicity.

That none was skipped is another matter. m Lanczos steps from a random start miss the largest eigenvalue by more than
$\epsilon (\lambda_{max} - \lambda_{min})$ with probability at most $1.648 \sqrt n e^{-\sqrt\epsilon (2m - 1)}$
(Kuczynski and Wozniakowski 1992), for any A, which bounds the whole spectrum.
"""

from dataclasses import dataclass, replace
from math import inf, log, sqrt

import torch
from torch import Tensor

from secondlook.curvature.linear import SymmetricOperator, check_finite

__all__ = ["Eigenpairs", "certify"]


@dataclass(frozen=True)
class Eigenpairs:
    """Approximate eigenvalues `[k]`, unit eigenvectors `[n, k]`, residual norms `[k]`, and what they cost.

    An exact eigenvalue lies within `residuals[i]` of `values[i]` (up to rounding). `products` counts matrix-vector
    products; `converged` says whether every residual met the tolerance asked for. `extremes` are the smallest and the
    largest Ritz value met, after `steps` Lanczos steps, which is infinite where the Krylov space was exhausted.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    products: int
    converged: bool = True
    extremes: tuple[float, float] = (-inf, inf)
    steps: float = 0

    def interval(self) -> tuple[Tensor, Tensor]:
        """Lower and upper ends, `[k]`: the exact matrix has k different eigenvalues, one to each interval.

        Needs orthonormal vectors, as `eigsh` and `certify` give them. No chance is involved, but rounding is: the
        matrix is the one that the products show, and 32 units of rounding of its norm are added to the residuals.
        """
        order = self.values.argsort()
        scale = float(self.values.abs().max()) if len(self.values) else 0.0
        finite = [abs(e) for e in self.extremes if abs(e) < inf]
        rounding = 32 * torch.finfo(self.values.dtype).eps * max([scale, *finite])
        values, residuals = self.values[order].tolist(), (self.residuals[order] + rounding).tolist()
        groups: list[tuple[float, float, float, int]] = []  # first and last value, squared reach, members
        for value, residual in zip(values, residuals, strict=True):
            group = (value, value, residual**2, 1)
            while groups and groups[-1][1] + sqrt(groups[-1][2]) >= group[0] - sqrt(group[2]):
                last = groups.pop()
                group = (last[0], group[1], last[2] + group[2], last[3] + group[3])
            groups.append(group)
        reach = self.values.new_tensor([sqrt(g[2]) for g in groups for _ in range(g[3])])
        reach = reach[order.argsort()]
        return self.values - reach, self.values + reach

    def bounds(self, failure: float = 0.01) -> tuple[float, float]:
        """An interval that holds the whole spectrum, with probability at least `1 - failure` over a Gaussian start.

        Infinite where there were too few steps to say anything.
        """
        if not 0 < failure < 1:
            raise ValueError(f"failure is a probability between 0 and 1, got {failure}")
        low, high = self.extremes
        n = len(self.vectors)
        slack = (log(1.648 * sqrt(n) * 2 / failure) / (2 * self.steps - 1)) ** 2 if self.steps >= 1 else inf
        if slack >= 0.5:
            return -inf, inf
        # One width at either end may be missing, and the width itself is known up to both.
        missing = slack * (high - low) / (1 - 2 * slack)
        missing += 32 * torch.finfo(self.values.dtype).eps * max(abs(low), abs(high))
        return low - missing, high + missing


def certify(A: Tensor | SymmetricOperator, pairs: Eigenpairs) -> Eigenpairs:
    """The same pairs, with vectors made orthonormal, Rayleigh quotients as values and residuals computed afresh.

    One block product, `k` vectors wide. `eigsh` knows its residuals from a recurrence; this one trusts nothing.
    """
    x = torch.linalg.qr(pairs.vectors)[0]
    w = A @ x
    check_finite(w)
    inner = x.T @ w
    values, s = torch.linalg.eigh((inner + inner.T) / 2)
    place = pairs.values.argsort().argsort()  # ascending, as eigh gives them, back to the order they came in
    values, s = values[place], s[:, place]
    x, w = x @ s, w @ s
    residuals = torch.linalg.vector_norm(w - x * values, dim=0)
    return replace(pairs, values=values, vectors=x, residuals=residuals, products=pairs.products + x.shape[1])
