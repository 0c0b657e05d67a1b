r"""DeepZero: networks trained from values of the loss alone (Chen et al. 2023).

Coordinate-wise estimate (CGE), one query for every coordinate and one for the base point:

    g_i = (l(theta + mu e_i) - l(theta)) / mu

Random estimate (RGE) from q Gaussian directions u_j over all parameters together:

    g = 1/q sum_j (l(theta + mu u_j) - l(theta)) / mu  u_j

All queries of a chunk are one batched forward pass. A loss is a function of a list of tensors that `torch.func.vmap`
can batch: no change of buffers, no branching on values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.func import vmap

from secondlook.curvature import numel, pack, unpack

__all__ = ["cge", "layer_masks", "rge", "zo_grasp"]

Loss = Callable[[list[Tensor]], Tensor]


def _check(mu: float, chunk: int) -> None:
    if not (math.isfinite(mu) and mu > 0):
        raise ValueError(f"mu must be a positive number, got {mu!r}; 5e-3 is the published one")
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk!r}")


@torch.no_grad()
def cge(
    loss_fn: Loss,
    params: Sequence[Tensor],
    mu: float = 5e-3,
    mask: Sequence[Tensor] | None = None,
    chunk: int = 256,
    base: Tensor | None = None,
) -> list[Tensor]:
    """Coordinate-wise finite differences of `loss_fn(params)`, shaped like `params`.

    `mask`, Boolean tensors shaped like `params`, says which coordinates are queried; all others get 0. `base` is the
    loss at `params` where it is known already. Costs a query for each coordinate, and one where `base` is None; `chunk`
    of them run together. The error of entry i is mu H_ii / 2 to first order in mu.
    """
    _check(mu, chunk)
    params = list(params)
    theta = pack(params)
    if mask is not None and [m.shape for m in mask] != [p.shape for p in params]:
        raise ValueError("mask must have one Boolean tensor for each parameter, of its shape")
    places = torch.arange(len(theta), device=theta.device) if mask is None else pack(mask).nonzero()[:, 0]
    base = loss_fn(unpack(theta, params)) if base is None else base
    out = torch.zeros_like(theta)
    for some in places.split(chunk):
        points = theta.repeat(len(some), 1)
        points[torch.arange(len(some), device=some.device), some] += mu
        out[some] = (vmap(lambda point: loss_fn(unpack(point, params)))(points) - base) / mu
    return unpack(out, params)


@torch.no_grad()
def rge(
    loss_fn: Loss,
    params: Sequence[Tensor],
    mu: float = 5e-3,
    q: int = 1,
    generator: torch.Generator | None = None,
    directions: Tensor | None = None,
    chunk: int = 256,
    base: Tensor | None = None,
) -> list[Tensor]:
    """Mean of `q` differences along Gaussian directions, each times its direction; shaped like `params`.

    Unbiased up to O(mu); the expected squared error is (d + 1) / q times |gradient|^2 for d coordinates.
    `directions` [q, d] replaces the draws, and then `q` and `generator` are not used. Costs q queries, and one
    where `base` is None.
    """
    _check(mu, chunk)
    params = list(params)
    theta = pack(params)
    if directions is None:
        if q < 1:
            raise ValueError(f"q must be at least 1, got {q!r}")
        if generator is None:
            raise ValueError("rge draws its directions: hand in a generator, or the directions [q, d]")
        device = generator.device
        drawn = torch.randn(q, len(theta), generator=generator, dtype=theta.dtype, device=device)
        directions = drawn.to(theta.device)
    base = loss_fn(unpack(theta, params)) if base is None else base
    out = torch.zeros_like(theta)
    for u in directions.split(chunk):
        rises = vmap(lambda point: loss_fn(unpack(point, params)))(theta + mu * u) - base
        out += (rises / mu) @ u
    return unpack(out / len(directions), params)


@torch.no_grad()
def zo_grasp(
    loss_fn: Loss,
    params: Sequence[Tensor],
    q: int = 192,
    mu: float = 5e-3,
    keep: float = 0.2,
    directions: tuple[Tensor, Tensor] | None = None,
    generator: torch.Generator | None = None,
) -> list[float]:
    """The share of each parameter tensor that ZO-GraSP keeps, `keep` of all weights together.

    Two random estimates of the gradient, at theta and at theta + mu g, make H g; the score of a weight is -theta (H g),
    and those largest in absolute value are kept, as the released code does. Tensors of one axis (biases, normalisation)
    are kept whole and not counted. `directions` are the two draws [q, d].
    """
    if not 0 < keep <= 1:
        raise ValueError(f"keep must lie in (0, 1], got {keep!r}")
    params = list(params)
    scores = [s.abs() for s in grasp_scores(loss_fn, params, q, mu, directions, generator)]
    weights = [s for s in scores if s.ndim > 1]
    if not weights:
        raise ValueError("no parameter has two axes or more: there is nothing to prune")
    least = pack(weights).topk(max(1, round(keep * numel(weights)))).values[-1]
    return [float((s >= least).double().mean()) if s.ndim > 1 else 1.0 for s in scores]


@torch.no_grad()
def grasp_scores(
    loss_fn: Loss,
    params: Sequence[Tensor],
    q: int,
    mu: float,
    directions: tuple[Tensor, Tensor] | None = None,
    generator: torch.Generator | None = None,
) -> list[Tensor]:
    """Scores -theta (H g) from function values, shaped like `params`."""
    first, second = directions if directions is not None else (None, None)
    g0 = rge(loss_fn, params, mu, q, generator, first)
    moved = [p + mu * g for p, g in zip(params, g0, strict=True)]
    g1 = rge(loss_fn, moved, mu, q, generator, second)
    return [-p * (b - a) / mu for p, a, b in zip(params, g0, g1, strict=True)]


def layer_masks(params: Sequence[Tensor], ratios: Sequence[float], generator: torch.Generator) -> list[Tensor]:
    """Boolean masks shaped like `params`; each has the share of its ratio set, at random places."""
    masks = []
    for p, ratio in zip(params, ratios, strict=True):
        if not 0 <= ratio <= 1:
            raise ValueError(f"ratios must lie in [0, 1], got {ratio!r}")
        chosen = torch.randperm(p.numel(), generator=generator, device=generator.device)[: round(ratio * p.numel())]
        mask = torch.zeros(p.numel(), dtype=torch.bool, device=p.device)
        mask[chosen.to(p.device)] = True
        masks.append(mask.view(p.shape))
    return masks
