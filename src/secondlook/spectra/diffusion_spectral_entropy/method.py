"""Diffusion spectral entropy and mutual information (arXiv 2312.04823).

Points are joined to a graph by a Gaussian kernel, a random walk diffuses on it, and the entropy of the walk's
eigenvalues counts, softly, how many directions it tells apart. Everything is computed in float64, on the device of the
points; entropies are in bits.
"""

from __future__ import annotations

import math
import random
from typing import Any, Literal

import torch
from torch import Tensor

Normalisation = Literal["released", "row"]
NORMALISATIONS = ("released", "row")


def diffusion_spectrum(z: Any, sigma: float = 10.0, normalisation: Normalisation = "released") -> Tensor:
    """Eigenvalues `[..., N]`, ascending, of the diffusion operator on the points `z` `[..., N, D]`.

    With the kernel G_ij = exp(-|z_i - z_j|^2 / (2 sigma^2)) and the degrees D_G = diag(G 1):

    - ``released``: of K = D_G^{-1/2} G D_G^{-1/2}, what the authors' code decomposes. These are the eigenvalues of the
      plain random walk D_G^{-1} G.
    - ``row``: of P = D_K^{-1} K with D_K = diag(K 1), the diffusion matrix that the code's comment names: the
      anisotropic kernel K, normalised once more. Its largest eigenvalue is 1, too, but the others differ.

    Raises ValueError for bad options or points that are not finite.
    """
    z = _points(z)
    if sigma <= 0 or not math.isfinite(sigma):
        raise ValueError(f"sigma must be positive and finite, got {sigma}")
    if normalisation not in NORMALISATIONS:
        raise ValueError(f"normalisation must be one of {NORMALISATIONS}, got {normalisation!r}")
    # The kernel's factor 1 / (sigma sqrt(2 pi)) is left out: both normalisations cancel it.
    K = _symmetric(torch.exp(-_squared_distances(z) / (2 * sigma**2)))
    return torch.linalg.eigvalsh(K if normalisation == "released" else _symmetric(K))


def spectral_entropy(eigenvalues: Tensor, t: float = 1) -> Tensor:
    """-sum p log2 p with p = |e|^t / sum |e|^t + eps, of eigenvalues `[..., N]`: `[...]`, 0 to log2 N bits."""
    if t <= 0:
        raise ValueError(f"the diffusion time t must be positive, got {t}")
    powered = eigenvalues.double().abs() ** t
    p = powered / powered.sum(-1, keepdim=True) + torch.finfo(torch.float64).eps
    return -(p * p.log2()).sum(-1)


def diffusion_spectral_entropy(
    z: Any,
    sigma: float = 10.0,
    t: float = 1,
    max_n: int = 10000,
    normalisation: Normalisation = "released",
    seed: int | random.Random = 0,
) -> float:
    """Entropy of the diffusion operator's spectrum, 0 to log2 N bits.

    Args:
        z: points, `[N, D]`, tensor or array.
        sigma: bandwidth of the kernel, in the units of `z`. A fixed one makes the value follow the scale of `z`;
            `median_distance` gives one that does not.
        t: diffusion time, the power of the eigenvalues.
        max_n: of more points than these a random subset is used.
        normalisation: see `diffusion_spectrum`.
        seed: of the subset, or the stream it is drawn from.
    """
    z = _cloud(z)
    if max_n < 1:
        raise ValueError(f"max_n must be positive, got {max_n}")
    if len(z) > max_n:
        z = z[_stream(seed).sample(range(len(z)), max_n)]
    return float(spectral_entropy(diffusion_spectrum(z, sigma, normalisation), t))


def diffusion_spectral_mutual_information(
    z: Any,
    y: Any,
    sigma: float = 10.0,
    t: float = 1,
    n_clusters: int = 10,
    repeats: int = 5,
    seed: int | random.Random = 0,
    normalisation: Normalisation = "released",
) -> float:
    """What `y` says about the diffusion entropy of `z`, in bits: sum_c (n_c / N) [DSE(Z*) - DSE(Z | Y = c)].

    Entropies are bounded by log2 of the number of points, so DSE(Z*) is the mean over `repeats` random subsets of all
    points that are as large as the class c. The value can be negative. No class is cut to a largest size.

    Args:
        z: points, `[N, D]`.
        y: what is known about them, one row a point, see `discretise`.
        seed: of the subsets. The same one is used again for every class, as in the authors' code; a stream
            (`random.Random`) runs on instead.
    """
    z, classes = _cloud(z), discretise(y, n_clusters).to("cpu")
    if len(z) != len(classes):
        raise ValueError(f"z has {len(z)} rows and y has {len(classes)}; they must match")
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    total = 0.0
    for c in classes.unique():
        members = (classes == c).nonzero().flatten().tolist()
        stream = _stream(seed)
        subsets = [stream.sample(range(len(z)), len(members)) for _ in range(repeats)]
        rows = torch.tensor([members, *subsets])
        entropies = spectral_entropy(diffusion_spectrum(z[rows], sigma, normalisation), t)
        total += len(members) / len(z) * float(entropies[1:].mean() - entropies[0])
    return total


def discretise(y: Any, n_clusters: int = 10) -> Tensor:
    """Classes `[N]` of the rows of `y`.

    One column of integers is taken as it is; of real numbers, it is cut into `n_clusters` bins of equal width over its
    range; several columns are clustered spectrally (nearest-neighbour graph).
    """
    y = torch.as_tensor(y)
    if y.ndim == 0 or not len(y):
        raise ValueError(f"y must have one row a point, got shape {tuple(y.shape)}")
    y = y.reshape(len(y), -1)
    if y.shape[1] == 1 and not y.is_floating_point():
        return y[:, 0].long()
    if n_clusters < 1:
        raise ValueError(f"n_clusters must be positive, got {n_clusters}")
    if y.shape[1] == 1:
        return _cells(y.double(), n_clusters)[:, 0]
    from sklearn.cluster import SpectralClustering

    clustering = SpectralClustering(
        n_clusters, affinity="nearest_neighbors", assign_labels="cluster_qr", random_state=0
    )
    return torch.from_numpy(clustering.fit(y.cpu().double().numpy()).labels_).long()


def binned_shannon_entropy(z: Any, bins: int = 2) -> float:
    """The classic baseline: Shannon entropy, in bits, of the occupied cells of a grid with `bins` cells a dimension.

    Every dimension of `z` `[N, D]` is scaled to its range. With D in the hundreds nearly every point has a cell of its
    own, and the value is log2 N whatever the points are.
    """
    if bins < 1:
        raise ValueError(f"bins must be positive, got {bins}")
    cells = _cells(_cloud(z), bins)
    _, counts = torch.unique(cells, dim=0, return_counts=True)
    p = counts.double() / len(cells)
    return float(-(p * p.log2()).sum())


def median_distance(z: Any) -> float:
    """Median distance between two of the points `[N, D]`: a bandwidth that follows the scale of the points."""
    z = _cloud(z)
    if len(z) < 2:
        raise ValueError("a distance needs two points")
    i, j = torch.triu_indices(len(z), len(z), 1, device=z.device)
    return float(_squared_distances(z)[i, j].median().sqrt())


def _cloud(z: Any) -> Tensor:
    """One set of points, `[N, D]`."""
    z = _points(z)
    if z.ndim != 2:
        raise ValueError(f"points must be rows of a matrix [N, D], got shape {tuple(z.shape)}; flatten the rest")
    return z


def _points(z: Any) -> Tensor:
    z = torch.as_tensor(z)
    if z.ndim < 2 or not z.shape[-2]:
        raise ValueError(f"points must be rows of a matrix [N, D], got shape {tuple(z.shape)}")
    z = z.double()
    if not bool(z.isfinite().all()):
        raise ValueError("points must be finite; there are NaN or infinite entries")
    return z


def _squared_distances(z: Tensor) -> Tensor:
    """|z_i - z_j|^2, `[..., N, N]`. Centring first keeps the differences of large numbers small."""
    z = z - z.mean(-2, keepdim=True)
    norms = z.square().sum(-1)
    distances = (norms.unsqueeze(-1) + norms.unsqueeze(-2) - 2 * z @ z.mT).clamp_(min=0)
    distances.diagonal(dim1=-2, dim2=-1).zero_()
    return distances


def _symmetric(G: Tensor) -> Tensor:
    """D^{-1/2} G D^{-1/2} with D = diag(G 1)."""
    scale = G.sum(-1).rsqrt()
    return scale.unsqueeze(-1) * G * scale.unsqueeze(-2)


def _cells(z: Tensor, bins: int) -> Tensor:
    """Index of the bin of every entry, `[N, D]`; bins have equal width over a column's range, the last is closed."""
    low, high = z.min(0).values, z.max(0).values
    width = torch.where(high > low, high - low, 1.0)  # a constant column has one cell
    return ((z - low) * bins / width).floor().long().clamp_(max=bins - 1)


def _stream(seed: int | random.Random) -> random.Random:
    """A stream of its own: the global one is not touched, and has the same draws as one seeded alike."""
    return seed if isinstance(seed, random.Random) else random.Random(seed)
