"""Exact Hessian spectra of small networks: bulk at zero, outliers, and where each comes from.

Sagun, Evci, Guney, Dauphin, Bottou, "Empirical Analysis of the Hessian of Over-Parametrized Neural Networks"
(2017). With outputs z_i = f(w, x_i) and loss L(w) = (1/N) sum_i l(z_i, y_i),

    Hess L = G + R,   G = (1/N) sum_i J_i^T (d2l/dz2) J_i,   R = (1/N) sum_i sum_c (dl/dz_c) Hess z_ic.

A `model` below is a module, or a function `model(params, x)` with `params` given as well.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, hessian, jacrev, vmap
from torch.nn import functional as F

from secondlook.curvature import GGNOperator, HessianOperator, pack

__all__ = [
    "Spectrum",
    "barrier",
    "bulk_and_outliers",
    "descend",
    "full_hessian",
    "gauss_newton",
    "gn_split",
    "segment_loss",
]


def half_squared(z: Tensor, y: Tensor) -> Tensor:
    """Half the squared distance summed over outputs, mean over points: its Hessian in the outputs is I / N."""
    return (z - y).square().sum(-1).mean() / 2


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"ce": F.cross_entropy, "mse": half_squared}


def full_hessian(
    model: Callable[..., Tensor],
    x: Tensor,
    y: Tensor,
    loss: Literal["ce", "mse"] = "ce",
    *,
    params: Sequence[Tensor] | None = None,
    block: int = 128,
) -> Tensor:
    """The Hessian of the mean loss, `[M, M]` in the parameters' dtype, by `M` products in blocks (protocol A).

    Use float64: near-zero eigenvalues of a float32 Hessian are rounding errors.
    """
    return HessianOperator(model, _criterion(loss), (x, y), params).dense(block)


def gn_split(
    model: Callable[..., Tensor],
    x: Tensor,
    y: Tensor,
    loss: Literal["ce", "mse"] = "ce",
    *,
    params: Sequence[Tensor] | None = None,
    block: int = 128,
) -> tuple[Tensor, Tensor]:
    """G and R, `[M, M]` each: G from the Jacobians of single points, R by Hessian products with fixed residuals.

    Neither goes through `full_hessian`. G is positive semi-definite of rank at most N k for k outputs, N (k - 1)
    with cross-entropy; R vanishes with the residuals dl/dz. The model must treat points one by one (no batch norm).
    """
    G = gauss_newton(model, x, y, loss, params=params, block=block)
    return G, _residual_term(model, x, y, _criterion(loss), params, block)


def gauss_newton(
    model: Callable[..., Tensor],
    x: Tensor,
    y: Tensor,
    loss: Literal["ce", "mse"] = "ce",
    *,
    params: Sequence[Tensor] | None = None,
    block: int = 128,
) -> Tensor:
    """G alone, `[M, M]`, from Jacobians of `block` points at a time (`block` times k times M numbers)."""
    criterion = _criterion(loss)
    if params is None:
        names, params = zip(*((n, p.detach()) for n, p in model.named_parameters() if p.requires_grad), strict=True)

        def outputs(theta: Sequence[Tensor], point: Tensor) -> Tensor:
            return functional_call(model, dict(zip(names, theta, strict=True)), (point.unsqueeze(0),)).squeeze(0)
    else:
        params = tuple(p.detach() for p in params)

        def outputs(theta: Sequence[Tensor], point: Tensor) -> Tensor:
            return model(theta, point.unsqueeze(0)).squeeze(0)

    def point_loss(z: Tensor, target: Tensor) -> Tensor:
        return criterion(z.unsqueeze(0), target.unsqueeze(0))

    G = params[0].new_zeros(2 * (sum(p.numel() for p in params),))
    for xs, ys in zip(x.split(block), y.split(block), strict=True):
        z = vmap(outputs, (None, 0))(params, xs)
        J = pack(vmap(jacrev(outputs), (None, 0))(params, xs), lead=2)  # [n, k, M]
        S = vmap(hessian(point_loss))(z, ys)  # [n, k, k]
        G.addmm_(J.flatten(0, 1).T, (S @ J).flatten(0, 1), alpha=1 / len(x))
    return (G + G.T) / 2


def _residual_term(
    model: Callable[..., Tensor],
    x: Tensor,
    y: Tensor,
    criterion: Callable[[Tensor, Tensor], Tensor],
    params: Sequence[Tensor] | None,
    block: int,
) -> Tensor:
    """R is the Hessian of sum_ic r_ic z_ic with the residuals r = dl/dz / N held fixed."""
    network = GGNOperator(model, criterion, (x, y), params)  # for its view of model and parameters only
    with torch.enable_grad():
        z = network.outputs(x).detach().requires_grad_()
        (residual,) = torch.autograd.grad(criterion(z, y), z)
    fixed = HessianOperator.of_loss(lambda _: (residual * network.outputs(x)).sum(), network.params)
    return fixed.dense(block)


@dataclass(frozen=True)
class Spectrum:
    """What the paper reads off a list of eigenvalues: how many stand out, and what the others do.

    `bulk_fraction` is the share of eigenvalues with |eig| < 1e-3 of the largest one; `bulk_scale` the median |eig|
    of all that are no outliers (0 when there are none).
    """

    outliers: int
    bulk_fraction: float
    bulk_scale: float


def bulk_and_outliers(
    eigenvalues: Tensor,
    rule: Literal["threshold", "trace90"] = "threshold",
    *,
    tau: float = 0.05,
    zero: float = 1e-3,
) -> Spectrum:
    """Count outliers among `eigenvalues`, `[M]` in any order, by a rule fixed before looking.

    "threshold": eigenvalues above `tau` of the largest. "trace90": as many of the largest as it takes for 90 % of
    the sum of the positive ones. A spectrum without a positive eigenvalue has no outliers.
    """
    if eigenvalues.ndim != 1 or len(eigenvalues) == 0 or not bool(torch.isfinite(eigenvalues).all()):
        raise ValueError(f"need a vector of finite eigenvalues, got shape {tuple(eigenvalues.shape)}")
    if not 0 < tau < 1 or zero <= 0:
        raise ValueError(f"tau must lie in (0, 1) and zero be positive, got {tau} and {zero}")
    eigs = eigenvalues.sort(descending=True).values
    positive = eigs.clamp(min=0)
    if rule == "threshold":
        count = int((eigs > tau * positive[0]).sum()) if positive[0] > 0 else 0
    elif rule == "trace90":
        # The first index whose partial sum reaches 90 %, counted from one.
        partial, total = positive.cumsum(0), positive.sum()
        count = int((partial < 0.9 * total).sum()) + 1 if total > 0 else 0
    else:
        raise ValueError(f"rule must be 'threshold' or 'trace90', got {rule!r}")
    rest = eigs[count:].abs()
    small = (eigs.abs() < zero * eigs.abs().max()).double().mean()
    return Spectrum(count, float(small), float(rest.median()) if len(rest) else 0.0)


def segment_loss(
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    model: nn.Module,
    loss: Callable[[nn.Module], Tensor],
    points: int = 21,
) -> Tensor:
    """The loss at `points` equally spaced places on the straight line from state `a` to state `b`, `[points]`.

    `loss(model)` is evaluated with the interpolated state in place; the model's own state comes back afterwards.
    Integer entries (counters) are taken from `a`.
    """
    if points < 3:
        raise ValueError(f"a segment needs its ends and something between, got {points} points")
    if a.keys() != b.keys():
        raise ValueError(f"the two states differ in their entries: {sorted(a.keys() ^ b.keys())}")
    own = {name: value.clone() for name, value in model.state_dict().items()}
    losses = []
    try:
        with torch.no_grad():
            for t in torch.linspace(0, 1, points).tolist():
                at = {n: torch.lerp(v, b[n], t) if v.is_floating_point() else v for n, v in a.items()}
                model.load_state_dict(at)
                losses.append(loss(model))
    finally:
        model.load_state_dict(own)
    return torch.stack(losses)


def barrier(losses: Tensor) -> float:
    """How far the loss between the ends of a segment, `[points]`, rises above the higher end; may be negative."""
    if losses.ndim != 1 or len(losses) < 3:
        raise ValueError(f"need the losses at both ends and between, got shape {tuple(losses.shape)}")
    return float(losses[1:-1].max() - torch.maximum(losses[0], losses[-1]))


def descend(
    loss: Callable[[list[Tensor], Any], Tensor],
    params: Sequence[Tensor],
    data: Any,
    *,
    lr: float,
    tol: float,
    max_steps: int,
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Full-batch gradient descent of S independent problems at once, each until its gradient norm is below `tol`.

    Args:
        loss: `loss(params, data) -> [S]`, one value a problem.
        params: tensors `[S, ...]`, one row a problem; they are not changed.
        data: a tuple of tensors `[S, ...]`.

    Returns:
        the parameters, the gradient norms `[S]` last seen, and the steps taken `[S]`.

    The gradient decides and not the loss: at a loss of 1e-2, say, the spectrum depends on how fast one got there.
    """
    if lr <= 0 or tol <= 0 or max_steps < 1:
        raise ValueError(f"lr, tol and max_steps must be positive, got {lr}, {tol} and {max_steps}")
    final = [p.detach().clone() for p in params]
    alive = torch.arange(len(final[0]), device=final[0].device)
    norms, steps = final[0].new_full(alive.shape, torch.inf), torch.zeros_like(alive)
    now = [p.clone().requires_grad_() for p in final]
    for _ in range(max_steps):
        with torch.enable_grad():
            gradient = torch.autograd.grad(loss(now, data).sum(), now)
        norm = sum(g.flatten(1).square().sum(1) for g in gradient).sqrt()
        norms[alive] = norm
        moving = norm > tol
        if not bool(moving.all()):  # what has arrived (or diverged to NaN) leaves the computation
            for kept, p in zip(final, now, strict=True):
                kept[alive] = p.detach()
            alive, data = alive[moving], tuple(d[moving] for d in data)
            now = [p.detach()[moving].requires_grad_() for p in now]
            gradient = [g[moving] for g in gradient]
            if not len(alive):
                break
        with torch.no_grad():
            torch._foreach_sub_(now, gradient, alpha=lr)
        steps[alive] += 1
    for kept, p in zip(final, now, strict=True):
        kept[alive] = p.detach()
    return final, norms, steps


def _criterion(loss: str) -> Callable[[Tensor, Tensor], Tensor]:
    if loss not in LOSSES:
        raise ValueError(f"loss must be one of {sorted(LOSSES)}, got {loss!r}")
    return LOSSES[loss]
