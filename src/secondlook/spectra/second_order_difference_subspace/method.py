r"""First and second differences of subspaces: velocity and acceleration on the Grassmann manifold (arXiv 2409.08563).

A subspace is given by an orthonormal basis Phi [D, r]. The canonical vectors a_i in S1 and b_i in S2 are the pairs
that come closest, at the canonical angles theta_i. The difference subspace D(S1, S2) is spanned by a_i - b_i, its
magnitude is sum |a_i - b_i|^2 = sum 2 (1 - cos theta_i); the mean subspace M(S1, S3) is spanned by a_i + b_i. As
x2 - (x1 + x3) / 2 is half a second difference with the sign turned, the second-order difference subspace is

    D2(S1, S2, S3) = D(S2, M(S1, S3))
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "Magnitudes",
    "canonical_angles",
    "difference_subspace",
    "magnitude",
    "mean_subspace",
    "second_order_difference",
    "second_order_magnitudes",
    "ssa_subspaces",
    "subspace",
    "subspace_magnitudes",
]

TOL = 1e-6  # rad; directions closer than this count as shared


def subspace(X: Tensor, r: int) -> Tensor:
    """Orthonormal basis [..., D, r] of the r leading left singular directions of X [..., D, m]."""
    if X.ndim < 2 or not 1 <= r <= min(X.shape[-2:]):
        raise ValueError(f"r must lie between 1 and the smaller side of X {list(X.shape)}, got {r}")
    return torch.linalg.svd(X, full_matrices=False).U[..., :r]


def _check(P1: Tensor, P2: Tensor) -> None:
    if P1.ndim < 2 or P2.ndim < 2 or P1.shape[-2] != P2.shape[-2]:
        raise ValueError(f"bases must be [..., D, r] with one D, got {list(P1.shape)} and {list(P2.shape)}")


def canonical_vectors(P1: Tensor, P2: Tensor) -> tuple[Tensor, Tensor]:
    """Canonical vectors a_i of span(P1) and b_i of span(P2), the columns of [..., D, min(r1, r2)], closest pair first.

    Raises:
        ValueError: for bases of different spaces.
    """
    _check(P1, P2)
    U, _, Vh = torch.linalg.svd(P1.mT @ P2, full_matrices=False)
    return P1 @ U, P2 @ Vh.mT


def canonical_angles(P1: Tensor, P2: Tensor) -> Tensor:
    """Angles [..., min(r1, r2)] between two subspaces in rad, in ascending order.

    From sines and cosines together (Bjorck and Golub 1973): either alone loses half the digits at one end.
    """
    _check(P1, P2)
    few, many = (P1, P2) if P1.shape[-1] <= P2.shape[-1] else (P2, P1)
    overlap = many.mT @ few
    sines = torch.linalg.svdvals(few - many @ overlap).flip(-1)
    return torch.atan2(sines, torch.linalg.svdvals(overlap))


def magnitude(P1: Tensor, P2: Tensor) -> Tensor:
    """Magnitude [...] of the difference subspace, sum 2 (1 - cos theta_i). About the sum of squared small angles."""
    a, b = canonical_vectors(P1, P2)
    return (a - b).square().sum((-2, -1))


def difference_subspace(P1: Tensor, P2: Tensor, tol: float = TOL) -> tuple[Tensor, Tensor]:
    """Orthonormal basis [D, k] of the difference subspace, and its magnitude.

    The same as the eigenvectors of P1 P1' + P2 P2' with eigenvalues between 0 and 1. Shared directions, at angles up
    to `tol`, are left out; so are directions without a partner when the dimensions differ (eigenvalue 1).
    """
    a, b = canonical_vectors(P1, P2)
    apart = (a - b).norm(dim=0)
    keep = apart > tol
    return (a - b)[:, keep] / apart[keep], apart.square().sum()


def mean_subspace(P1: Tensor, P3: Tensor, tol: float = TOL) -> Tensor:
    """Basis [..., D, min(r1, r3)] of the midpoint of the geodesic, the Karcher mean of two subspaces.

    The same as the eigenvectors of P1 P1' + P3 P3' with eigenvalues above 1.

    Raises:
        ValueError: where an angle is a right one, so that the shortest path is not unique.
    """
    a, b = canonical_vectors(P1, P3)
    together = (a + b).norm(dim=-2, keepdim=True)
    if (together < math.sqrt(2) * (1 + tol / 2)).any():
        raise ValueError("subspaces at a right angle have no unique mean; take a shorter time step")
    return (a + b) / together


def projection(P2: Tensor, P1: Tensor, P3: Tensor, tol: float = TOL) -> Tensor:
    """Basis [..., D, r] of omega, what span(P2) becomes when projected on the sum space span(P1) + span(P3)."""
    U, s, _ = torch.linalg.svd(torch.cat([P1, P3], -1), full_matrices=False)
    W = U * (s > tol).unsqueeze(-2)
    return subspace(W @ (W.mT @ P2), P2.shape[-1])


def second_order_difference(P1: Tensor, P2: Tensor, P3: Tensor, tol: float = TOL) -> dict[str, Tensor]:
    """The second-order difference subspace of three consecutive subspaces [D, r].

    Returns:
        `basis` [D, k], its `magnitude`, and its two parts: `orthogonal`, how far the middle one lies off the sum space
        of its neighbours, which holds their geodesic, and `along`, from there to their mean. The sum of the parts is
        about the magnitude.
    """
    basis, size = difference_subspace(P2, mean_subspace(P1, P3, tol), tol)
    _, along, orthogonal = second_order_magnitudes(P1, P2, P3, tol)
    return {"basis": basis, "magnitude": size, "along": along, "orthogonal": orthogonal}


def second_order_magnitudes(P1: Tensor, P2: Tensor, P3: Tensor, tol: float = TOL) -> tuple[Tensor, Tensor, Tensor]:
    """Magnitude of D2 and its parts along and orthogonal, each [...], of many triples at a time."""
    mean, omega = mean_subspace(P1, P3, tol), projection(P2, P1, P3, tol)
    return magnitude(P2, mean), magnitude(omega, mean), magnitude(P2, omega)


class Magnitudes(NamedTuple):
    """Of a sequence of T subspaces: `first` [T - 1]; `second`, `along` and `orthogonal` [T - 2] of its triples."""

    first: Tensor
    second: Tensor
    along: Tensor
    orthogonal: Tensor


def subspace_magnitudes(frames: Tensor) -> Magnitudes:
    """Magnitudes of first and second order along a sequence of bases [T, D, r], T at least 3."""
    if frames.ndim != 3 or len(frames) < 3:
        raise ValueError(f"frames must be [T, D, r] with T at least 3, got {list(frames.shape)}")
    first = magnitude(frames[:-1], frames[1:])
    return Magnitudes(first, *second_order_magnitudes(frames[:-2], frames[1:-1], frames[2:]))


def ssa_subspaces(series: Tensor, window: int, cols: int, r: int, step: int) -> Tensor:
    """Signal subspaces [T, window, r] of a time series [n], of a trajectory matrix every `step` samples.

    Each matrix holds `cols` windows of `window` samples, each window one sample later than the one before.
    """
    if series.ndim != 1 or min(window, cols, step) < 1:
        raise ValueError(
            f"a series is [n], and window, cols and step are positive; got {list(series.shape)}, {window, cols, step}"
        )
    if len(series) < window + cols - 1:
        raise ValueError(f"a series of {len(series)} samples is shorter than window + cols - 1 = {window + cols - 1}")
    return subspace(series.unfold(0, window, 1).unfold(0, cols, step), r)
