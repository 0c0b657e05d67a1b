"""The operator of a data augmentation, its function space, and masking on the hypercube (arXiv 2306.00788).

An augmentation draws a view A of an input X by p(a | x). It averages functions of views to functions of inputs,
(Gamma* g)(x) = E[g(A) | x]. What can be written so is the augmentation's RKHS; its kernel is that of Gamma* Gamma.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor

MASKS = ("random", "fixed", "block")


class AugmentationOperator:
    """Gamma* of an augmentation with finitely many inputs and views. See `from_table`.

    Functions of inputs are vectors `[n_x]` or columns `[n_x, d]`, functions of views `[n_a]` or `[n_a, d]`; their inner
    products are those of L2(P_X) and L2(P_A).
    """

    def __init__(self, p_a_given_x: Tensor, p_x: Tensor) -> None:
        if p_a_given_x.ndim != 2 or p_x.shape != p_a_given_x.shape[:1]:
            raise ValueError(
                f"need a table [n_x, n_a] and p_x [n_x], got {tuple(p_a_given_x.shape)} and {tuple(p_x.shape)}"
            )
        if (p_a_given_x < 0).any() or (p_x <= 0).any():
            raise ValueError("probabilities of views must not be negative, and those of inputs must be positive")
        p_a_given_x, p_x = p_a_given_x.double(), p_x.double()
        ones = torch.ones_like(p_x)
        if not torch.allclose(p_a_given_x.sum(1), ones, atol=1e-9) or abs(float(p_x.sum()) - 1) > 1e-9:
            raise ValueError("every row of the table must sum to one, and p_x too")
        seen = p_x @ p_a_given_x > 0  # views that never occur play no part
        self.table, self.p_x = p_a_given_x[:, seen], p_x
        self.p_a = p_x @ self.table  # the marginal over all inputs; one over a sample would change the kernel

    @classmethod
    def from_table(cls, p_a_given_x: Tensor, p_x: Tensor) -> AugmentationOperator:
        """From p(a | x), `[n_x, n_a]` with rows that sum to one, and p(x), `[n_x]`. ValueError for anything else."""
        return cls(p_a_given_x, p_x)

    def average(self, g: Tensor) -> Tensor:
        """Gamma* g: the mean over the views of every input."""
        return self.table @ g.to(self.table)

    def lift(self, f: Tensor) -> Tensor:
        """Gamma f: the mean over the inputs behind every view."""
        joint = (self.table * self.p_x.unsqueeze(1) / self.p_a).T  # p(x | a)
        return joint @ f.to(joint)

    def kernel_x(self) -> Tensor:
        """K_X(x, x') = sum_a p(a | x) p(a | x') / p(a), `[n_x, n_x]`: the kernel of Gamma* Gamma."""
        return (self.table / self.p_a) @ self.table.T

    def kernel_a(self) -> Tensor:
        """K_A(a, a') = sum_x p(x | a) p(x | a') / p(x), `[n_a, n_a]`: the kernel of Gamma Gamma*."""
        scaled = self.table / self.p_a
        return scaled.T @ (self.p_x.unsqueeze(1) * scaled)

    def spectrum(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues `[n_x]` of Gamma* Gamma, largest (1) first, and eigenfunctions `[n_x, n_x]`, its columns.

        The eigenfunctions are orthonormal in L2(P_X).
        """
        root = self.p_x.sqrt()
        eigenvalues, vectors = torch.linalg.eigh(root.unsqueeze(1) * self.kernel_x() * root)
        return eigenvalues.flip(0), vectors.flip(1) / root.unsqueeze(1)

    def complexity(self) -> float:
        """The augmentation complexity kappa^2 = max_x K_X(x, x)."""
        return float((self.table.square() / self.p_a).sum(1).max())

    def soft_invariance(self, f: Tensor) -> float:
        """The smallest epsilon with (1 - epsilon) ||f||_H^2 <= ||f||^2, for a function `[n_x]`: 0 if no view loses it.

        It is 1 for what lies outside of the space, whose norm is infinite.
        """
        eigenvalues, psi = self.spectrum()
        u = (psi.T @ (self.p_x * f.to(psi))).square()
        inside = eigenvalues > 1e-12 * eigenvalues[0]
        total = float(u.sum())
        if total == 0:
            raise ValueError("the zero function is invariant under everything; there is no epsilon to give")
        if float(u[~inside].sum()) > 1e-12 * total:
            return 1.0
        return 1 - total / float((u[inside] / eigenvalues[inside]).sum())

    def ratio_trace(self, phi: Tensor) -> float:
        """Tr(E[phi phi^T]^-1 E[psi psi^T]) of an encoder of views `[n_a, d]` and its average psi = Gamma* phi.

        At most the sum of the d largest eigenvalues; what lacks is the trace gap.
        """
        phi, psi = phi.to(self.table), self.average(phi)
        on_views, on_inputs = phi.T @ (self.p_a.unsqueeze(1) * phi), psi.T @ (self.p_x.unsqueeze(1) * psi)
        return float(torch.linalg.solve(on_views, on_inputs).trace())

    def approximation_error(self, psi: Tensor) -> float:
        """Largest squared distance to the span of psi `[n_x, d]` of a function in the unit ball of the space.

        With P the projection onto the span it is the largest eigenvalue of (1 - P) Gamma* Gamma (1 - P).
        """
        root = self.p_x.sqrt().unsqueeze(1)
        K = root * self.kernel_x() * root.T
        basis = torch.linalg.qr(root * psi.to(K)).Q
        rest = K - basis @ (basis.T @ K)
        return float(torch.linalg.eigvalsh(rest - (rest @ basis) @ basis.T)[-1])


def hypercube(dim: int) -> Tensor:
    """All points of {-1, 1}^dim, `[2^dim, dim]`."""
    bits = torch.arange(2**dim).unsqueeze(1) >> torch.arange(dim)
    return 2.0 * (bits & 1).double() - 1


def masks(kind: str, dim: int, alpha: float) -> tuple[Tensor, Tensor]:
    """Which coordinates stay visible, `[m, dim]` of booleans, and how probable each choice is, `[m]`.

    ``random`` masks every coordinate independently with probability alpha, ``fixed`` a uniformly drawn set of
    round(alpha dim) of them, ``block`` that many in a row, from a uniform start and around the end.
    """
    if kind not in MASKS:
        raise ValueError(f"kind must be one of {MASKS}, got {kind!r}")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must lie in [0, 1], got {alpha}")
    size = round(alpha * dim)
    if kind == "random":
        visible = hypercube(dim) > 0
        shown = visible.sum(1)
        return visible, (1 - alpha) ** shown.double() * alpha ** (dim - shown).double()
    if kind == "fixed":
        hidden: Sequence[tuple[int, ...]] = list(combinations(range(dim), size))
    else:
        hidden = [tuple((start + k) % dim for k in range(size)) for start in range(dim)]
    visible = torch.ones(len(hidden), dim, dtype=torch.bool)
    for row, places in zip(visible, hidden, strict=True):
        row[list(places)] = False
    return visible, torch.full((len(hidden),), 1 / len(hidden), dtype=torch.float64)


def mask_table(visible: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """p(a | x) for uniform x in the hypercube, `[2^dim, n_a]`, and the views `[n_a, dim]`, with 0 where masked."""
    dim = visible.shape[1]
    symbols = hypercube(dim).unsqueeze(1) * visible.double()  # [2^dim, m, dim]
    code = ((symbols + 1).long() * 3 ** torch.arange(dim)).sum(2)
    codes, place = code.unique(return_inverse=True)
    table = torch.zeros(len(code), len(codes), dtype=torch.float64)
    table.scatter_add_(1, place, weights.expand_as(place).contiguous())
    views = torch.empty(len(codes), dim, dtype=torch.float64)
    views[place.flatten()] = symbols.flatten(0, 1)
    return table, views


def mask_eigenvalues(visible: Tensor, weights: Tensor) -> Tensor:
    """Eigenvalues `[2^dim]`, largest first, of masking on the uniform hypercube, in closed form.

    The eigenfunctions are the parities; the eigenvalue of a parity is the probability that none of its coordinates is
    masked, (1 - alpha)^degree for independent masks. Their sum is kappa^2 = E[2^visible], then (2 - alpha)^dim.
    """
    needed = hypercube(visible.shape[1]) > 0
    lost = needed.double() @ (~visible).double().T  # masked coordinates of every parity, under every mask
    return ((lost == 0).double() @ weights).sort(descending=True).values


def random_mask_kernel(x: Tensor, x2: Tensor, alpha: float) -> Tensor:
    """K_X(x, x') = prod_j (1 + (1 - alpha) x_j x'_j) for rows of {-1, 1}^dim: `[n, dim]`, `[m, dim]` to `[n, m]`.

    That of independent masks with probability alpha on the uniform hypercube.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must lie in [0, 1], got {alpha}")
    dim = x.shape[1]
    equal = (dim + x.double() @ x2.double().T) / 2  # coordinates that agree
    return (2 - alpha) ** equal * alpha ** (dim - equal)


def kernel_ridge(K: Tensor, y: Tensor, ridges: Tensor) -> tuple[Tensor, float]:
    """RKHS regression: dual weights from the kernel `[n, n]` and labels `[n]` or `[n, k]`, and the ridge they are for.

    The one of `ridges` with the smallest leave-one-out error, in closed form, is taken. Predictions are K(x, .) times
    the dual weights.
    """
    eigenvalues, vectors = torch.linalg.eigh(K)
    coefficients = vectors.T @ y.reshape(len(K), -1).to(K)
    best = (torch.inf, None, 0.0)
    for ridge in ridges.tolist():
        inverse = 1 / (eigenvalues.clamp(min=0) + ridge)
        dual = vectors @ (inverse.unsqueeze(1) * coefficients)
        left_out = dual / (vectors.square() @ inverse).unsqueeze(1)  # residuals of points that were left out
        best = min(best, (float(left_out.square().mean()), dual, ridge), key=lambda found: found[0])
    _, dual, ridge = best
    if dual is None:
        raise ValueError("kernel and labels must be finite, and ridges positive")
    return dual.reshape(y.shape), ridge


def top_d_probe(psi: Tensor, d: int, idx: Tensor, y: Tensor, ridge: float = 0.0) -> Tensor:
    """Least squares on the first d columns of psi `[n_x, >= d]`, fitted on rows idx `[n]` to y `[n]`: values `[n_x]`.

    `ridge` times the squared weights is added to the mean squared error. Of columns psi_i sqrt(lambda_i) that is the
    squared norm in the RKHS. Without a ridge, the solution of smallest norm.
    """
    if not 1 <= d <= psi.shape[1]:
        raise ValueError(f"d must lie between 1 and the {psi.shape[1]} columns, got {d}")
    if ridge < 0:
        raise ValueError(f"ridge must not be negative, got {ridge}")
    features = psi[:, :d]
    A, b = features[idx], y.to(features)
    if ridge:
        A = torch.cat([A, math.sqrt(ridge * len(idx)) * torch.eye(d).to(A)])
        b = torch.cat([b, b.new_zeros(d)])
    return features @ (torch.linalg.pinv(A) @ b)


def spectral_contrastive_loss(one: Tensor, two: Tensor) -> Tensor:
    """-2 E[f(a)^T f(a+)] + E[(f(a)^T f(a'))^2] of two views each of n inputs, `[n, d]` and `[n, d]`.

    Its minimum over all functions spans the top d eigenfunctions of Gamma Gamma* (HaoChen et al., 2021).
    """
    n = len(one)
    products = one @ two.T
    positive = products.diagonal()
    negative = (products.square().sum() - positive.square().sum()) / (n * (n - 1))
    return -2 * positive.mean() + negative
