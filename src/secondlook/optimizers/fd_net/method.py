r"""A Hessian-free trust region: Newton steps by conjugate gradients that stay where the quadratic model is trusted.

At w, with gradient g and Hessian H known through its products alone, minimise

    m(p) = g'p + p'Hp / 2,  |p| <= delta

approximately (Steihaug 1983), and take p if the loss falls by enough of what m promises.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from secondlook.curvature import pack, unpack
from secondlook.curvature.products import derivative

__all__ = ["Trace", "steihaug", "trust_region_cg"]


@dataclass(frozen=True)
class Step:
    """Minimiser `p` [n] of the model, the fall `predicted` there, the Hessian `products` used, and why it ended."""

    p: Tensor
    predicted: float
    products: int
    reason: str  # "residual", "boundary", "negative" (curvature) or "limit"


def steihaug(
    product: Callable[[Tensor], Tensor], gradient: Tensor, radius: float, tol: float, limit: int | None = None
) -> Step:
    """Conjugate gradients on m from p = 0, until |g + Hp| <= `tol`, or out to |p| = `radius`.

    The path leaves for the boundary where the next iterate would lie outside or a direction has curvature <= 0.
    `limit` is the greatest number of products, by default 2n.
    """
    p, r = torch.zeros_like(gradient), gradient.clone()
    d, reason, products = -r, "limit", 0
    if float(r.norm()) <= tol:
        return Step(p, 0.0, 0, "residual")
    for _ in range(2 * len(gradient) if limit is None else limit):
        hd = product(d)
        products += 1
        curvature, rr = float(d @ hd), float(r @ r)
        step = rr / curvature if curvature > 0 else math.inf
        if not math.isfinite(step) or float((p + step * d).norm()) >= radius:
            step = _to_boundary(p, d, radius)
            reason = "boundary" if curvature > 0 else "negative"
        p, r = p + step * d, r + step * hd
        if reason != "limit":
            break
        if float(r.norm()) <= tol:
            reason = "residual"
            break
        d = -r + float(r @ r) / rr * d
    return Step(p, -0.5 * float(p @ (gradient + r)), products, reason)  # r = g + Hp


def _to_boundary(p: Tensor, d: Tensor, radius: float) -> float:
    """The t >= 0 with |p + t d| = radius."""
    a, b, c = float(d @ d), float(p @ d), float(p @ p) - radius**2
    root = math.sqrt(max(b * b - a * c, 0.0))
    return (root - b) / a if b <= 0 else -c / (b + root)  # the form that does not cancel


@dataclass
class Trace:
    """A run by iteration: `loss` after it, cumulated `evals`, `radius` and how the step `ended`; entry 0 is the start.

    `evals` are gradient evaluations, a Hessian-vector product counted as two and the loss at a refused point as one
    (at an accepted point it is part of the next gradient). `converged`: the gradient fell below the tolerance.
    """

    loss: list[float] = field(default_factory=list)
    evals: list[float] = field(default_factory=list)
    radius: list[float] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    converged: bool = False

    def add(self, loss: float, evals: float, radius: float, ended: str) -> None:
        for row, value in zip(
            (self.loss, self.evals, self.radius, self.ended), (loss, evals, radius, ended), strict=True
        ):
            row.append(value)


def trust_region_cg(
    fun: Callable[[list[Tensor]], Tensor],
    params: Sequence[Tensor],
    delta0: float = 1.0,
    eta: float = 1e-4,
    max_iter: int = 100,
    cg_tol: Callable[[float], float] = lambda norm: min(0.5, math.sqrt(norm)),
    *,
    delta_max: float = 100.0,
    gtol: float = 1e-10,
    max_evals: float = math.inf,
    target: float = -math.inf,
) -> Trace:
    """Minimise `fun(params)` and leave the result in `params`.

    Args:
        fun: a loss that is twice differentiable in the list of tensors that it is given.
        delta0, delta_max: first and greatest radius. It is quartered where the loss falls by less than a quarter of
            what was predicted, and doubled where by more than three quarters with a step that met the boundary.
        eta: the least share of the predicted fall with which a step is accepted.
        cg_tol: maps |g| to the residual at which conjugate gradients stop, in units of |g|.
        gtol, max_evals, target: it ends where |g| <= gtol, after so many evaluations, or once the loss is at target.
    """
    if not 0 < delta0 <= delta_max:
        raise ValueError(f"delta0 must lie in (0, delta_max = {delta_max:g}], got {delta0!r}")
    if not 0 <= eta < 0.25:
        raise ValueError(f"eta must lie in [0, 0.25), got {eta!r}")
    like = [p.detach() for p in params]

    def at(flat: Tensor) -> tuple[Tensor, float, list[Tensor]]:
        point = [part.clone().requires_grad_() for part in unpack(flat, like)]
        value = fun(point)
        return value, float(value.detach()), point

    w, radius, trace, evals = pack(like), delta0, Trace(), 1.0
    graph, loss, point = at(w)
    if not math.isfinite(loss):
        raise ValueError(f"the loss is {loss} at the start")
    trace.add(loss, evals, radius, "start")
    grads = torch.autograd.grad(graph, point, create_graph=True, materialize_grads=True)
    for _ in range(max_iter):
        g = pack(grads).detach()
        norm = float(g.norm())
        trace.converged = norm <= gtol
        if trace.converged or evals >= max_evals or loss <= target:
            break

        def product(v: Tensor, grads: Sequence[Tensor] = grads, point: list[Tensor] = point) -> Tensor:
            return pack(derivative(grads, point, unpack(v, like), False))

        step = steihaug(product, g, radius, cg_tol(norm) * norm)
        graph, new, there = at(w + step.p)
        rho = (loss - new) / step.predicted if math.isfinite(new) and step.predicted > 0 else -math.inf
        evals += 2 * step.products + 1
        if rho < 0.25:
            radius /= 4
        elif rho > 0.75 and step.reason in ("boundary", "negative"):
            radius = min(2 * radius, delta_max)
        if rho > eta:
            w, loss, point = w + step.p, new, there
            grads = torch.autograd.grad(graph, point, create_graph=True, materialize_grads=True)
        trace.add(loss, evals, radius, step.reason)
        if radius < 1e-14 * max(1.0, float(w.norm())):  # rounding decides whether a step is taken
            break
    with torch.no_grad():
        for p, part in zip(params, unpack(w, like), strict=True):
            p.copy_(part)
    return trace
